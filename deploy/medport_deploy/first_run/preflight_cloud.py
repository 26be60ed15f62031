"""The checks that ask Google: rights, APIs, quotas, machines, images, keys. Nothing is changed.

What cannot be read for want of a right is skipped with the reason: who may deploy need not be an auditor.

Source: Vertex AI, "Access control" and "Use a custom container"; Artifact Registry, "Configure roles".
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property

from medport.cli.checks import Skipped
from medport.errors import AuthError, Forbidden, NotFound, PreconditionFailed
from medport.lock import Lock
from medport_deploy.first_run import preflight_google as google
from medport_deploy.first_run.preflight_google import Google
from medport_deploy.lock.registry import Registry
from medport_deploy.plan import quota
from medport_deploy.plan.capacity import Capacity, Machines
from medport_deploy.plan.quota import Limits
from medport_deploy.spec.reading import Model, Spec

_USER = "roles/aiplatform.user"
PERMISSIONS: Mapping[str, str] = {
    **{f"aiplatform.models.{verb}": _USER for verb in ("delete", "get", "list", "update", "upload")},
    **{
        f"aiplatform.endpoints.{verb}": _USER
        for verb in ("create", "delete", "deploy", "get", "list", "predict", "undeploy", "update")
    },
}
"""What a deployment does, from the first upload to destroy, with the role that brings it."""
ACT_AS = "iam.serviceAccounts.actAs"
_READERS = frozenset({
    "roles/artifactregistry.reader", "roles/artifactregistry.writer", "roles/artifactregistry.repoAdmin",
    "roles/artifactregistry.admin", "roles/aiplatform.serviceAgent", "roles/viewer", "roles/editor", "roles/owner",
})  # fmt: skip
_REPOSITORY = re.compile(
    r"(?P<location>[a-z0-9-]+)-docker\.pkg\.dev/"
    r"(?P<project>(?:[a-z0-9.-]+\.[a-z]+/)?[a-z0-9-]+)/(?P<repository>[a-z0-9-]+)/.+"
)


class Cloud:
    """The checks of one specification.

    Args:
        lock: gives the lock, or nothing where there is none yet.
        limits: where quotas are read.
        registry: makes what asks registries, with our credentials.
    """

    def __init__(
        self,
        spec: Spec,
        lock: Lock | None,
        asked: Google,
        *,
        limits: Limits,
        registry: Callable[[], Registry],
    ) -> None:
        self._spec, self._lock, self._google = spec, lock, asked
        self._limits, self._registry = limits, registry
        self._project = spec.target.project

    def services(self) -> str:
        """Whether the APIs are on that the specification needs.

        Raises:
            PreconditionFailed: one is not. Names the command.
        """
        spec = self._spec
        wanted = [quota.SERVICE]
        wanted += ["artifactregistry.googleapis.com"] if any(map(_REPOSITORY.fullmatch, self._images)) else []
        wanted += ["cloudkms.googleapis.com"] if spec.keys.kms_key_name else []
        wanted += ["compute.googleapis.com"] if spec.network.private else []
        with _readable():
            off = self._google.services_off(wanted)
        if off:
            raise PreconditionFailed(
                f"{' and '.join(off)} not on in {self._project}",
                field="target.project",
                remedy=f"gcloud services enable {' '.join(off)} --project {self._project}",
            )
        return f"{', '.join(wanted)} on"

    def permissions(self) -> str:
        """Whether we may do all that a deployment does.

        Raises:
            Forbidden: we may not. Names permissions and the roles that bring them.
        """
        with _readable():
            missing = self._google.missing_permissions(f"{google.PROJECTS}/projects/{self._project}", PERMISSIONS)
        if missing:
            roles = sorted({PERMISSIONS[each] for each in missing})
            raise Forbidden(
                f"not allowed in {self._project}: {', '.join(missing)}",
                field="target.project",
                remedy=f"ask for {' and '.join(roles)} on the project",
            )
        accounts = {each.service_account for each in self._spec.models.values() if each.service_account}
        for account in sorted(accounts):
            self._may_use(account)
        return f"all {len(PERMISSIONS)} that a deployment needs" + (
            " and its service accounts" if accounts else ""
        )

    def quotas(self) -> str:
        """Whether the quotas hold for a roll-out, in which two fleets may run at once.

        Raises:
            QuotaExceeded: one does not. Names it and the numbers.
        """
        location = self._spec.target.location
        found = quota.headroom(quota.needs(_surge(self._spec)), self._limits, location)
        quota.require(found, location)
        read = [each for each in found if each.unread is None]
        if found and not read:
            raise Skipped(f"not read: {found[0].unread}")
        said = [f"{each.metric}: {each.peak} of {'∞' if each.limit is None else each.limit}" for each in read]
        said += [f"{each.metric}: {each.peak} needed, limit not read" for each in found if each.unread is not None]
        return f"at the peak of a {self._spec.rollout.strategy} roll-out, {'; '.join(said) or 'none are needed'}"

    def machines(self) -> str:
        """Whether the machine types are in the location at all.

        Raises:
            NotFound: one is not. Names where it is.
        """
        location = self._spec.target.location
        for type_ in sorted({each.machine.type for each in self._spec.models.values()}):
            with _readable():
                regions = self._google.regions_with(type_)
            if location not in regions:
                raise NotFound(
                    f"Compute Engine has no {type_} in {location}",
                    field="machine.type",
                    remedy=f"take another machine type, or a location that has it: "
                    f"{', '.join(sorted(regions)) or 'none that this project sees'}",
                )
        return f"in {location}, as Compute Engine says; whether one is free is not known before"

    def images(self) -> str:
        """Whether the images are there and readable by us.

        Raises:
            MedportError: as ``Registry.resolve``.
        """
        registry = self._registry()
        try:
            found = [registry.resolve(image, field=field) for image, field in self._images.items()]
        finally:
            registry.close()
        return ", ".join(
            f"{each.repository}@{each.digest[:19]}…, {each.size_bytes / 2**30:.1f} GiB" for each in found
        )

    def readers(self) -> str:
        """Whether Vertex AI itself may pull the images: its service agent does, not who deploys.

        Raises:
            Forbidden: no policy that we may read lets it. Names the command.
        """
        found = {match[0]: match for image in self._images if (match := _REPOSITORY.fullmatch(image))}
        if not found:
            raise Skipped("no image is in Artifact Registry: whether Vertex AI may pull it is not told")
        with _readable():
            agent = f"service-{self._google.project_number()}@gcp-sa-aiplatform.iam.gserviceaccount.com"
        for match in found.values():
            self._may_pull(agent, match)
        return f"{agent} may pull"

    def key(self) -> str:
        """Whether the key can encrypt. That it lies in the right location the specification's own check says.

        Raises:
            NotFound: there is no such key.
            PreconditionFailed: it is off.
        """
        name = self._spec.keys.kms_key_name
        if name is None:
            raise Skipped("no keys.kms_key_name: Google's own key")
        with _readable():
            said = self._google.get(f"{google.KEYS}/{name}", doing="look the key up")
        state = (said.get("primary") or {}).get("state", "without a primary version")
        if state != "ENABLED":
            raise PreconditionFailed(
                f"its primary version is {state}",
                field="keys.kms_key_name",
                remedy="enable it, or name another key",
            )
        return f"lies in {name.split('/')[3]}, as the endpoints do, and is enabled"

    @cached_property
    def _images(self) -> dict[str, str]:
        """Each image once, pinned where the lock pins it, with the key that names it."""
        found: dict[str, str] = {}
        for name, model in self._spec.models.items():
            found.setdefault(self._pinned(name, model), f"models.{name}.image")
        return found

    def _pinned(self, name: str, model: Model) -> str:
        locked = self._lock.images.get(name) if self._lock else None
        return f"{locked.uri}@{locked.digest}" if locked else model.image

    def _may_use(self, account: str) -> None:
        with _readable():
            missing = self._google.missing_permissions(
                f"{google.IAM}/projects/-/serviceAccounts/{account}", [ACT_AS]
            )
        if missing:
            raise Forbidden(
                f"not allowed to let machines run as {account} ({ACT_AS})",
                field="service_account",
                remedy="ask for roles/iam.serviceAccountUser on that account",
            )

    def _may_pull(self, agent: str, image: re.Match[str]) -> None:
        project = image["project"].replace("/", ":")
        member = f"serviceAccount:{agent}"
        place = f"projects/{project}/locations/{image['location']}/repositories/{image['repository']}"
        unread = ""
        for resource, post in (
            (f"{google.REGISTRY}/{place}", False),
            (f"{google.PROJECTS}/projects/{project}", True),
        ):
            try:
                if _READERS & self._google.roles_of(member, resource, post=post):
                    return
            except (AuthError, NotFound) as fault:
                unread = fault.message
        if unread:
            raise Skipped(f"not known, as not every policy could be read ({unread}); it is needed by {agent}")
        raise Forbidden(
            f"Vertex AI's service agent may not pull from {place}",
            field="image",
            remedy=f"gcloud artifacts repositories add-iam-policy-binding {image['repository']}"
            f" --project {project} --location {image['location']}"
            f" --member {member} --role roles/artifactregistry.reader;"
            " a group that the agent is in would not show here",
        )


def _surge(spec: Spec) -> Capacity:
    """The machines of the whole specification, before, during and after a roll-out of every model at once."""
    wanted = tuple(
        Machines(
            each.machine.type, each.machine.accelerator, each.machine.count, each.replicas.min, each.replicas.max
        )
        for each in spec.models.values()
    )
    more: Mapping[str, tuple[Machines, ...]] = {
        "canary": wanted,
        "rolling": tuple(Machines(each.machine_type, each.accelerator, each.count, 1, 1) for each in wanted),
        "recreate": (),
    }
    return Capacity(now=wanted, during=(*wanted, *more[spec.rollout.strategy]), after=wanted)


@contextmanager
def _readable() -> Iterator[None]:
    """Skip what we have no right to read. A credential that is not known at all is a failure."""
    try:
        yield
    except Forbidden as fault:
        raise Skipped(f"not known: {fault.message}") from None
