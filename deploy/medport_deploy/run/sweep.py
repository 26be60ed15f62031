"""Find what a dead or failed run left, and take it away; nothing that the last finished run made, or that was
verified, is touched. What is found is listed first; ``steps`` gives what ``apply.run`` then does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from medport_deploy.control.plane import ControlPlane, last, split_of
from medport_deploy.names import GOOD_PREFIX
from medport_deploy.run import inventory, vertex_removal
from medport_deploy.run.inventory import Inventory, Json
from medport_deploy.run.journal import Journal
from medport_deploy.run.steps import Doing, Step

_MAKING = ("apply", "rollback", "promote")
_RETIRED = "is no more in the specification, nor of what serves"


@dataclass(frozen=True, slots=True)
class Keep:
    """What belongs to the deployment as it is meant to be."""

    endpoints: frozenset[str] = frozenset()
    """Ids."""
    versions: frozenset[str] = frozenset()
    """``MODEL@ALIAS``, or with a number."""
    deployed: frozenset[str] = frozenset()
    """``ENDPOINT/ID``."""

    def without(self, endpoints: Collection[str]) -> Keep:
        """The same but for some endpoints and what is on them."""
        deployed = {each for each in self.deployed if each.partition("/")[0] not in endpoints}
        return Keep(self.endpoints - set(endpoints), self.versions, frozenset(deployed))

    def __or__(self, other: Keep) -> Keep:
        return Keep(
            self.endpoints | other.endpoints, self.versions | other.versions, self.deployed | other.deployed
        )


@dataclass(frozen=True, slots=True)
class Leftover:
    """One thing that is to go."""

    kind: str
    """``operation``, ``deployed_model``, ``version`` or ``endpoint``."""
    name: str
    why: str
    percent: int = 0
    """The traffic that it has now; the models that stay get it."""
    step: Step = field(repr=False, kw_only=True)


def active(journals: Sequence[Journal]) -> Keep:
    """What the last finished run made or found."""
    for each in reversed(journals):
        if each.header.verb == "destroy" and each.ended == "finished":
            break
        if each.header.verb in _MAKING and each.ended == "finished":
            of = {kind: _names(each, kind) for kind in ("endpoint", "version", "deployed_model")}
            return Keep(of["endpoint"], of["version"], of["deployed_model"])
    return Keep()


def find(
    control: ControlPlane,
    deployment: str,
    journals: Sequence[Journal],
    keep: Keep | None = None,
    *,
    unproven: Collection[str] = (),
    retired: Collection[str] = (),
) -> list[Leftover]:
    """What is to go, in the order in which it can.

    Args:
        journals: of ``journal.all_of``, the oldest first.
        keep: more that is to stay, such as an old fleet that is retained; what the last finished run made stays
            anyway, and so do what was verified and what has traffic without a run of this directory.
        unproven: ``MODEL@ALIAS`` of aliases that call a version good and count for nothing: a run gave them that
            did not come to its verification.
        retired: ids of endpoints that go with all that is medport's on them, verified or not.
    """
    keep = (active(journals) | (keep or Keep())).without(retired)
    there = inventory.read(control, deployment, journals)
    keep |= Keep(deployed=frozenset(_of_elsewhere(there, journals, retired)))
    keep |= Keep(versions=frozenset(_versions_of(there, keep.deployed)))
    good = {
        f"{model}@{each['versionId']}"
        for model, versions in there.versions.items()
        for each in versions
        if any(
            alias.startswith(GOOD_PREFIX) and f"{model}@{alias}" not in unproven
            for alias in each.get("versionAliases", [])
        )
    }
    being_made = _names_of_open(journals)
    return [
        *operations(control, there),
        *_deployed(control, there, journals, keep, good, being_made, retired),
        *_versions(control, there, keep, good, being_made),
        *_endpoints(control, there, deployment, keep, good, being_made, retired),
    ]


def steps(found: Sequence[Leftover]) -> list[Step]:
    """What takes it all away; for ``apply.run`` with the verb ``sweep``."""
    return [each.step for each in found]


def operations(control: ControlPlane, there: Inventory) -> list[Leftover]:
    """What is under way: is asked to end, and waited for."""
    return [
        Leftover("operation", name, "is under way", step=cancelled(control, name))
        for names in there.pending.values()
        for name in names
    ]


def cancelled(control: ControlPlane, name: str) -> Step:
    """Ask an operation to end, and wait until it has; how it ends is the next steps' affair."""

    def do(doing: Doing) -> None:
        control.cancel(name)
        doing.settle(name.partition("/operations/")[0])

    return Step(
        kind="operation",
        name=name,
        title=f"end operation {last(name)}",
        do=do,
        done=lambda: bool(control.get_operation(name).get("done")),
    )


