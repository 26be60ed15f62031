"""``medport doctor --deploy``: whether a specification can be deployed from here, in steps. Nothing is changed.

    preflight = Preflight(Path("medport.yaml"))
    for outcome in checks.run(preflight.checks()): ...
    preflight.close()

Each step raises what is wrong with a remedy, or says why it does not apply, as most do to a local target.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import httpx

from medport import lock as locks
from medport.cli.checks import Check, Skipped
from medport.errors import ConfigError, NotFound, PreconditionFailed
from medport.lock import Lock
from medport_deploy.control import credentials as control_credentials
from medport_deploy.first_run import preflight_files, preflight_local
from medport_deploy.first_run.preflight_cloud import Cloud
from medport_deploy.first_run.preflight_google import Google
from medport_deploy.lock import check as lock_check
from medport_deploy.lock import file as lock_file
from medport_deploy.lock import registry_auth
from medport_deploy.lock.registry import Registry
from medport_deploy.lock.registry_auth import Credentials
from medport_deploy.plan.quota import Limits, ServiceUsage
from medport_deploy.run import apply
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec

MAX_SKEW_S = 60.0
"""Google refuses signed requests for a token, and TLS new certificates, when the clock is some minutes off."""
_LOCAL = "a local target has none"
_PAGE = 1000
_REVISION_LABEL = "medport-revision"
"""Under which a local server's catalogue says the commit of the snapshot that it has."""


