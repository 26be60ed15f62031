"""Settings: where they come from, which are allowed, and the policy that is checked before anything is sent.

Arguments override the environment (``MEDPORT_*``), which overrides ``medport.toml`` in this directory or the
nearest one above, which overrides ``~/.config/medport/config.toml``. Unknown keys are errors.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from medport._call import Family
from medport.errors import ConfigError, PolicyError

FILE_NAME = "medport.toml"
ARGUMENTS = "arguments"
_ENV_KEYS = (
    "backend", "url", "project", "location", "api_key", "ca_file", "timeout_s", "max_attempts", "language",
)  # fmt: skip


_CHAIN_KEYS = ("timeout_s", "max_attempts", "language")
_M = TypeVar("_M", bound=BaseModel)


class _Settings(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)  # as wire.Deferred


class Auth(_Settings):
    """How to authenticate: an API key from the environment, or a Google credentials file."""

    api_key_env: str | None = None
    credentials_file: str | None = None


class Endpoint(_Settings):
    """Which endpoint serves a model: an id, or ``projects/…/locations/…/endpoints/…``."""

    endpoint: str
    dns: str | None = None
    """The dedicated or PSC host, for callers that may predict but not read the endpoint."""


class Profile(_Settings):
    """One place where the models run."""

    backend: Literal["in-process", "local", "vertex"] = "in-process"
    url: str | None = None
    project: str | None = None
    location: str | None = None
    medgemma: Endpoint | None = None
    medsiglip: Endpoint | None = None
    snapshot: dict[Family, Annotated[str | Path, Field(union_mode="left_to_right")]] = {}
    """For the in-process backend: a model directory, or a snapshot of the store such as
    ``google/medgemma-4b-it@COMMIT`` or ``sha256:…``; the phantom models if there is neither it nor a lock."""
    store: Path | None = None
    """Where the in-process backend finds snapshots; ``MEDPORT_STORE``, or the user's data directory."""
    lock: Path | None = None
    """The in-process backend serves what this lock names, and nothing else."""
    device: str | None = None
    """Where the in-process backend computes: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the in-process MedGemma; ``auto`` is bfloat16, and float32 for a small model."""
    reuse_bytes: Annotated[int, Field(ge=0)] = 0
    """Memory in which the in-process backend keeps beginnings of prompts and images, so that the next request that
    has them begins sooner. 0 keeps nothing of a request once it is over."""
    auth: Auth = Field(default_factory=Auth)  # an instance here would build the validator at import
    api_key: SecretStr | None = None
    ca_file: str | None = None
    api_domain: str = "googleapis.com"
    api_endpoint: str | None = None
    """The control plane's base URL, where it does not follow from the location."""
    dns_suffixes: tuple[str, ...] = ("prediction.vertexai.goog",)
    """Hosts under these names may be sent the token; a dedicated DNS outside them is refused."""
    server_name: str | None = None
    """The name in the certificate, where the address is another, as with Private Service Connect."""
    timeout_s: Annotated[float, Field(gt=0, le=86_400)] = 600.0
    """One deadline for a call with all its retries and fall-backs."""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    language: Literal["en", "zh-Hant", "zh-Hans", "de", "fr", "es", "ja"] = "en"
    """Of the preliminary notice."""
    fallback: tuple[str, ...] = ()
    """Other profiles, tried in order; then this profile has no backend of its own."""

    def endpoint(self, family: Family) -> Endpoint | None:
        return self.medgemma if family == "medgemma" else self.medsiglip


class Policy(_Settings):
    """What the site allows. Checked when a client is made."""

    allowed_locations: tuple[str, ...] | None = None
    allow_cloud: bool = True


class _File(_Settings):
    default_profile: str | None = None
    profiles: dict[str, Profile] = {}
    policy: Policy = Field(default_factory=Policy)


