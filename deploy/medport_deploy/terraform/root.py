"""terraform's verbs over one root configuration.

python-terraform spells the options (``generate_cmd_string``) and does nothing else here: its process handling
loses state when we die, leaves files with secrets behind and cannot be stopped. Only saved plans are applied;
destroying is applying a plan to destroy.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from medport import _extras
from medport.errors import ConfigError, ProtocolError
from medport_deploy.terraform import binary as terraform_binary
from medport_deploy.terraform.errors import Interrupted, TerraformError, error_of
from medport_deploy.terraform.events import Diagnostic, Drifted, Event, Planned, Summary, diagnostic, event_of
from medport_deploy.terraform.process import Ended, private_directory, run

_DROPPED = ("TF_CLI_ARGS", "TF_LOG", "TF_VAR_", "TF_WORKSPACE", "TF_INPUT", "TF_DATA_DIR")
"""Of our own environment: they would change what a run does, or write what it holds into a log."""


@dataclass(frozen=True, slots=True)
class PlanOutcome:
    """What a plan found."""

    file: Path
    """The saved plan. It holds the state and the values of all variables: mode 0600, nothing for an archive."""
    changes: bool
    planned: tuple[Planned, ...]
    drifted: tuple[Drifted, ...]
    summary: Summary
    warnings: tuple[Diagnostic, ...]


@dataclass(slots=True, eq=False)
class Terraform:
    """One root configuration. Each verb is a process of its own.

    All verbs raise ``TerraformError`` with terraform's own words, ``StateLocked`` if another run holds the state,
    ``Interrupted`` if they were stopped, ``ConfigError`` if there is no terraform.
    """

    directory: Path
    """The root configuration."""
    data_directory: Path | None = None
    """Where terraform keeps providers and modules; ``.terraform`` in the root if it is not given."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """On top of our own, such as ``GOOGLE_OAUTH_ACCESS_TOKEN``."""
    variables: Mapping[str, Any] = field(default_factory=dict)
    """For plan; they go through a file that only this user can read, and that is gone after the run."""
    secrets: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Values of ephemeral variables. They reach terraform through its environment and touch no disk; a plan does
    not hold them, so apply is given them again."""
    binary: str | None = None
    on_event: Callable[[Event], None] = lambda event: None
    cancel: threading.Event = field(default_factory=threading.Event)
    lock_timeout: str = "60s"
    """How long to wait for another run to give the state back."""
    patience_s: float = 600.0
    """How long a run that is asked to stop may take to finish the calls under way."""

    def version(self) -> str:
        """Of terraform, such as ``1.11.4``."""
        return ".".join(map(str, terraform_binary.version(terraform_binary.find(self.binary))))

    def init(self, *, backend: Mapping[str, str] | None = None, readonly_lock: bool = True) -> None:
        """Fetch providers and modules, and connect the back end.

        Args:
            backend: settings that the configuration leaves open.
            readonly_lock: take only the providers whose hashes ``.terraform.lock.hcl`` holds.
        """
        options: dict[str, Any] = {"backend_config": dict(backend)} if backend else {}
        if readonly_lock:
            options["lockfile"] = "readonly"
        self._run("init", streaming=True, **options)

    def validate(self) -> tuple[Diagnostic, ...]:
        """What is wrong with the configuration; empty if nothing is."""
        said = self._json(self._run("validate", "-json", codes=(0, 1)), "validate")
        found = [diagnostic(each.get("severity", "error"), each) for each in said.get("diagnostics", [])]
        return tuple(found)

    def plan(self, file: Path, *, destroy: bool = False, deadline_s: float | None = None) -> PlanOutcome:
        """What would change, saved for ``apply``.

        Args:
            file: where to save it; is overwritten, mode 0600.
            destroy: plan to remove everything.
        """
        _made_private(file)
        try:
            ran = self._run(
                "plan",
                *(("-destroy",) if destroy else ()),
                "-detailed-exitcode",
                streaming=True,
                variables=True,
                codes=(0, 2),
                deadline_s=deadline_s,
                out=str(file.absolute()),
                lock_timeout=self.lock_timeout,
            )
        except BaseException:
            file.unlink(missing_ok=True)
            raise
        return _outcome(file, ran)

    def apply(self, plan: PlanOutcome, *, deadline_s: float | None = None) -> Summary:
        """Do what a saved plan says; the plan is deleted then.

        Stopped or failed, what was done is in the state: plan again to go on.
        """
        try:
            done = self._run(
                "apply",
                str(plan.file.absolute()),
                streaming=True,
                deadline_s=deadline_s,
                lock_timeout=self.lock_timeout,
            )
        finally:
            plan.file.unlink(missing_ok=True)
        return _summary(done.events, "apply")

    def show(self, plan: PlanOutcome) -> dict[str, Any]:
        """A saved plan as JSON. It holds sensitive values in clear."""
        return self._json(self._run("show", "-json", str(plan.file.absolute())), "show")

    def output(self) -> dict[str, Any]:
        """The values of all outputs, sensitive ones included."""
        said = self._json(self._run("output", "-json"), "output")
        return {name: each["value"] for name, each in said.items()}

    def drift(self, *, deadline_s: float | None = None) -> tuple[Drifted, ...]:
        """Which resources are no longer as terraform left them. Changes nothing, the state included."""
        ran = self._run(
            "plan",
            "-refresh-only",
            "-detailed-exitcode",
            streaming=True,
            variables=True,
            codes=(0, 2),
            deadline_s=deadline_s,
            lock_timeout=self.lock_timeout,
        )
        return tuple(event for event in ran.events if isinstance(event, Drifted))

    def _run(
        self,
        verb: str,
        *arguments: str,
        streaming: bool = False,
        variables: bool = False,
        codes: tuple[int, ...] = (0,),
        deadline_s: float | None = None,
        **options: Any,
    ) -> _Ran:
        binary = terraform_binary.find(self.binary)
        terraform_binary.version(binary)
        events: list[Event] = []

        def told(line: str) -> None:
            if streaming and (event := event_of(line)) is not None:
                events.append(event)
                self.on_event(event)

        with private_directory() as scratch:
            if streaming:
                arguments = ("-json", *arguments)
            if verb in ("init", "plan", "apply"):
                options["input"] = False
            if variables and self.variables:
                options["var_file"] = str(_variable_file(scratch, self.variables))
            ended = run(
                _spelled(binary, scratch, verb, arguments, options),
                directory=self.directory,
                environment=self._environment(verb),
                scratch=scratch,
                on_line=told,
                cancel=self.cancel,
                deadline=None if deadline_s is None else time.monotonic() + deadline_s,
                patience_s=self.patience_s,
            )
        self._check(verb, ended, events, codes)
        return _Ran(ended, tuple(events))

    def _environment(self, verb: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_DROPPED)}
        own = {"TF_IN_AUTOMATION": "1", "TF_INPUT": "0", "CHECKPOINT_DISABLE": "1"}
        if self.data_directory is not None:
            own["TF_DATA_DIR"] = str(self.data_directory.absolute())
        if verb in ("plan", "apply"):
            own |= {f"TF_VAR_{name}": value for name, value in self.secrets.items()}
        return {**kept, **own, **self.environment}

    def _check(self, verb: str, ended: Ended, events: list[Event], codes: tuple[int, ...]) -> None:
        found = [event for event in events if isinstance(event, Diagnostic)]
        said = ended.err or ("" if events else ended.out)
        for secret in self.secrets.values():
            said = said.replace(secret, "***") if secret else said
        if ended.stopped:
            raise Interrupted(verb, ended.code, found)
        if ended.code not in codes:
            raise error_of(verb, ended.code, found, said, directory=str(self.directory))

    def _json(self, ran: _Ran, verb: str) -> dict[str, Any]:
        try:
            said = json.loads(ran.ended.out)
        except ValueError:
            said = None
        if not isinstance(said, dict):
            raise ProtocolError(f"terraform {verb} did not answer with JSON", field="terraform")
        return said