class Preflight:
    """The checks of one specification, and what each has found out for those that follow.

    Args:
        spec_file: ``medport.yaml``.
        lock_file: ``medport.lock`` beside it if none.
        transport: of httpx, for the control plane, Google's other APIs and registries.
        credentials: makes google-auth's credentials from ``target.auth``.
        limits: where quotas are read; the Service Usage API if none.
        registry_credentials: gives user and password for registries; the environment's if none.
        now: seconds since the epoch.
    """

    def __init__(
        self,
        spec_file: Path,
        lock_file: Path | None = None,
        *,
        transport: httpx.BaseTransport | None = None,
        credentials: Callable[[control_credentials.Auth], Any] = control_credentials.of,
        limits: Limits | None = None,
        registry_credentials: Credentials | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._spec_file = spec_file
        self._lock_file = lock_file or spec_file.parent / locks.FILE_NAME
        self._lock_named = lock_file is not None
        self._transport = transport
        self._credentials = credentials
        self._limits = limits
        self._registry_credentials = registry_credentials
        self._now = now
        self._lock: Lock | None = None
        self._date: str | None = None
        self._answers = False
        self._open: list[Any] = []

    def checks(self) -> list[Check]:
        """All checks, in the order in which a deployment meets them."""
        online = ("specification", "credential", "reach")
        cloud = [
            Check("APIs", self._in_cloud("services"), "gcloud services enable", online),
            Check("control plane", self._control_plane, "check project, location and credential", online),
            Check("permissions", self._permissions, "ask for the role", online),
            Check("quotas", self._in_cloud("quotas"), "ask for more quota", online),
            Check("machines", self._in_cloud("machines"), "take another machine type or location", online),
            Check("images", self._in_cloud("images", "runs no container"), "push the image first", online),
            Check("image reader", self._in_cloud("readers", "runs no container"), "grant the role", online),
            Check("key", self._in_cloud("key"), "see keys.kms_key_name", online),
            Check("snapshots", self._snapshots, "medport snapshot pull on the server", ("lock", "control plane")),
        ]
        return [
            Check("specification", self._specification, "medport deploy init"),
            Check("lock", self._locked, "medport deploy lock", ("specification",)),
            Check("state", self._state, "see the directory .medport", ("specification",)),
            Check("terraform", self._terraform, "install terraform 1.11 or later", ("specification",)),
            Check("credential", self._credential, "gcloud auth application-default login", ("specification",)),
            Check("reach", self._reach, "check the address and the firewall", ("specification",)),
            Check("clock", self._clock, "set this machine's clock right, best by NTP", ("reach",)),
            *cloud,
        ]

    def close(self) -> None:
        """Close the connections."""
        for each in self._open:
            each.close()
        self._open.clear()

    @cached_property
    def _spec(self) -> Spec:
        return specs.rooted(specs.load(self._spec_file), self._spec_file.parent)

    @cached_property
    def _google(self) -> Google:
        target = self._spec.target
        found = Google(
            lambda: self._credentials(target.auth),
            target.project,
            transport=self._transport,
            verify=_trusted(target.ca_file, public=target.kind == "vertex"),
            direct=target.kind == "local",
        )
        self._open.append(found)
        return found

    @cached_property
    def _cloud(self) -> Cloud:
        limits = self._limits
        if limits is None:
            usage = ServiceUsage(self._spec.target.project, self._google.renewed())
            self._open.append(usage)
            limits = usage
        return Cloud(self._spec, self._lock, self._google, limits=limits, registry=self._registry)

    def _registry(self) -> Registry:
        return Registry(
            transport=self._transport,
            credentials=self._registry_credentials or registry_auth.from_environment(),
            plain=self._spec.policy.allow_plain_images,
        )

    @property
    def _base_url(self) -> str:
        target = self._spec.target
        return target.url or f"https://{target.location}-aiplatform.googleapis.com"

    @property
    def _place(self) -> str:
        return f"projects/{self._spec.target.project}/locations/{self._spec.target.location}"

    def _in_cloud(self, check: str, why: str = "") -> Callable[[], str]:
        def run() -> str:
            if self._spec.target.kind == "local":
                raise Skipped(f"a local target {why}" if why else _LOCAL)
            return str(getattr(self._cloud, check)())

        return run

    def _permissions(self) -> str:
        if self._spec.target.kind == "vertex":
            return self._cloud.permissions()
        if not self._answers:
            raise Skipped("needs: control plane")
        spec = self._spec
        return preflight_local.permissions(
            self._google, f"{self._base_url}/v1/{self._place}", [spec.endpoint_id(name) for name in spec.models]
        )

    def _specification(self) -> str:
        spec = self._spec
        target = spec.target
        return f"{spec.name}: {', '.join(spec.models)} to {target.kind}, {target.project}, {target.location}"

    def _locked(self) -> str:
        if not self._lock_file.exists():
            if not self._lock_named:
                # The first look around comes before the first lock.
                raise Skipped("none yet: medport deploy lock")
            raise NotFound(f"there is no {self._lock_file}", field="lock", remedy="medport deploy lock")
        lock = lock_file.read(self._lock_file)
        self._lock = lock
        lock_check.require_pinned(lock, self._spec, directory=self._spec_file.parent)
        return f"{lock.lock_id[:12]}… pins all"

    def _state(self) -> str:
        return preflight_files.state(apply.directory_of(self._spec_file.parent, self._spec.name))

    def _terraform(self) -> str:
        return preflight_files.terraform(self._spec, self._spec_file.parent)

    def _credential(self) -> str:
        if name := self._spec.target.auth.api_key_env:
            self._google.renewed()
            return f"the API key in {name}"
        found = self._google.renewed()
        who = getattr(found, "service_account_email", None) or getattr(found, "account", None) or "a user"
        until = found.expiry
        return f"{who}, token good until {until:%H:%M} UTC" if until else str(who)

    def _reach(self) -> str:
        self._date = self._google.date(f"{self._base_url}/")
        return f"{httpx.URL(self._base_url).host} answers"

    def _clock(self) -> str:
        try:
            theirs = parsedate_to_datetime(self._date or "").timestamp()
        except ValueError:
            raise Skipped("the server does not tell its time") from None
        skew_s = self._now() - theirs
        if abs(skew_s) > MAX_SKEW_S:
            off = f"{abs(skew_s):.0f} s {'ahead of' if skew_s > 0 else 'behind'}"
            raise PreconditionFailed(
                f"this machine's clock is {off} the server's: tokens and signatures are refused",
                field="clock",
                remedy="set this machine's clock right, best by NTP",
            )
        return f"within {max(1.0, abs(skew_s)):.0f} s of the server's"

    def _control_plane(self) -> str:
        self._google.get(f"{self._base_url}/v1/{self._place}/endpoints", doing="list endpoints", pageSize=1)
        self._answers = True
        return f"{self._place} answers"

    def _snapshots(self) -> str:
        if self._spec.target.kind != "local":
            raise Skipped("in the cloud the container fetches what the lock names")
        said = self._google.get(
            f"{self._base_url}/v1beta1/publishers/*/models", doing="ask for the server's snapshots", pageSize=_PAGE
        )
        have = _available(said)
        if self._lock is None:
            raise Skipped("there is no lock yet that says which")
        for name, locked in self._lock.models.items():
            wanted = {(locked.model_id.casefold(), each) for each in (locked.revision, locked.snapshot_sha256)}
            if not wanted & have:
                others = sorted(revision for id_, revision in have if id_ == locked.model_id.casefold())
                raise NotFound(
                    f"the server has no snapshot of {locked.model_id} at {str(locked.revision)[:12]}…"
                    + (f", but {', '.join(each[:12] + '…' for each in others)}" if others else ""),
                    field=f"models.{name}",
                    remedy=f"on the server: medport snapshot pull {locked.model_id}@{locked.revision}",
                )
        return f"the server has {', '.join(each.model_id for each in self._lock.models.values())} as locked"


def _available(said: dict[str, Any]) -> set[tuple[str, str]]:
    """Model ids, in small letters, and commits of the snapshots in a local server's catalogue."""
    found: set[tuple[str, str]] = set()
    for model in said.get("publisherModels", []):
        for option in model.get("supportedActions", {}).get("multiDeployVertex", {}).get("multiDeployVertex", []):
            revision = option.get("deployMetadata", {}).get("labels", {}).get(_REVISION_LABEL)
            env = {each.get("name"): each.get("value") for each in option.get("containerSpec", {}).get("env", [])}
            if revision and env.get("MODEL_ID"):
                found.add((str(env["MODEL_ID"]).casefold(), str(revision)))
    return found


def _trusted(ca_file: str | None, *, public: bool) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
        if public:  # Google's other APIs need not be behind the file's authority
            context.load_default_certs()
        return context
    except OSError as fault:  # ssl.SSLError is one
        raise ConfigError(
            f"{Path(ca_file or '').name} is no file of certificates ({type(fault).__name__})",
            field="target.ca_file",
            remedy="give the PEM file that signed the control plane's certificate",
        ) from fault
