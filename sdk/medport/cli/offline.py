"""The steps of ``doctor --offline``: what a site with no network rests on. No step opens a socket."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from medport import _extras
from medport.cli import packages
from medport.cli.checks import Check, Skipped
from medport.config import Resolved
from medport.errors import ConfigError, PolicyError

AUDIT_DIR = "MEDPORT_AUDIT_DIR"
_PROXIES = frozenset({"http_proxy", "https_proxy", "all_proxy", "ftp_proxy"})
# huggingface_hub, "Environment variables": where it asks, and with whose token.
_HUB = frozenset({"HF_ENDPOINT", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_INFERENCE_ENDPOINT"})
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_NO = frozenset({"0", "false", "no", "off"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """Where the parts of the site are, and who may sign bundles for it, as far as they were named."""

    store: Path | None = None
    lock: Path | None = None
    bundle: Path | None = None
    audit: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    ca_file: Path | None = None
    keys: Path | None = None
    key: Path | None = None
    ca: tuple[Path, ...] = ()
    signer: str | None = None

    def named(self) -> list[str]:
        """The names of those that were given."""
        return [name for name in self.__slots__ if getattr(self, name)]


def checks(places: Places, resolved: Resolved, environment: Mapping[str, str] = os.environ) -> list[Check]:
    """All steps, in the order in which they rest on one another."""
    local = _Local(places, resolved, environment)

    def look(method: str) -> Callable[[], str]:
        return lambda: local.look(method)

    return [
        Check("environment", lambda: check_environment(environment), "unset the variable"),
        Check("profile", lambda: check_profile(resolved), "choose a profile of this site with --profile"),
        Check("packages", check_packages, "install the wheels of the bundle again"),
        Check("store", look("check_store"), "medport bundle install, or give --store DIR", ("packages",)),
        Check("snapshots", look("check_snapshots"), "medport bundle install", ("store",)),
        Check("bundle", look("check_bundle"), "medport bundle install", ("packages",)),
        Check("wheels", look("check_wheels"), "install the wheels of the bundle again", ("bundle",)),
        Check("keys", look("check_files"), "renew what has expired", ("packages",)),
        Check("audit", look("check_audit"), "medport audit verify", ("packages",)),
        Check("terraform", look("check_providers"), "medport bundle install", ("packages",)),
        Check("clock", look("check_clock"), "set the clock", ("packages",)),
    ]


def check_environment(environment: Mapping[str, str]) -> str:
    """No variable sends requests elsewhere.

    Raises:
        ConfigError: one does. Names it, not its value.
    """
    for name, value in sorted(environment.items()):
        if value and (name.lower() in _PROXIES or name in _HUB):
            what = "a proxy is set" if name.lower() in _PROXIES else "the hub is not to be asked"
            raise ConfigError(f"{name} is set: {what}", remedy=f"unset {name}")
    for name in _OFFLINE:
        if environment.get(name, "").lower() in _NO:
            raise ConfigError(f"{name} says that the hub may be asked", remedy=f"export {name}=1")
    return "no proxy, no hub"


def check_profile(resolved: Resolved) -> str:
    """No profile of the chain needs the cloud.

    Raises:
        PolicyError: one does. Names it.
    """
    for name, profile in resolved.chain:
        if profile.backend == "vertex":
            raise PolicyError(
                f"profile {name} asks Vertex AI", remedy="take it out of the chain, or choose another"
            )
    return ", ".join(f"{name} ({profile.backend})" for name, profile in resolved.chain)


def check_packages() -> str:
    """Each extra that is installed can be imported.

    Raises:
        ConfigError: one cannot, or the local backend is not installed. Names the module.
    """
    extras = packages.whole_extras()
    if "local" not in extras:
        raise ConfigError(
            "the local backend is not installed", remedy='pip install "medport[local]" of the bundle'
        )
    for extra in extras:
        if fault := packages.import_fault(packages.IMPORTS[extra]):
            raise ConfigError(f"the extra {extra} cannot be imported: {fault}")
    return f"{', '.join(extras)} can be imported"


class _Local:
    """The local backend's part, which is imported when the first step needs it."""

    def __init__(self, places: Places, resolved: Resolved, environment: Mapping[str, str]) -> None:
        self._places, self._resolved, self._environment = places, resolved, environment
        self._premises: Any = None

    def look(self, method: str) -> str:
        offline = _extras.load("medport_local.offline", extra="local")
        if self._premises is None:
            self._premises = offline.Premises(**self._found())
        try:
            return str(getattr(self._premises, method)())
        except offline.Absent as reason:
            raise Skipped(str(reason)) from None

    def _found(self) -> dict[str, Any]:
        """What was given; else what the first profile or the environment says."""
        found: dict[str, Any] = {name: getattr(self._places, name) for name in Places.__slots__}
        _, profile = self._resolved.chain[0]
        for name in ("store", "lock", "ca_file"):
            said = getattr(profile, name)
            found[name] = found[name] or (Path(said) if said else None)
        if found["audit"] is None and (directory := self._environment.get(AUDIT_DIR)):
            found["audit"] = Path(directory)
        return found
