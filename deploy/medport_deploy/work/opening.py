"""A deployment as a command finds it: its files, and what they lead to, opened when it is asked for.

    with work.opened("medport.yaml") as deployment:
        lock = deployment.locked()
        deployment.control.get_endpoint(deployment.spec.endpoint_id("medgemma"))

Nothing here changes anything at the target.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import cached_property
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from medport import _extras
from medport import lock as locks
from medport.errors import ConfigError, PreconditionFailed
from medport.lock import Lock
from medport_deploy import state_files
from medport_deploy.control import credentials as control_credentials
from medport_deploy.control.plane import ControlPlane
from medport_deploy.lock import check as lock_check
from medport_deploy.lock import file as lock_files
from medport_deploy.lock.terraform import LOCK_FILE
from medport_deploy.plan import making as plan
from medport_deploy.plan.file import PLAN_NAME
from medport_deploy.run import apply, journal
from medport_deploy.run.interrupts import Interrupts
from medport_deploy.run.journal import Damaged, Header, Journal
from medport_deploy.run.steps import Event
from medport_deploy.spec import reading as specs
from medport_deploy.spec import yaml as spec_yaml
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform.events import Event as TerraformEvent

if TYPE_CHECKING:
    from medport_deploy.past.history import Entry
    from medport_deploy.terraform.root import Terraform

STATE_WAIT = "60s"
"""How long another run may hold Terraform's state before ours gives up."""


@dataclass(frozen=True, slots=True)
class Telling:
    """Who is told what goes on, and who may stop it."""

    on_event: Callable[[Event], None] = lambda event: None
    on_terraform: Callable[[TerraformEvent], None] = lambda event: None
    note: Callable[[str], None] = lambda line: None
    """A line for people."""
    interrupts: Interrupts = field(default_factory=Interrupts)


@dataclass(eq=False)
class Deployment:
    """A specification with its lock, state and target. Made by ``opened``."""

    spec_file: Path
    spec_bytes: bytes
    spec: Spec
    """Its paths begin at this process's directory, wherever the file is."""
    lock_file: Path
    telling: Telling = field(default_factory=Telling)
    given_lock: Lock | None = None
    """Instead of that in ``lock_file``."""
    loading: threading.Thread | None = None
    """Loads Google's client meanwhile."""
    damage: dict[str, Path] = field(default_factory=dict)
    """What was passed over, in words, and in which journal."""
    _on_damage: Callable[[Damaged], None] | None = None

    @property
    def root(self) -> Path:
        """Where the specification is, and where its paths begin."""
        return self.spec_file.parent

    @property
    def directory(self) -> Path:
        """Of journals, history and saved plans. Raises ``ConfigError`` if a file lies in its place."""
        found = apply.directory_of(self.root, self.spec.name)
        for place in (*reversed(found.parents[:2]), found):
            if place.is_file():
                raise ConfigError(
                    f"{place} is a file, and what is done is kept in a directory of this name",
                    field="spec",
                    remedy="move that file away",
                )
        return found

    @property
    def plan_file(self) -> Path:
        """Where a plan is saved unless told otherwise."""
        return self.directory / PLAN_NAME

    def private_directory(self) -> Path:
        """``directory``, made if it is not there. Raises ``ConfigError`` if it cannot be."""
        try:
            state_files.make_directory(self.directory)
        except OSError as fault:
            raise ConfigError(
                f"{self.directory} cannot be written ({os.strerror(fault.errno or 0)})",
                field="spec",
                remedy="put the specification where you may write",
            ) from fault
        return self.directory

    def lock_if_any(self) -> Lock | None:
        """The lock, whatever it says. Raises as ``lock.file.read``."""
        if self.given_lock is not None:
            return self.given_lock
        return lock_files.read(self.lock_file) if self.lock_file.exists() else None

    def locked(self) -> Lock:
        """The lock, once it is seen to pin all of this specification.

        Raises:
            ConfigError: there is none.
            VerificationError: see ``lock.check.require_pinned``.
        """
        lock = self.lock_if_any()
        if lock is None:
            raise ConfigError(f"{self.lock_file} is not there", field="lock", remedy="medport deploy lock")
        lock_check.require_pinned(lock, self.spec, directory=self.root)
        return lock

    @cached_property
    def credentials(self) -> Any:
        """Of google-auth, as ``target.auth`` says."""
        if self.loading is not None:
            # Two threads in one package could see it half loaded.
            self.loading.join()
        return control_credentials.of(self.spec.target.auth)

    @cached_property
    def control(self) -> ControlPlane:
        """The target's control plane."""
        target = self.spec.target
        return ControlPlane(
            target,
            self.credentials,
            renew=control_credentials.renewal(target.auth),
            direct=target.kind == "local",  # as medport.Client and trials go there: its traffic stays inside
        )

    @cached_property
    def terraform(self) -> Terraform | None:
        """The root that the specification names, before ``init``; ``None`` if it names none.

        Raises ``ConfigError`` if it is not there.
        """
        if self.spec.terraform.root is None:
            return None
        from medport_deploy.terraform.root import Terraform
        from medport_deploy.terraform.variables import root_variables

        directory = self.root / self.spec.terraform.root
        if not directory.is_dir():
            raise ConfigError(
                f"there is no directory {self.spec.terraform.root}",
                field="terraform.root",
                remedy="name the root's directory, from that of the specification",
            )
        return Terraform(
            directory,
            environment=terraform_environment(self.spec),
            variables=root_variables(self.spec),
            on_event=self.telling.on_terraform,
            lock_timeout=STATE_WAIT,
        )

    def terraform_ready(self) -> Terraform | None:
        """The same once its providers and modules are there and its back end is connected."""
        made = self.terraform
        if made is not None:
            # A local server's authority signs no registry, so it is not trusted for fetching providers.
            fetching = replace(made, environment={})
            fetching.init(readonly_lock=(made.directory / LOCK_FILE).exists())
        return made

    def journals(self) -> list[Journal]:
        """Of all runs, the oldest first."""
        return journal.all_of(self.directory, on_damage=self._on_damage) if self.directory.exists() else []

    def pass_over_damage(self) -> None:
        """From now on tell of damage in a journal and pass over it: for what looks at the target itself."""
        self._on_damage = self._damaged

    def _damaged(self, damage: Damaged) -> None:
        if damage.message not in self.damage:
            self.damage[damage.message] = damage.path
            self.telling.note(f"{damage.message}: what is named there alone has to be looked for by hand")

    def open_run(self) -> Journal | None:
        """The run that has begun to change the deployment and has not come to its end; the latest if several."""
        found = [each for each in self.journals() if each.open and each.header.verb not in apply.TIDIES]
        return found[-1] if found else None

    def header(self, verb: str, lock_id: str = "", plan_sha256: str = "") -> Header:
        """Of a run that begins now."""
        return Header(verb, self.spec.name, lock_id, plan_sha256, plan.target_of(self.spec), version())

    def history(self) -> list[Entry]:
        """What runs came to, the oldest first."""
        from medport_deploy.past import history

        return list(history.read(self.directory)) if self.directory.exists() else []

    def retained(self, now: datetime | None = None) -> Mapping[str, str]:
        """Old fleets that are kept: deployed model's id → time in ISO 8601 until which."""
        from medport_deploy.past import history

        return history.retained(self.history(), now or datetime.now(UTC))

    def at_lock(self, spec_bytes: bytes, lock: Lock) -> Deployment:
        """The same deployment as another specification and lock would have it, at this one's address.

        Raises:
            PreconditionFailed: that specification is of another project or location.
        """
        spec, target = specs.parse(spec_bytes, name=self.spec_file.name), self.spec.target
        # Address, authority and credential may have moved since; where the resources are may not.
        if (spec.target.kind, spec.target.project, spec.target.location) != (
            target.kind,
            target.project,
            target.location,
        ):
            raise PreconditionFailed(
                f"lock {lock.lock_id[:12]} is for {plan.target_of(spec)}, and not {plan.target_of(self.spec)}",
                field="target",
                remedy="give the specification of that target: -f FILE",
            )
        spec = spec.model_copy(update={"target": target})
        other = Deployment(self.spec_file, spec_bytes, spec, self.lock_file, self.telling, lock)
        other.credentials, other.control = self.credentials, self.control
        return other

    def close(self) -> None:
        """Close the connections."""
        if "control" in self.__dict__:
            self.control.close()


