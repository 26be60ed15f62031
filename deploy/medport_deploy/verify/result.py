"""What a verification found, as values: each check with what was expected and what was seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from medport.errors import EXIT_CHANGES

Json = dict[str, Any]
Status = Literal["drift", "passed", "skipped", "note"]
FORM = "medport-verify"
VERSION = 1
APPLY = "put it back: medport deploy plan, then medport deploy apply"


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at."""

    check: str
    """Such as ``version.args``; never renamed."""
    status: Status
    model: str | None = None
    """Of the specification; ``None``: it is about the whole deployment."""
    expected: Any = None
    """Plain JSON; of ``drift``."""
    found: Any = None
    """Plain JSON; of ``drift``, ``passed`` and ``note``."""
    remedy: str | None = None
    """Of ``drift``."""
    why: str = ""
    """Of ``skipped`` and ``note``."""


def compared(
    check: str, model: str | None, expected: Any, found: Any, *, remedy: str = APPLY, shown: Any = None
) -> Check:
    """Whether what was found is what was expected.

    Args:
        shown: what a check that passed says was seen, where that is not ``found`` itself.
    """
    if expected == found:
        return Check(check=check, status="passed", model=model, found=found if shown is None else shown)
    return drift(check, model, expected, found, remedy=remedy)


def drift(check: str, model: str | None, expected: Any, found: Any, *, remedy: str = APPLY) -> Check:
    """Something is not as it was approved."""
    return Check(check=check, status="drift", model=model, expected=expected, found=found, remedy=remedy)


def skipped(check: str, model: str | None, why: str) -> Check:
    """Something was not looked at."""
    return Check(check=check, status="skipped", model=model, why=why)


def note(check: str, model: str | None, why: str, found: Any = None) -> Check:
    """Something that is worth a line and no fault."""
    return Check(check=check, status="note", model=model, found=found, why=why)


@dataclass(frozen=True, slots=True)
class Report:
    """A whole verification."""

    deployment: str
    target: str
    """As a plan names it."""
    made_at: str
    """UTC, ISO 8601."""
    medport: str
    """Version that looked."""
    lock_id: str
    spec_sha256: str
    """Of the bytes of the specification's file."""
    checks: tuple[Check, ...]
    """In the order in which they were made."""
    compared_with: str = ""
    """Id of the lock that what serves was compared with, if that is not ``lock_id``, which is not applied then."""

    @property
    def findings(self) -> tuple[Check, ...]:
        """What is not as it was approved."""
        return self._of("drift")

    @property
    def passed(self) -> tuple[Check, ...]:
        """What is as it was approved."""
        return self._of("passed")

    @property
    def skipped(self) -> tuple[Check, ...]:
        """What was not looked at, with the reason."""
        return self._of("skipped")

    @property
    def notes(self) -> tuple[Check, ...]:
        """What is worth a line and no fault, such as an old fleet that is kept."""
        return self._of("note")

    @property
    def exit_code(self) -> int:
        """Of ``medport deploy verify``: 0 all is as approved, 2 something is not."""
        return EXIT_CHANGES if self.findings else 0

    def as_dict(self) -> Json:
        """As ``medport deploy verify --json`` prints it and ``report.sign`` signs it. Keys are added, and never
        renamed."""
        return {
            "form": FORM,
            "version": VERSION,
            "deployment": self.deployment,
            "target": self.target,
            "made_at": self.made_at,
            "medport": self.medport,
            "lock_id": self.lock_id,
            "compared_with": self.compared_with or self.lock_id,
            "spec_sha256": self.spec_sha256,
            "clean": not self.findings,
            "exit_code": self.exit_code,
            "findings": _as_dicts(self.findings, "expected", "found", "remedy"),
            "passed": _as_dicts(self.passed, "found"),
            "skipped": _as_dicts(self.skipped, "why"),
            "notes": _as_dicts(self.notes, "why", "found"),
        }

    def _of(self, status: Status) -> tuple[Check, ...]:
        return tuple(each for each in self.checks if each.status == status)


def _as_dicts(checks: Iterable[Check], *keys: str) -> list[Json]:
    return [
        {"check": each.check, "model": each.model, **{key: _plain(getattr(each, key)) for key in keys}}
        for each in checks
    ]


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(each) for each in (sorted(value) if isinstance(value, set | frozenset) else value)]
    return value
