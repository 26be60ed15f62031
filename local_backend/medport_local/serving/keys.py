"""Named API keys: who they are, what they may do, and the file that holds their digests.

The file is JSON, written by ``medport keys``::

    {"version": 1, "keys": [{"name": "pacs-gateway", "sha256": "…", "models": ["medgemma"],
     "actions": ["infer", "read"], "rate": "60/min", "concurrent": 4, "expires": "2027-01-01T00:00:00Z"}]}

``models`` holds endpoint ids, or ``"*"`` for all. Nothing here needs a web framework, so that the commands don't.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import os
import secrets
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from medport.errors import AuthError, ConfigError, Forbidden, InputError
from medport_local.serving.limits import Rate

logger = logging.getLogger(__name__)

Action = Literal["infer", "read", "metrics", "admin"]
ACTIONS: tuple[Action, ...] = get_args(Action)
ALL_MODELS = "*"
DEFAULT_ACTIONS: tuple[Action, ...] = ("infer", "read")

_PREFIX = "mp_"
_LOOK_EVERY_S = 1.0
_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"


class KeyEntry(BaseModel):
    """A key as the file holds it. What it may do is written out: nothing is allowed by leaving it out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=_NAME)]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    models: tuple[str, ...]
    actions: tuple[Action, ...]
    rate: str | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @field_validator("rate")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Rate.parse(value)
            except InputError as error:
                raise ValueError(str(error)) from None
        return value


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[KeyEntry] = []


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks, and what they may do."""

    name: str
    actions: frozenset[str]
    models: frozenset[str] | None
    """Endpoint ids; ``None`` means all."""
    rate: Rate | None = None
    concurrent: int | None = None

    def may(self, endpoint: str) -> bool:
        """Whether the key is for this endpoint."""
        return self.models is None or endpoint in self.models

    def check_action(self, action: Action) -> None:
        """Raise ``Forbidden`` unless the key may do this."""
        if action not in self.actions:
            raise Forbidden(f"this key may not {_VERBS[action]}", remedy=f"ask for a key with the action {action}")

    def check_model(self, endpoint: str) -> None:
        """Raise ``Forbidden`` unless the key is for this endpoint."""
        if not self.may(endpoint):
            # The endpoint isn't named: the answer must not tell which endpoints there are.
            raise Forbidden("this key is not for this endpoint", remedy="ask for a key with this model")


_VERBS = {"infer": "run a model", "read": "read resources", "metrics": "read metrics", "admin": "change resources"}
ANYONE = Principal(name="-", actions=frozenset(ACTIONS), models=None)
"""Who asks where the server has no keys."""


@dataclass(frozen=True, slots=True)
class _Held:
    digest: bytes = field(repr=False)
    principal: Principal
    expires: float
    """Seconds since the epoch."""


class KeyRing:
    """The keys of one server: one that may do everything, and those of a file, read again when it changes.

    With neither, everyone is ``ANYONE``. A file that cannot be read any more leaves the last good keys in force.

    Raises:
        ConfigError: the file is missing or is none, at the start.
    """

    def __init__(
        self,
        api_key: str | None = None,
        file: Path | None = None,
        *,
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._file = file
        self._open = api_key is None and file is None
        # Hashes have one length, so that not even a key's length can be measured.
        root = Principal(name="root", actions=frozenset(ACTIONS), models=None)
        self._root = (_Held(digest_of(api_key), root, float("inf")),) if api_key else ()
        self._stamp = _stamp(file) if file else None
        self._looked = monotonic()
        self._held = self._root + (_held(load(file)) if file else ())

    @property
    def guarded(self) -> bool:
        """Whether a key is needed at all."""
        return not self._open

    def identify(self, token: str) -> Principal:
        """Whose key it is; ``""`` stands for none.

        Every entry is compared, each in constant time, and nothing is looked up by what the caller sent: how long
        it takes says nothing about how close a guess was.

        Raises:
            AuthError: the key is missing, unknown or expired.
        """
        if self._open:
            return ANYONE
        self._look()
        given, found = digest_of(token), None
        for each in self._held:
            if hmac.compare_digest(given, each.digest):
                found = each
        if found is None or not token:
            said = "the API key is wrong" if token else "this server wants an API key"
            raise AuthError(said, remedy="send it as: Authorization: Bearer KEY")
        if self._clock() >= found.expires:
            raise AuthError("the API key has expired", remedy="ask for a new one")
        return found.principal

    def _look(self) -> None:
        now = self._monotonic()
        if self._file is None or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        if (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        try:
            entries = load(self._file)
        except ConfigError as error:
            logger.error("the file of keys cannot be read, the keys of before stay in force: %s", error.message)
            return
        self._held = self._root + _held(entries)
        logger.info("%d API keys are in force", len(entries))


def digest_of(key: str) -> bytes:
    """What is kept of a key.

    A plain SHA-256: a slow, salted hash protects passwords, which can be guessed. These keys are 256 random bits.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def load(file: Path) -> list[KeyEntry]:
    """The entries of a file.

    Raises:
        ConfigError: it is missing, or has another form.
    """
    try:
        data = file.read_bytes()
        if os.name == "posix" and file.stat().st_mode & 0o077:
            logger.warning("the file of keys can be read by others: chmod 600 it")
    except OSError as fault:
        raise ConfigError(
            f"the file of keys cannot be read ({os.strerror(fault.errno or 0)})",
            field="keys",
            remedy="make one with: medport keys add NAME --keys FILE",
        ) from fault
    try:
        entries = _File.model_validate_json(data).keys
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{place}: {first['msg']}", field="keys", remedy="see: medport keys --help") from None
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in entries]
        if len(set(values)) != len(values):
            raise ConfigError(f"two keys have the same {what}", field="keys")
    if any(entry.name == "root" for entry in entries):
        raise ConfigError("root is the key of --api-key-env", field="keys", remedy="choose another name")
    return entries