@dataclass(frozen=True, slots=True)
class Resolved:
    """The profiles to try, in order, under a policy that allows them all."""

    name: str
    chain: tuple[tuple[str, Profile], ...]
    policy: Policy
    origins: Mapping[str, str] = field(default_factory=dict)
    """``profiles.onprem.url`` → the file or variable that set it. What is not here is a default."""
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def profile(self) -> Profile:
        """The first profile: its timeouts, attempts and language hold for the whole chain."""
        return self.chain[0][1]

    def secret(self, profile: Profile) -> str | None:
        """The API key of ``profile``.

        Raises:
            ConfigError: ``auth.api_key_env`` names a variable that is not set.
        """
        if profile.api_key is not None:
            return profile.api_key.get_secret_value()
        name = profile.auth.api_key_env
        if name is None:
            return None
        if not self.environment.get(name):
            raise ConfigError(
                f"the environment variable {name} is not set", field="auth.api_key_env", remedy=f"export {name}=…"
            )
        return self.environment[name]


def resolve(
    profile: str | None = None,
    arguments: Mapping[str, Any] | None = None,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
) -> Resolved:
    """Read all sources and give the profile chain.

    Args:
        profile: its name; else ``MEDPORT_PROFILE``, ``default_profile``, or in-process with the phantom models.
        arguments: keys of a profile, over all else.

    Raises:
        ConfigError: an unknown key (names the nearest known one), a wrong value, an unknown profile.
        PolicyError: the policy forbids a profile of the chain.
    """
    environment = os.environ if environment is None else environment
    merged, origins = _read_files(environment, directory or _working_directory())
    parsed = _parse(_File, merged, "")
    name = profile or environment.get("MEDPORT_PROFILE") or parsed.default_profile
    if name is not None and name not in parsed.profiles:
        raise _unknown("profile", name, parsed.profiles, where=FILE_NAME)
    raw = dict(merged.get("profiles", {}).get(name, {})) if name else {}
    raw, extra = _overlaid(raw, environment, arguments or {})
    if raw.get("url") and "backend" not in raw:
        raw["backend"], extra["backend"] = "local", "implied by url"
    name = name or str(raw.get("backend", "in-process"))
    origins |= {f"profiles.{name}.{key}": origin for key, origin in extra.items()}
    chosen = _parse(Profile, raw, f"profiles.{name}")
    chain = _chain(name, chosen, parsed.profiles)
    for link, each in chain:
        _check(link, each, parsed.policy)
    return Resolved(name, chain, parsed.policy, origins, dict(environment))


def alone(settings: Mapping[str, Any]) -> Resolved:
    """One profile of arguments, whatever this machine's files and ``MEDPORT_*`` say: for tools that deploy.

    Args:
        settings: keys of a profile, ``backend`` among them.

    Raises:
        ConfigError: an unknown key or a wrong value.
    """
    name = str(settings.get("backend", "in-process"))
    profile = _parse(Profile, dict(settings), f"profiles.{name}")
    policy = Policy()
    _check(name, profile, policy)
    own = {key: value for key, value in os.environ.items() if not key.startswith("MEDPORT_")}
    return Resolved(name, ((name, profile),), policy, environment=own)


def _working_directory() -> Path:
    try:
        return Path.cwd()
    except FileNotFoundError:
        raise ConfigError("the working directory no longer exists", remedy="cd to one that does") from None


def _read_files(environment: Mapping[str, str], directory: Path) -> tuple[dict[str, Any], dict[str, str]]:
    import tomllib  # 16 ms that a program without a file need not pay

    merged: dict[str, Any] = {}
    origins: dict[str, str] = {}
    for path in _files(environment, directory):
        try:
            content = tomllib.loads(path.read_text("utf-8"))
        except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as fault:
            raise ConfigError(f"{path.name} cannot be read: {fault}", remedy="mend the file") from fault
        _parse(_File, content, "")  # so that a fault is found in the file that has it
        _merge(merged, content, str(path), origins, "")
    return merged, origins