@dataclass(frozen=True, slots=True)
class _Ran:
    ended: Ended
    events: tuple[Event, ...]


def _spelled(
    binary: Path, scratch: Path, verb: str, arguments: tuple[str, ...], options: Mapping[str, Any]
) -> list[str]:
    library = _extras.load("python_terraform", extra="deploy")
    # It reads a state file in its working directory, so that is an empty one. Its logger would print every option.
    logging.getLogger("python_terraform").disabled = True
    spelled = library.Terraform(working_dir=str(scratch), terraform_bin_path=str(binary)).generate_cmd_string(
        verb, **options
    )
    return [*map(str, spelled), *arguments]


def _variable_file(scratch: Path, variables: Mapping[str, Any]) -> Path:
    file = scratch / "medport.auto.tfvars.json"
    _made_private(file)
    file.write_text(json.dumps(variables), encoding="utf-8")
    return file


def _made_private(file: Path) -> None:
    try:
        file.unlink(missing_ok=True)
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    except OSError as fault:
        raise ConfigError(
            f"{file.name} cannot be written ({os.strerror(fault.errno or 0)})",
            field="plan",
            remedy="give another place",
        ) from fault


def _outcome(file: Path, ran: _Ran) -> PlanOutcome:
    return PlanOutcome(
        file=file,
        changes=ran.ended.code == 2,
        planned=tuple(event for event in ran.events if isinstance(event, Planned)),
        drifted=tuple(event for event in ran.events if isinstance(event, Drifted)),
        summary=_summary(ran.events, "plan"),
        warnings=tuple(
            event for event in ran.events if isinstance(event, Diagnostic) and event.severity == "warning"
        ),
    )


def _summary(events: tuple[Event, ...], operation: str) -> Summary:
    found = [event for event in events if isinstance(event, Summary)]
    return found[-1] if found else Summary(operation, 0, 0, 0)


__all__ = ["PlanOutcome", "Terraform", "TerraformError"]
