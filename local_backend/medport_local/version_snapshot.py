"""Which snapshot a Model version means, by everything that it says about it. What it says must agree.

Hints, the strongest first: the sha256 of the snapshot (``MEDPORT_SNAPSHOT_SHA256``, the label ``medport-snap``), a
local directory (``artifactUri``), the model's id with a commit (``MEDPORT_REVISION``, ``--revision``, the label
``medport-rev``), the model's id alone if there is one snapshot of it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from medport.errors import NotFound, PreconditionFailed, VerificationError
from medport.wire.vertex import from_label
from medport_local.shelf import Known, Shelf
from medport_local.snapshot import Family

_SHA256 = re.compile(r"[0-9a-f]{64}")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PUBLISHER = re.compile(
    r"(?:publishers/)?(?:hf-)?(?P<owner>[^/@]+)/(?:models/)?(?P<model>[^/@]+)(?:@(?P<version>.+))?"
)
_FAMILIES = get_args(Family)
_PIN = "give containerSpec.env MEDPORT_SNAPSHOT_SHA256"


@dataclass(frozen=True, slots=True)
class Hint:
    """Something that a version says, and where."""

    value: str
    place: str


@dataclass(frozen=True, slots=True)
class Hints:
    """All that a version says of the bytes that it means."""

    sha256s: list[Hint] = field(default_factory=list)
    revisions: list[Hint] = field(default_factory=list)
    model_ids: list[Hint] = field(default_factory=list)
    directories: list[Hint] = field(default_factory=list)
    elsewhere: list[Hint] = field(default_factory=list)
    """Places that this server does not read, such as ``gs://…``."""


def snapshot_of(version: Mapping[str, Any], shelf: Shelf, *, pinned: str = "") -> Known:
    """The snapshot that a Model version means, as a GET shows the version.

    Args:
        pinned: the sha256 that it meant before, of a version that is deployed: it may not mean another later.

    Raises:
        VerificationError: it contradicts itself, or the snapshot. Names both.
        PreconditionFailed: it names no snapshot, or several are meant.
        NotFound: the server does not have it. The remedy says how to bring it.
    """
    hints = hints_of(version)
    if pinned:
        hints.sha256s.append(Hint(pinned, "the deployed model"))
    for each in (hints.sha256s, hints.revisions, _single(hints.model_ids), hints.directories):
        _check_one(each)
    found = _chosen(hints, str(version.get("displayName", "")), shelf)
    said = f"the snapshot {found.snapshot_sha256:.12}"
    for hint in hints.sha256s:
        if hint.value != found.snapshot_sha256:
            raise _contradiction(hint, found.snapshot_sha256, "the snapshot in artifactUri")
    for hint in hints.revisions:
        if hint.value != found.revision:
            raise _contradiction(hint, found.revision or "no commit", said)
    for hint in hints.model_ids:
        if not _is_of(hint.value, found):
            raise _contradiction(hint, found.model_id, said)
    return found


def hints_of(version: Mapping[str, Any]) -> Hints:
    """Read them.

    Raises:
        VerificationError: one has no form of what it should be: a misspelt pin would pin nothing.
    """
    spec = version.get("containerSpec") or {}
    env = {each.get("name"): each.get("value", "") for each in spec.get("env", ())}
    labels = version.get("labels") or {}
    hints = Hints()
    if (text := env.get("MEDPORT_SNAPSHOT_SHA256")) is not None:
        place = "containerSpec.env MEDPORT_SNAPSHOT_SHA256"
        hints.sha256s.append(_formed(_SHA256, text.removeprefix("sha256:"), place, "64 hex digits"))
    if (label := labels.get("medport-snap")) is not None:
        hints.sha256s.append(
            _formed(_SHA256, from_label(label) or "", "labels medport-snap", "the base32 of a sha256")
        )
    arguments = [*spec.get("command", ()), *spec.get("args", ())]
    for place, text in (
        ("containerSpec.env MEDPORT_REVISION", env.get("MEDPORT_REVISION")),
        ("labels medport-rev", labels.get("medport-rev")),
        *(("containerSpec.args --revision", each) for each in _given(arguments, "revision")),
    ):
        if text is not None:
            hints.revisions.append(_formed(_COMMIT, text, place, "the 40 hex digits of a commit: a branch moves"))
    garden = (version.get("baseModelSource") or {}).get("modelGardenSource") or {}
    for place, text in (
        ("artifactUri", version.get("artifactUri")),
        *(("containerSpec.args --model", each) for each in _given(arguments, "model", "model-id")),
        ("containerSpec.env MODEL_ID", env.get("MODEL_ID")),
        ("baseModelSource.modelGardenSource.publicModelName", garden.get("publicModelName")),
    ):
        if text:
            _add_place(hints, text, place)
    return hints