def _files(environment: Mapping[str, str], directory: Path) -> list[Path]:
    if given := environment.get("MEDPORT_CONFIG"):
        if not Path(given).is_file():
            raise ConfigError(f"{given} does not exist", field="MEDPORT_CONFIG", remedy="name a TOML file")
        return [Path(given)]
    home = environment.get("XDG_CONFIG_HOME") or (
        str(Path(environment["HOME"]) / ".config") if environment.get("HOME") else None
    )
    user = [Path(home) / "medport" / "config.toml"] if home else []
    nearest = [p for d in (directory, *directory.parents) if (p := d / FILE_NAME).is_file()][:1]
    return [path for path in [*user, *nearest] if path.is_file()]


def _merge(into: dict[str, Any], new: Mapping[str, Any], origin: str, origins: dict[str, str], at: str) -> None:
    for key, value in new.items():
        place = f"{at}.{key}" if at else key
        if isinstance(value, Mapping):
            _merge(into.setdefault(key, {}), value, origin, origins, place)
        else:
            into[key] = value
            origins[place] = origin


def _overlaid(
    raw: dict[str, Any], environment: Mapping[str, str], arguments: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, str]]:
    origins = {}
    for key in _ENV_KEYS:
        variable = f"MEDPORT_{key.upper()}"
        if value := environment.get(variable):
            raw[key], origins[key] = value, variable
    for key, value in arguments.items():
        if value is not None:
            raw[key], origins[key] = value, ARGUMENTS
    for family in ("medgemma", "medsiglip"):
        if isinstance(raw.get(family), str):
            raw[family] = {"endpoint": raw[family]}
    return raw, origins


def _parse(model: type[_M], values: Mapping[str, Any], at: str) -> _M:
    try:
        return model.model_validate(values)
    except ValidationError as fault:
        first = fault.errors(include_url=False, include_input=False, include_context=False)[0]
        steps = [str(step) for step in first["loc"]]
        place = ".".join([at, *steps] if at else steps)
        if first["type"] == "extra_forbidden":
            known = _known_keys(model, first["loc"][:-1])
            raise _unknown("key", steps[-1], known, where=place) from None
        raise ConfigError(
            first["msg"][:1].lower() + first["msg"][1:], field=place, remedy="see README, Profiles"
        ) from None


def _known_keys(model: type[BaseModel], path: Sequence[int | str]) -> list[str]:
    for step in path:
        info = model.model_fields.get(str(step))
        inner = _models_in(info.annotation) if info else []
        if inner:
            model = inner[0]
    return list(model.model_fields)


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [m for part in getattr(annotation, "__args__", ()) for m in _models_in(part)]


def _unknown(what: str, name: str, known: Mapping[str, Any] | Sequence[str], *, where: str) -> ConfigError:
    near = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    remedy = f"did you mean {near[0]}?" if near else f"known: {', '.join(sorted(known)) or 'none'}"
    return ConfigError(f"unknown {what} {name!r}", field=where, remedy=remedy)


def _chain(name: str, profile: Profile, profiles: Mapping[str, Profile]) -> tuple[tuple[str, Profile], ...]:
    if not profile.fallback:
        return ((name, profile),)
    own = profile.model_fields_set - {"fallback", *_CHAIN_KEYS}
    if own:
        raise ConfigError(
            f"a fall-back chain has no {sorted(own)[0]} of its own",
            field=f"profiles.{name}.{sorted(own)[0]}",
            remedy="set it in the profiles of the chain",
        )
    links = []
    for other in profile.fallback:
        if other not in profiles:
            raise _unknown("profile", other, profiles, where=f"profiles.{name}.fallback")
        if profiles[other].fallback:
            raise ConfigError(f"profile {other!r} is a fall-back chain itself", field=f"profiles.{name}.fallback")
        links.append((other, profiles[other]))
    # The chain's own deadline, attempts and language hold for all its links.
    common = {key: getattr(profile, key) for key in _CHAIN_KEYS}
    return tuple((link, each.model_copy(update=common)) for link, each in links)


