"""Models that lie on this machine: in a store of medport's, a directory with a manifest, or another lock.

    DIR/format, DIR/snapshots/<snapshot_sha256>/manifest.json, DIR/records/<snapshot_sha256>.json   a store
    DIR/manifest.json, or DIR/*/manifest.json                                                        directories
    FILE                                                                                             a lock

Nobody is asked, and every file is hashed where it lies. A lock holds no files: what it says is taken as it is.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport.lock import LockedFile, LockedModel
from medport_deploy.lock import terms as known_terms
from medport_deploy.lock.model_source import Family, FoundModel, family_of
from medport_deploy.lock.pinned import MANIFEST, Verified, chosen, verify_files
from medport_deploy.lock.terms import Terms
from medport_deploy.spec.form import DEFAULT_REVISION

_STORE = b"medport-store 1\n"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_MAX_BYTES = 16 * 2**20


class _Manifest(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)

    repo_id: str
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    family: Family
    snapshot_sha256: str
    files: dict[str, LockedFile]


@dataclass(frozen=True, slots=True)
class _Candidate:
    model: LockedModel
    requested: str | None
    """The branch or tag that it was fetched by, where that is known."""
    directory: Path | None
    terms: Terms | None


class Mirror:
    """Models on this machine.

    Args:
        place: a store, a directory or a lock.
        verify: hash every file of a model that is found. Off, its manifest is believed.
        tell: is told what was hashed.
    """

    def __init__(
        self, place: Path, *, verify: bool = True, tell: Callable[[str, Verified], None] = lambda *_: None
    ) -> None:
        self._place = place
        self._verify = verify
        self._tell = tell

    def find(self, model_id: str, requested: str, *, field: str) -> FoundModel:
        """One snapshot, down to the last byte.

        Args:
            model_id: ``OWNER/NAME``; letter case does not count.
            requested: a commit; or a branch or tag by which the place says it was fetched. A snapshot of which
                that is not known passes for ``main``, and for nothing else.
            field: what to call it in errors.

        Raises:
            NotFound: the place does not hold it.
            ConfigError: the place is none, or several snapshots are meant.
            VerificationError: what is there is damaged, or is no model that is served.
        """
        named = [each for each in self._candidates(field) if each.model.model_id.casefold() == model_id.casefold()]
        if _COMMIT.fullmatch(requested):
            fitting = [each for each in named if each.model.revision == requested]
        else:
            fitting = [each for each in named if each.requested == requested]
            if not fitting and requested == DEFAULT_REVISION:
                fitting = [each for each in named if each.requested is None]
        if not fitting:
            remedy = f"medport snapshot pull {model_id}@{requested}, or name another --mirror"
            if held := sorted({each.model.revision for each in named if each.model.revision}):
                remedy += f"; or, if it is what you mean, write its commit as the revision: {', '.join(held):.300}"
            raise NotFound(f"{self._place.name} holds no {model_id}@{requested}", field=field, remedy=remedy)
        if len({each.model.snapshot_sha256 for each in fitting}) > 1:
            commits = ", ".join(sorted(each.model.revision or "no commit" for each in fitting))
            raise ConfigError(
                f"{self._place.name} holds several snapshots of {model_id}: {commits:.300}",
                field=field,
                remedy="write the commit that you mean as its revision",
            )
        taken = fitting[0]
        if taken.directory is not None:
            self._check(taken.model, taken.directory, field)
        return FoundModel(taken.model, requested, taken.terms)

    def _check(self, model: LockedModel, directory: Path, field: str) -> None:
        names = chosen(model.files, field=field)
        if strange := sorted(set(model.files) - set(names)):
            raise VerificationError(
                f"{MANIFEST} lists {strange[0][:60]!a}, which is no part of a model",
                field=field,
                remedy="fetch the model again",
            )
        if self._verify:
            self._tell(field, verify_files(model, directory, field=field))
        if family_of(_read(directory / "config.json", field), field=field) != model.family:
            raise VerificationError(f"{MANIFEST} and config.json speak of two families", field=field)

    def _candidates(self, field: str) -> Iterator[_Candidate]:
        place = self._place
        if place.is_file():
            yield from _of_lock(place)
        elif not place.is_dir():
            raise ConfigError(
                f"there is no {place.name}", field="mirror", remedy="name a store, directory or lock"
            )
        elif (place / "format").is_file():
            if (place / "format").read_bytes() != _STORE:
                raise ConfigError(
                    f"{place.name} is a store of another format",
                    field="mirror",
                    remedy="use the medport that made it",
                )
            for folder in sorted((place / "snapshots").glob("[0-9a-f]*")):
                yield _of_store(folder, place / "records" / f"{folder.name}.json", field)
        else:
            folders = [place, *sorted(each for each in place.iterdir() if each.is_dir())]
            for folder in folders:
                if (folder / MANIFEST).is_file():
                    model = _model(_read(folder / MANIFEST, field), field)
                    yield _Candidate(model, None, folder, known_terms.known(model.model_id))


def _of_lock(file: Path) -> Iterator[_Candidate]:
    for model in locks.read(file).models.values():
        plain = LockedModel(**{name: getattr(model, name) for name in LockedModel.model_fields if name != "terms"})
        said = model.terms.model_dump() if model.terms else None
        extra = model.model_extra or {}
        yield _Candidate(plain, extra.get("requested"), None, known_terms.of_lock(plain.model_id, said))


def _of_store(folder: Path, record: Path, field: str) -> _Candidate:
    data = _read(folder / MANIFEST, field)
    said = _json(_read(record, field), record.name, field)
    if hashlib.sha256(data).hexdigest() not in (said.get("manifest_sha256") or ()):
        raise VerificationError(
            f"the {MANIFEST} of {folder.name:.12} is not the one that was stored",
            field=field,
            remedy="medport snapshot verify",
        )
    kept = said.get("record") or {}
    model = _model(data, field)
    requested = kept.get("requested") if kept.get("source") == "hub" else None
    return _Candidate(model, requested, folder, known_terms.of_lock(model.model_id, kept.get("terms")))


def _model(manifest: bytes, field: str) -> LockedModel:
    try:
        said = _Manifest.model_validate_json(manifest)
        return LockedModel(
            model_id=said.repo_id,
            revision=said.revision,
            snapshot_sha256=said.snapshot_sha256,
            family=said.family,
            files=said.files,
        )
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(step) for step in first["loc"]) or "its start"
        raise VerificationError(
            f"{MANIFEST} is not one of a snapshot (at {place:.100})", field=field, remedy="fetch the model again"
        ) from None


def _read(file: Path, field: str) -> bytes:
    try:
        with file.open("rb") as opened:
            data = opened.read(_MAX_BYTES + 1)
    except OSError as fault:
        raise VerificationError(
            f"{file.name} cannot be read ({type(fault).__name__})", field=field, remedy="fetch the model again"
        ) from fault
    if len(data) > _MAX_BYTES:
        raise VerificationError(f"{file.name} is larger than {_MAX_BYTES // 2**20} MiB", field=field)
    return data


def _json(data: bytes, name: str, field: str) -> Mapping[str, Any]:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise VerificationError(f"{name} is no JSON object", field=field, remedy="medport snapshot verify")
    return said
