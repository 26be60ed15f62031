"""The file of those who may ask: named API keys by their digests, service accounts by their public keys.

The file is JSON, written by ``medport keys``::

    {"version": 1,
     "keys": [{"name": "pacs-gateway", "sha256": "…", "models": ["medgemma"],
               "actions": ["infer", "read"], "rate": "60/min", "concurrent": 4,
               "expires": "2027-01-01T00:00:00Z"}],
     "service_accounts": [{"name": "ci", "email": "ci@local.iam.gserviceaccount.com", "models": ["*"],
                           "actions": [], "verbs": ["aiplatform.models.upload"],
                           "public_keys": [{"id": "…", "pem": "-----BEGIN PUBLIC KEY-----…"}]}]}

``models`` holds endpoint ids, ``models/ID`` for batch jobs that ask a model itself, or ``"*"`` for all;
``actions`` and ``verbs`` are those of ``serving.verbs``.
Nothing here needs a web framework, so that the commands don't.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
import tempfile
from collections.abc import Iterable
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypedDict, TypeVar, Unpack

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, field_validator

from medport.errors import ConfigError, InputError
from medport_local.serving import accounts
from medport_local.serving.identity import Principal
from medport_local.serving.limits import Rate
from medport_local.serving.verbs import Action, check_known, is_pattern

logger = logging.getLogger(__name__)

ALL_MODELS = "*"
DEFAULT_ACTIONS: tuple[Action, ...] = ("infer", "read")

_PREFIX = "mp_"
_NAME = r"^[a-z0-9][a-z0-9._-]{0,62}$"
_EMAIL = r"^[A-Za-z0-9._-]{1,64}@[A-Za-z0-9.-]{1,190}$"


class Grants(TypedDict, total=False):
    """What a key or service account may do, and how often."""

    models: Iterable[str]
    """Endpoint ids, and ``models/ID``; all if none is named."""
    actions: Iterable[str]
    """``infer`` and ``read`` if neither an action nor a verb is named."""
    verbs: Iterable[str]
    """Single permissions, such as ``aiplatform.endpoints.deploy`` or ``aiplatform.endpoints.*``."""
    rate: str | None
    """Like ``60/min``."""
    concurrent: int | None
    expires: date | None
    """The first day, in UTC, on which it is no longer taken."""


class Entry(BaseModel):
    """Somebody, as the file holds them. What they may do is written out: nothing is allowed by leaving it out."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=_NAME)]
    models: tuple[str, ...]
    actions: tuple[Action, ...]
    verbs: tuple[str, ...] = ()
    rate: str | None = None
    concurrent: Annotated[int, Field(ge=1)] | None = None
    created: AwareDatetime | None = None
    expires: AwareDatetime | None = None

    @field_validator("verbs")
    @classmethod
    def _are_verbs(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(map(is_pattern, value)):
            raise ValueError("a verb is like aiplatform.endpoints.deploy or aiplatform.endpoints.*")
        return value

    @field_validator("rate")
    @classmethod
    def _is_a_rate(cls, value: str | None) -> str | None:
        if value is not None:
            try:
                Rate.parse(value)
            except InputError as error:
                raise ValueError(str(error)) from None
        return value

    @property
    def principal(self) -> Principal:
        return Principal(
            name=self.name,
            actions=frozenset(self.actions),
            verbs=self.verbs,
            models=None if ALL_MODELS in self.models else frozenset(self.models),
            rate=Rate.parse(self.rate) if self.rate else None,
            concurrent=self.concurrent,
        )

    @property
    def expires_s(self) -> float:
        """Seconds since the epoch; infinity if it does not expire."""
        return self.expires.timestamp() if self.expires else float("inf")


class KeyEntry(Entry):
    """An API key."""

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class PublicKey(BaseModel):
    """One of a service account's keys: its tokens name it by ``id``, as ``kid``."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,128}$")]
    pem: str

    @field_validator("pem")
    @classmethod
    def _is_a_key(cls, value: str) -> str:
        try:
            accounts.public_key(value)
        except ConfigError as error:
            raise ValueError(error.message) from None
        return value


class AccountEntry(Entry):
    """A service account."""

    email: Annotated[str, Field(pattern=_EMAIL)]
    public_keys: Annotated[tuple[PublicKey, ...], Field(min_length=1)]


class KeyFile(BaseModel):
    """All of a file."""

    model_config = ConfigDict(extra="forbid")

    version: Literal[1] = 1
    keys: list[KeyEntry] = []
    service_accounts: list[AccountEntry] = []

    @property
    def everybody(self) -> tuple[Entry, ...]:
        return (*self.keys, *self.service_accounts)


def digest_of(key: str) -> bytes:
    """What is kept of a key.

    A plain SHA-256: a slow, salted hash protects passwords, which can be guessed. These keys are 256 random bits.
    """
    return hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()


def load(file: Path) -> KeyFile:
    """What a file holds.

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
        found = KeyFile.model_validate_json(data)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{place}: {first['msg']}", field="keys", remedy="see: medport keys --help") from None
    _check_distinct("name", (each.name for each in found.everybody))
    _check_distinct("sha256", (key.sha256 for key in found.keys))
    _check_distinct("email", (account.email for account in found.service_accounts))
    # A token names its key by this alone.
    _check_distinct(
        "public key's id", (key.id for account in found.service_accounts for key in account.public_keys)
    )
    if any(each.name == "root" for each in found.everybody):
        raise ConfigError("root is the key of --api-key-env", field="keys", remedy="choose another name")
    return found


def add(file: Path, name: str, **grants: Unpack[Grants]) -> str:
    """Make a key and write its digest into ``file``, which is made if there is none.

    Returns:
        the key, which is kept nowhere.

    Raises:
        ConfigError: the name is taken, or something has a wrong form.
    """
    held = _with_free_name(file, name)
    key = _PREFIX + secrets.token_urlsafe(32)
    held.keys.append(_entry(KeyEntry, name, grants, sha256=digest_of(key).hex()))
    _write(file, held)
    return key


def add_account(
    file: Path, name: str, *, email: str, key_id: str, pem: str, **grants: Unpack[Grants]
) -> AccountEntry:
    """Write a service account and its public key into ``file``, which is made if there is none.

    Args:
        email: by which it calls itself in tokens.
        key_id: by which its tokens name the key.
        pem: the public key, or a certificate of it.

    Raises:
        ConfigError: the name, e-mail or key id is taken, or something has a wrong form.
    """
    held = _with_free_name(file, name)
    for other in held.service_accounts:
        if other.email == email:
            raise ConfigError(f"this is the account {other.name}", field="email", remedy=_revoking(other.name))
        if any(key.id == key_id for key in other.public_keys):
            raise ConfigError(f"this is a key of {other.name}", field="key-id", remedy=_revoking(other.name))
    plain = accounts.public_pem(pem)
    public = {"id": key_id, "pem": plain}
    entry = _entry(AccountEntry, name, grants, email=email, public_keys=(public,))
    held.service_accounts.append(entry)
    _write(file, held)
    return entry


def revoke(file: Path, name: str) -> None:
    """Take a key or service account out of the file; a running server follows within a second.

    Raises:
        ConfigError: there is none of that name.
    """
    held = load(file)
    rest = KeyFile(
        keys=[key for key in held.keys if key.name != name],
        service_accounts=[account for account in held.service_accounts if account.name != name],
    )
    if len(rest.everybody) == len(held.everybody):
        raise ConfigError(f"there is no key {name:.63}", field="name", remedy="medport keys list")
    _write(file, rest)


def _with_free_name(file: Path, name: str) -> KeyFile:
    held = load(file) if file.exists() else KeyFile()
    if name == "root":
        raise ConfigError("root is the key of --api-key-env", field="name", remedy="choose another name")
    if any(each.name == name for each in held.everybody):
        raise ConfigError(f"there is a key {name}", field="name", remedy=_revoking(name))
    return held


def _revoking(name: str) -> str:
    return f"medport keys revoke {name}"


_E = TypeVar("_E", bound=Entry)


def _entry(kind: type[_E], name: str, grants: Grants, **more: Any) -> _E:
    verbs, expires = tuple(grants.get("verbs", ())), grants.get("expires")
    check_known(verbs)
    values = {
        "name": name,
        "models": tuple(grants.get("models", ())) or (ALL_MODELS,),
        "actions": tuple(grants.get("actions", ())) or (() if verbs else DEFAULT_ACTIONS),
        "verbs": verbs,
        "rate": grants.get("rate"),
        "concurrent": grants.get("concurrent"),
        "created": datetime.now(UTC).replace(microsecond=0),
        "expires": datetime(expires.year, expires.month, expires.day, tzinfo=UTC) if expires else None,
        **more,
    }
    try:
        return kind.model_validate(values)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False)[0]
        field = str(first["loc"][0])
        raise ConfigError(first["msg"], field=field, remedy="see: medport keys --help") from None


def _check_distinct(what: str, values: Iterable[str]) -> None:
    seen = list(values)
    if len(set(seen)) != len(seen):
        raise ConfigError(f"two keys have the same {what}", field="keys")


def _write(file: Path, held: KeyFile) -> None:
    text = held.model_dump_json(indent=2, exclude_none=True) + "\n"
    try:
        # mkstemp makes it 0600, and beside the file, so that the change is seen whole or not at all.
        handle, fresh = tempfile.mkstemp(dir=file.absolute().parent, prefix=f".{file.name}.")
        with open(handle, "w", encoding="utf-8") as new:
            new.write(text)
        os.replace(fresh, file)
    except OSError as fault:
        said = os.strerror(fault.errno or 0)
        raise ConfigError(f"the file of keys cannot be written ({said})", field="keys") from fault