def _deployed(
    control: ControlPlane,
    there: Inventory,
    journals: Sequence[Journal],
    keep: Keep,
    good: set[str],
    being_made: Mapping[str, list[str]],
    retired: Collection[str],
) -> list[Leftover]:
    named = {name for kind, name in inventory.named(journals) if kind == "deployed_model"}
    found: list[Leftover] = []
    for endpoint_id, endpoint in there.endpoints.items():
        stay = {name.partition("/")[2] for name in keep.deployed if name.startswith(f"{endpoint_id}/")}
        split = split_of(endpoint)
        ids: dict[str, str] = {}
        for each in endpoint.get("deployedModels", []):
            model = last(each.get("model", "")).partition("@")[0]
            version = f"{model}@{each.get('modelVersionId', '')}"
            if version in good and endpoint_id not in retired:
                stay.add(str(each["id"]))
            # Of others' models on an endpoint we know nothing.
            elif f"{endpoint_id}/{each['id']}" in named or model in there.versions:
                why = f"is of {version}, which no finished run has"
                ids[str(each["id"])] = _RETIRED if endpoint_id in retired else why
        if f"endpoints/{endpoint_id}" in there.pending:
            for name in being_made.get("deployed_model", []):
                if name.startswith(f"{endpoint_id}/"):
                    ids.setdefault(name.partition("/")[2], "is being deployed")
        # Those with traffic last: what they have goes to those that stay.
        for id_ in sorted((each for each in ids if each not in stay), key=lambda each: (split.get(each, 0), each)):
            step = vertex_removal.undeployed(control, endpoint_id, id_, prefer=stay)
            found.append(
                Leftover("deployed_model", f"{endpoint_id}/{id_}", ids[id_], split.get(id_, 0), step=step)
            )
    return found


def _of_elsewhere(there: Inventory, journals: Sequence[Journal], retired: Collection[str]) -> Iterator[str]:
    """Fleets that have traffic and that no run of this directory made: one of another may hold them."""
    named = {name for kind, name in inventory.named(journals) if kind == "deployed_model"}
    for endpoint_id, endpoint in there.endpoints.items():
        if endpoint_id in retired:
            continue
        for id_ in split_of(endpoint):
            if f"{endpoint_id}/{id_}" not in named:
                yield f"{endpoint_id}/{id_}"


def _versions_of(there: Inventory, deployed: Collection[str]) -> Iterator[str]:
    for endpoint_id, endpoint in there.endpoints.items():
        for each in endpoint.get("deployedModels", []):
            if f"{endpoint_id}/{each['id']}" in deployed:
                yield f"{last(each.get('model', '')).partition('@')[0]}@{each.get('modelVersionId', '')}"


def _versions(
    control: ControlPlane, there: Inventory, keep: Keep, good: set[str], being_made: Mapping[str, list[str]]
) -> list[Leftover]:
    found: list[Leftover] = []
    for model, versions in there.versions.items():
        for each in versions:
            names = {f"{model}@{name}" for name in (each["versionId"], *each.get("versionAliases", []))}
            if not names & (keep.versions | good):
                found.append(_version(control, model, str(each["versionId"]), "no finished run has it"))
    for name in being_made.get("version", []):
        model, _, alias = name.partition("@")
        if f"models/{model}" in there.pending and name not in keep.versions:
            found.append(_version(control, model, alias, "is being uploaded"))
    return found


def _version(control: ControlPlane, model: str, which: str, why: str) -> Leftover:
    return Leftover("version", f"{model}@{which}", why, step=vertex_removal.version_deleted(control, model, which))


def _endpoints(
    control: ControlPlane,
    there: Inventory,
    deployment: str,
    keep: Keep,
    good: set[str],
    being_made: Mapping[str, list[str]],
    retired: Collection[str],
) -> list[Leftover]:
    found = {
        id_: _RETIRED if id_ in retired else "no finished run has it"
        for id_ in there.endpoints
        if there.ours(id_, deployment)
        and id_ not in keep.endpoints
        and not _holds_others(there, id_, keep, set() if id_ in retired else good)
    }
    for id_ in being_made.get("endpoint", []):
        if f"endpoints/{id_}" in there.pending and id_ not in keep.endpoints and id_ not in there.endpoints:
            found[id_] = "is being created"
    return [
        Leftover("endpoint", id_, why, step=vertex_removal.endpoint_deleted(control, id_))
        for id_, why in found.items()
    ]


def _holds_others(there: Inventory, endpoint_id: str, keep: Keep, good: set[str]) -> bool:
    """Whether models stay on an endpoint: kept or verified ones, or others' that we do not touch."""
    for each in there.endpoints[endpoint_id].get("deployedModels", []):
        model: str = last(each.get("model", "")).partition("@")[0]
        kept = f"{endpoint_id}/{each['id']}" in keep.deployed or f"{model}@{each.get('modelVersionId')}" in good
        if kept or model not in there.versions:
            return True
    return False


def _names(journal: Journal, kind: str) -> frozenset[str]:
    made = [each for each in journal.records if each.kind == kind and each.state in ("done", "skipped")]
    return frozenset(each.name for each in made)


def _names_of_open(journals: Sequence[Journal]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for kind, name in inventory.named([each for each in journals if each.open]):
        found.setdefault(kind, []).append(name)
    return found


__all__ = ["Json", "Keep", "Leftover", "active", "cancelled", "find", "operations", "steps"]
