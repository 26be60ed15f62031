"""``medport.lock``: exactly which snapshots, and which container images, a site has approved.

JSON in UTF-8, written for people to read and to compare. What it says is named by ``lock_id``: the sha256 of its
canonical form (keys sorted, no blanks, no escapes for letters), so that the layout of the file does not count.
``jq -cS . medport.lock | tr -d '\\n' | sha256sum`` gives the same.

A branch or a tag has no place in it: a revision is a commit or nothing. Keys that are not known here are kept, and
count for the id; they are other tools' own.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, model_validator

from medport.errors import ConfigError, VerificationError

FILE_NAME = "medport.lock"
MAX_BYTES = 16 * 2**20
_NOT_A_FILE = re.compile(r"[\x00-\x1f\x7f\\:]")
_LONGEST_NAME = 1024


class _Part(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True, defer_build=True)


def _inside(name: str) -> str:
    path = PurePosixPath(name)
    if len(name) > _LONGEST_NAME or _NOT_A_FILE.search(name) or path.is_absolute() or name != path.as_posix():
        raise ValueError("is no path inside a snapshot")
    if not path.parts or ".." in path.parts:
        raise ValueError("is no path inside a snapshot")
    return name


Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$")]
FileName = Annotated[str, AfterValidator(_inside)]


class LockedFile(_Part):
    """What one file of a snapshot holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    sha256: Sha256
    size_bytes: Annotated[int, Field(ge=0, strict=True)]


class Terms(_Part):
    """Under which a model was given out, and who agreed to them."""

    name: str
    url: str | None = None
    gated: Annotated[bool, Field(strict=True)] = False
    accepted_by: str | None = None
    accepted_at: str | None = None
    """UTC, ISO 8601."""
    licence_sha256: str | None = None
    """Of the licence's text, where the snapshot holds it."""


class LockedModel(_Part):
    """One snapshot, down to the last byte."""

    model_id: Annotated[str, Field(min_length=1, max_length=256)]
    revision: Commit | None = None
    """``None``: from a directory or a bucket, which have no commits. The bytes are pinned all the same."""
    snapshot_sha256: Sha256
    family: Literal["medgemma", "medsiglip"]
    files: Annotated[dict[FileName, LockedFile], Field(min_length=1)]
    terms: Terms | None = None

    @model_validator(mode="after")
    def _whole(self) -> LockedModel:
        plain = {name: {"sha256": file.sha256, "size_bytes": file.size_bytes} for name, file in self.files.items()}
        found = hashlib.sha256(json.dumps(plain, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        if found != self.snapshot_sha256:
            raise ValueError("its snapshot_sha256 is not that of its own table of files")
        return self

    def __str__(self) -> str:
        """``google/medgemma-4b-it@290dda…``, or by the sha256 where there is no commit."""
        return f"{self.model_id}@{self.revision}" if self.revision else f"sha256:{self.snapshot_sha256}"


class LockedImage(_Part):
    """A container image, by digest."""

    uri: Annotated[str, Field(min_length=1, max_length=1024)]
    """Repository, such as ``europe-west4-docker.pkg.dev/p/medport/serving``; a tag in it counts for nothing."""
    digest: Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]


class Lock(_Part):
    """The whole file."""

    version: Literal[1] = 1
    models: dict[Name, LockedModel] = {}
    images: dict[Name, LockedImage] = {}

    @property
    def lock_id(self) -> str:
        """The sha256 of ``canonical``, 64 hex digits: the name under which results and audit lines refer to it."""
        return hashlib.sha256(self.canonical()).hexdigest()

    def canonical(self) -> bytes:
        """The one form of what it says: JSON, keys sorted, no blanks, UTF-8, no newline."""
        return json.dumps(
            self._content(), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        ).encode()

    def text(self) -> str:
        """The file's content: the same, indented, with a newline at its end."""
        return json.dumps(self._content(), sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"

    def _content(self) -> dict[str, Any]:
        # Only what was said: a default that is filled in here would change the id of a file that leaves it out.
        return {"version": self.version, **self.model_dump(mode="json", exclude_unset=True)}


def parse(data: bytes | str) -> Lock:
    """A lock from the bytes of its file.

    Raises:
        ConfigError: it is no JSON object, holds a key twice, a branch where a commit must be, or something else
            that no lock holds. Names the place.
        VerificationError: a model's sha256 is not that of its own table of files: the file was changed by hand.
    """
    if len(data) > MAX_BYTES:
        raise _broken(f"is larger than {MAX_BYTES // 2**20} MiB")
    try:
        content = json.loads(data, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_finite)
    except (ValueError, RecursionError) as fault:
        said = f": {fault}" if type(fault) is ValueError else ""
        raise _broken(f"is no JSON{said}") from None
    return checked(content)


def checked(content: object) -> Lock:
    """A lock from what its file says as plain values. Raises as ``parse``."""
    if not isinstance(content, dict):
        raise _broken("is no JSON object")
    if content.get("version") != 1 or type(content["version"]) is not int:
        raise _broken("is of a version that this medport does not read", remedy="use the medport that wrote it")
    try:
        lock = Lock.model_validate(content)
        lock.canonical()
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(str(step) for step in first["loc"])
        said = first["msg"].removeprefix("Value error, ")
        if said.startswith("its snapshot_sha256"):
            raise VerificationError(said, field=place, remedy="make it again: medport snapshot lock") from None
        if "revision" in place:
            said = "is not a commit; a branch or a tag moves"
        raise _broken(f"{said[:1].lower()}{said[1:]} (at {place})") from None
    except ValueError:
        raise _broken("holds a number or a text that has no canonical form") from None
    return lock


def read(path: str | os.PathLike[str]) -> Lock:
    """The lock in a file. Raises as ``parse``; ConfigError too if the file cannot be read."""
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as fault:
        raise _broken(
            f"{Path(path).name} cannot be read ({os.strerror(fault.errno or 0)})",
            remedy="make one: medport snapshot lock REF -o medport.lock",
        ) from fault
    return parse(data)


def write(path: str | os.PathLike[str], lock: Lock) -> None:
    """Put the lock into a file, whole or not at all.

    Raises:
        ConfigError: it cannot be written there.
    """
    target = Path(path)
    try:
        handle, made = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            with open(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(lock.text())
                file.flush()
                os.fsync(file.fileno())
            os.chmod(made, _mode(target))  # mkstemp's is for its owner alone, and a lock is no secret
            os.replace(made, target)
        except BaseException:
            os.unlink(made)
            raise
    except OSError as fault:
        raise _broken(
            f"{target.name} cannot be written ({os.strerror(fault.errno or 0)})", remedy="give another place"
        ) from fault


def _mode(target: Path) -> int:
    try:
        return target.stat().st_mode & 0o777
    except FileNotFoundError:
        return 0o644


def _once(pairs: list[tuple[str, Any]]) -> Mapping[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice")
    return found


def _finite(text: str) -> float:
    if math.isinf(value := float(text)):
        raise ValueError("a number is too large")
    return value


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _broken(
    fault: str, *, remedy: str = "make it again: medport snapshot lock REF -o medport.lock"
) -> ConfigError:
    return ConfigError(fault, field="lock", remedy=remedy)