def _check(name: str, profile: Profile, policy: Policy) -> None:
    if profile.backend == "local" and not profile.url:
        raise ConfigError(
            "a local backend needs its url", field=f"profiles.{name}.url", remedy='url = "https://…"'
        )
    if profile.url and profile.backend != "local":
        raise ConfigError(
            f"the {profile.backend} backend has no url", field=f"profiles.{name}.url", remedy='backend = "local"'
        )
    if profile.url and not re.match(r"https?://[^/\s]+", profile.url):
        raise ConfigError(
            "the url must begin with https:// or http://", field=f"profiles.{name}.url", remedy='url = "https://…"'
        )
    if profile.url and "@" in profile.url.split("/")[2]:
        raise ConfigError(
            "a url must not hold a user name or password",
            field=f"profiles.{name}.url",
            remedy="take it out, and set auth.api_key_env",
        )
    for key in ("snapshot", "store", "lock", "device", "dtype", "reuse_bytes"):
        if key in profile.model_fields_set and profile.backend != "in-process":
            raise ConfigError(
                f"is for the in-process backend, and this one is {profile.backend}",
                field=f"profiles.{name}.{key}",
                remedy="leave it out; a server is told when it is started",
            )
    if profile.backend == "vertex":
        _check_vertex(name, profile, policy)


def _check_vertex(name: str, profile: Profile, policy: Policy) -> None:
    if not policy.allow_cloud:
        raise PolicyError(
            f"profile {name!r} is in the cloud and the policy does not allow it",
            field="policy.allow_cloud",
            remedy="choose a local profile",
        )
    for family in ("medgemma", "medsiglip"):
        endpoint = profile.endpoint(family)
        location = location_of(endpoint.endpoint) if endpoint else None
        check_location(name, location or profile.location, policy)
        if endpoint and location is None and not (profile.project and profile.location):
            raise ConfigError(
                "an endpoint given by its id alone needs project and location",
                field=f"profiles.{name}.project",
                remedy="set them, or give projects/…/locations/…/endpoints/…",
            )
    if profile.medgemma is None and profile.medsiglip is None:
        raise ConfigError("no endpoint is given", field=f"profiles.{name}.medgemma", remedy='{ endpoint = "…" }')


def check_location(name: str, location: str | None, policy: Policy) -> None:
    """Refuse a location that the policy does not list.

    Raises:
        PolicyError: it is not listed, or not known.
    """
    allowed = policy.allowed_locations
    if allowed is not None and location not in allowed:
        raise PolicyError(
            f"profile {name!r} is in {location or 'an unknown location'}; allowed: {', '.join(allowed)}",
            field="policy.allowed_locations",
            remedy="choose a profile in an allowed location",
        )


def location_of(resource: str) -> str | None:
    """The location in ``projects/P/locations/L/…``; ``None`` if it is an id alone."""
    match = re.match(r"projects/[^/]+/locations/([^/]+)/", resource)
    return match.group(1) if match else None


def masked(resolved: Resolved) -> list[tuple[str, str, str]]:
    """(key, value, origin) of every setting of the chain, secrets masked, for ``medport config show``."""
    rows = []
    for name, profile in resolved.chain:
        for key in Profile.model_fields:
            value = getattr(profile, key)
            shown = "********" if key == "api_key" and value is not None else _shown(value)
            prefix = f"profiles.{name}.{key}"
            origin = next(
                (o for k, o in resolved.origins.items() if k == prefix or k.startswith(prefix + ".")), ""
            )
            rows.append((prefix, shown, origin or "default"))
    for key in Policy.model_fields:
        rows.append(
            (
                f"policy.{key}",
                _shown(getattr(resolved.policy, key)),
                resolved.origins.get(f"policy.{key}", "default"),
            )
        )
    return rows


def _shown(value: object) -> str:
    if isinstance(value, BaseModel):
        return ", ".join(f"{k}={v}" for k, v in value.model_dump().items() if v is not None) or "-"
    if (isinstance(value, Mapping | tuple) and not value) or value is None:
        return "-"
    return re.sub(r"//[^/@]*@", "//********@", str(value))  # a password may stand in a URL