@contextmanager
def opened(
    spec_file: str | os.PathLike[str],
    lock_file: str | os.PathLike[str] | None = None,
    *,
    telling: Telling | None = None,
    will_call: bool = True,
) -> Iterator[Deployment]:
    """A deployment, by the file of its specification.

    Args:
        lock_file: ``medport.lock`` beside the specification if none.
        will_call: the control plane will be asked, so that its client is loaded while files are read.

    Raises:
        ConfigError: the specification cannot be read or is wrong.
        PolicyError: its own policy forbids it; or others may write in its state.
    """
    path = Path(spec_file)
    data = _read(path)
    spec = specs.rooted(specs.parse(data, name=path.name), path.parent)
    lock = Path(lock_file) if lock_file is not None else path.parent / locks.FILE_NAME
    deployment = Deployment(path, data, spec, lock, telling or Telling())
    state_files.require_private(deployment.directory, deployment.root)
    pace = gc.get_threshold()
    if will_call:
        # Much is imported and few cycles are made: to look for garbage at the usual pace costs 0.3 s.
        gc.set_threshold(100_000, *pace[1:])
        deployment.loading = threading.Thread(target=_load_client, name="medport-client", daemon=True)
        deployment.loading.start()
    try:
        yield deployment
    finally:
        deployment.close()
        gc.set_threshold(*pace)


def version() -> str:
    """Of this medport."""
    return metadata.version("medport")


def terraform_environment(spec: Spec) -> dict[str, str]:
    """What tells Terraform's provider where the target is and who calls; nothing of it is in a plan or a state."""
    target = spec.target
    if target.kind == "local":
        assert target.url is not None
        found = {"GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT": f"{target.url.rstrip('/')}/v1/"}
        direct = os.environ.get("NO_PROXY") or os.environ.get("no_proxy")
        found["NO_PROXY"] = ",".join(filter(None, (direct, urlsplit(target.url).hostname)))
        if target.auth.api_key_env:
            found["GOOGLE_OAUTH_ACCESS_TOKEN"] = control_credentials.from_variable(target.auth.api_key_env)()
        if target.ca_file:
            found["SSL_CERT_FILE"] = str(Path(target.ca_file).absolute())
        return found
    if target.auth.credentials_file:
        return {"GOOGLE_APPLICATION_CREDENTIALS": str(Path(target.auth.credentials_file).absolute())}
    return {}


def _load_client() -> None:
    # A second of imports. Whoever needs what is missing says so.
    with _extras.importing(), suppress(Exception):
        _extras.load("google.cloud.aiplatform_v1", extra="deploy")


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(spec_yaml.MAX_BYTES + 1)
    except OSError as fault:
        raise ConfigError(
            f"{path} cannot be read ({os.strerror(fault.errno or 0)})",
            field="spec",
            remedy="give its place: -f FILE; or make one: medport deploy init",
        ) from fault