def add(
    file: Path,
    name: str,
    *,
    models: Iterable[str] = (),
    actions: Iterable[str] = (),
    rate: str | None = None,
    concurrent: int | None = None,
    expires: date | None = None,
) -> str:
    """Make a key and write its digest into ``file``, which is made if there is none.

    Args:
        models: endpoint ids; all if none is named.
        actions: ``infer`` and ``read`` if none is named.
        expires: the first day, in UTC, on which it is no longer taken.

    Returns:
        the key, which is kept nowhere.

    Raises:
        ConfigError: the name is taken, or something has a wrong form.
    """
    entries = load(file) if file.exists() else []
    if any(entry.name == name for entry in entries):
        raise ConfigError(f"there is a key {name}", field="name", remedy=f"medport keys revoke {name}")
    key = _PREFIX + secrets.token_urlsafe(32)
    values = {
        "name": name,
        "sha256": digest_of(key).hex(),
        "models": tuple(models) or (ALL_MODELS,),
        "actions": tuple(actions) or DEFAULT_ACTIONS,
        "rate": rate,
        "concurrent": concurrent,
        "created": datetime.now(UTC).replace(microsecond=0),
        "expires": datetime(expires.year, expires.month, expires.day, tzinfo=UTC) if expires else None,
    }
    try:
        entry = KeyEntry.model_validate(values)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0])
        raise ConfigError(first["msg"], field=field, remedy="see: medport keys add --help") from None
    if name == "root":
        raise ConfigError("root is the key of --api-key-env", field="name", remedy="choose another name")
    _write(file, [*entries, entry])
    return key


def revoke(file: Path, name: str) -> None:
    """Take a key out of the file; a running server follows within a second.

    Raises:
        ConfigError: there is none of that name.
    """
    entries = load(file)
    rest = [entry for entry in entries if entry.name != name]
    if len(rest) == len(entries):
        raise ConfigError(f"there is no key {name:.63}", field="name", remedy="medport keys list")
    _write(file, rest)


def _write(file: Path, entries: list[KeyEntry]) -> None:
    text = _File(keys=entries).model_dump_json(indent=2, exclude_none=True) + "\n"
    try:
        # mkstemp makes it 0600, and beside the file, so that the change is seen whole or not at all.
        handle, fresh = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
        with open(handle, "w", encoding="utf-8") as new:
            new.write(text)
        os.replace(fresh, file)
    except OSError as fault:
        said = os.strerror(fault.errno or 0)
        raise ConfigError(f"the file of keys cannot be written ({said})", field="keys") from fault


def _held(entries: Iterable[KeyEntry]) -> tuple[_Held, ...]:
    return tuple(
        _Held(
            bytes.fromhex(entry.sha256),
            Principal(
                name=entry.name,
                actions=frozenset(entry.actions),
                models=None if ALL_MODELS in entry.models else frozenset(entry.models),
                rate=Rate.parse(entry.rate) if entry.rate else None,
                concurrent=entry.concurrent,
            ),
            entry.expires.timestamp() if entry.expires else float("inf"),
        )
        for entry in entries
    )


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