def model_id_of(name: str) -> tuple[str, str | None]:
    """A model's id, and a commit if one stands behind it, of any name that is in use for it.

    ``publishers/google/models/medgemma@medgemma-4b-it``, ``google/medgemma@medgemma-4b-it`` and
    ``google/medgemma-4b-it`` are one.
    """
    found = _PUBLISHER.fullmatch(name)
    if found is None:
        return name, None
    owner, model, version = found["owner"], found["model"], found["version"]
    if version is None or re.fullmatch(r"[0-9]{1,6}|latest", version):
        return f"{owner}/{model}", None
    if _COMMIT.fullmatch(version):
        return f"{owner}/{model}", version
    # The variant names the container, not other bytes.
    return f"{owner}/{version.removesuffix('-dicom')}", None


def _add_place(hints: Hints, text: str, place: str) -> None:
    if text.startswith(("/", "file://", "./", "../")):
        hints.directories.append(Hint(text, place))
    elif "://" in text:
        hints.elsewhere.append(Hint(text, place))
    else:
        name, commit = model_id_of(text)
        hints.model_ids.append(Hint(name, place))
        if commit is not None:
            hints.revisions.append(Hint(commit, place))


def _chosen(hints: Hints, display_name: str, shelf: Shelf) -> Known:
    known = shelf.known()
    if hints.directories:
        return shelf.in_directory(hints.directories[0].value)
    if hints.sha256s:
        sha256 = hints.sha256s[0].value
        for each in known:
            if each.snapshot_sha256 == sha256:
                return each
        raise NotFound(
            f"this server does not have the snapshot sha256:{sha256}",
            field=hints.sha256s[0].place,
            remedy=f"bring it into its store: {_bring(hints)}",
        )
    wanted = [hint.value for hint in hints.model_ids]
    commits = [hint.value for hint in hints.revisions]
    if not wanted and not commits:
        if hints.elsewhere:
            place = hints.elsewhere[0]
            raise PreconditionFailed(
                f"this server reads no {place.value.partition('://')[0]:.20}://",
                field=place.place,
                remedy=f"medport snapshot pull {place.value:.200}, then {_PIN}",
            )
        wanted = [model_id_of(display_name)[0]]
    found = [
        each
        for each in known
        if all(_is_of(name, each) for name in wanted) and all(each.revision == commit for commit in commits)
    ]
    if len(found) == 1:
        return found[0]
    if found:
        raise PreconditionFailed(
            f"this server has {len(found)} snapshots of {found[0].model_id}", field="containerSpec", remedy=_PIN
        )
    if not hints.model_ids and not commits:
        raise PreconditionFailed(
            "the model version says of no snapshot that it means it",
            field="containerSpec",
            remedy=f"{_PIN}, or MODEL_ID and MEDPORT_REVISION",
        )
    there = ", ".join(sorted({each.model_id for each in known}))
    named = "@".join((*wanted[:1], *commits[:1]))
    raise NotFound(
        f"this server does not have {named:.200}",
        field="containerSpec",
        remedy=f"bring it into its store: {_bring(hints)}; it has {there:.400}",
    )


def _is_of(name: str, known: Known) -> bool:
    owner, _, bare = name.rpartition("/")
    known_owner, _, known_bare = known.model_id.rpartition("/")
    # Model Garden has one page for a family: google/medgemma is any of its models.
    return owner in ("", known_owner) and bare in (known_bare, known.family)


def _single(model_ids: Sequence[Hint]) -> list[Hint]:
    """Without the families of which others name a model. All are held against what is found in the end."""
    bare = {hint: hint.value.rpartition("/")[2] for hint in model_ids}
    return [
        hint
        for hint in model_ids
        if bare[hint] not in _FAMILIES or not all(name.startswith(bare[hint]) for name in bare.values())
    ]


def _check_one(hints: Sequence[Hint]) -> None:
    for other in hints[1:]:
        first = hints[0]
        # One may have the owner before the name, and the other not.
        short = "/" not in first.value or "/" not in other.value
        alike = short and first.value.rpartition("/")[2] == other.value.rpartition("/")[2]
        if first.value != other.value and not alike:
            raise _contradiction(first, other.value, other.place)


def _contradiction(hint: Hint, other: str, place: str) -> VerificationError:
    return VerificationError(
        f"says {hint.value:.100}, and {place} says {other:.100}",
        field=hint.place,
        remedy="upload a version whose pins agree",
    )


def _formed(form: re.Pattern[str], text: str, place: str, wanted: str) -> Hint:
    if not form.fullmatch(text):
        raise VerificationError("is no pin", field=place, remedy=f"give {wanted}")
    return Hint(text, place)


def _given(arguments: Sequence[str], *names: str) -> Iterator[str]:
    """The values of options of vLLM's command line: ``--name=value`` or ``--name value``."""
    spelt = [each.partition("=") for each in arguments]
    for i, (name, equals, value) in enumerate(spelt):
        if name.startswith("--") and name[2:].replace("_", "-") in names:
            if equals:
                yield value
            elif i + 1 < len(arguments):
                yield arguments[i + 1]


def _bring(hints: Hints) -> str:
    source = (
        hints.elsewhere[0].value
        if hints.elsewhere
        else "@".join(each[0].value for each in (hints.model_ids, hints.revisions) if each)
    )
    return f"medport snapshot pull {source or 'MODEL@COMMIT':.200}"
