"""A check: a name, what it does, and what to do if it fails. ``doctor`` runs lists of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from medport.errors import MedportError

Status = Literal["ok", "failed", "skipped"]


class Skipped(Exception):
    """Raised by a check that has nothing to look at; its text says why."""


@dataclass(frozen=True, slots=True)
class Check:
    """One step to a working endpoint."""

    name: str
    run: Callable[[], str]
    """Gives what it found, for people; raises MedportError if it fails and ``Skipped`` if it does not apply."""
    remedy: str
    """What to do if the error itself does not say."""
    needs: tuple[str, ...] = ()
    """Checks without whose success this one says nothing."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a check."""

    name: str
    status: Status
    detail: str
    remedy: str | None = None

    def to_dict(self) -> dict[str, str | None]:
        return asdict(self)


def run(checks: Sequence[Check]) -> Iterator[Outcome]:
    """Run them in order. What needs a failed one is skipped; one that did not apply hinders nothing."""
    broken: set[str] = set()
    for check in checks:
        cause = next((name for name in check.needs if name in broken), None)
        outcome = Outcome(check.name, "skipped", f"needs: {cause}") if cause else outcome_of(check)
        if cause or outcome.status == "failed":
            broken.add(check.name)
        yield outcome


def outcome_of(check: Check) -> Outcome:
    """Run one check."""
    try:
        return Outcome(check.name, "ok", check.run())
    except Skipped as reason:
        return Outcome(check.name, "skipped", str(reason))
    except MedportError as error:
        return failed(check.name, error, check.remedy)


def failed(name: str, error: MedportError, remedy: str) -> Outcome:
    """The outcome of a check that ended in ``error``."""
    place = f"{error.field}: " if error.field and error.field not in error.message else ""
    # "Run medport doctor" is good advice everywhere but here.
    own = error.remedy if error.remedy and "medport doctor" not in error.remedy else None
    return Outcome(name, "failed", f"{type(error).__name__}: {place}{error.message}", own or remedy)
