"""What can go wrong with terraform, as errors of ours."""

from __future__ import annotations

import re
from collections.abc import Sequence

from medport.errors import MedportError
from medport_deploy.terraform.events import Diagnostic

_LOCK_ID = re.compile(r"^\s*ID:\s+(\S+)\s*$", re.MULTILINE)
_LOCK_WHO = re.compile(r"^\s*Who:\s+(\S+)\s*$", re.MULTILINE)


class TerraformError(MedportError):
    """terraform refused or failed.

    Attributes:
        verb: such as ``apply``.
        code: its exit code.
        diagnostics: what it said, errors first.
    """

    def __init__(
        self, verb: str, code: int, diagnostics: Sequence[Diagnostic], *, said: str = "", remedy: str | None = None
    ) -> None:
        self.verb, self.code = verb, code
        self.diagnostics = tuple(sorted(diagnostics, key=lambda each: each.severity))
        errors = [str(each) for each in self.diagnostics if each.severity == "error"]
        lines = "; ".join(errors[:3]) or said.strip()[-400:] or f"exit code {code}"
        more = f" (and {len(errors) - 3} more)" if len(errors) > 3 else ""
        super().__init__(f"terraform {verb}: {lines}{more}", field="terraform", remedy=remedy)


class StateLocked(TerraformError):
    """Another run holds the state. Nothing was done, and nothing is unlocked by us.

    Attributes:
        lock_id: what ``terraform force-unlock`` wants to be told.
    """

    def __init__(
        self, verb: str, code: int, diagnostics: Sequence[Diagnostic], detail: str, directory: str
    ) -> None:
        found, who = _LOCK_ID.search(detail), _LOCK_WHO.search(detail)
        self.lock_id = found[1] if found else ""
        by = f" by {who[1]}" if who else ""
        super().__init__(
            verb,
            code,
            (),
            said=f"the state is locked{by}, lock id {self.lock_id or 'not told'}",
            remedy="wait for that run; if it is dead: "
            f"terraform -chdir={directory} force-unlock {self.lock_id or 'LOCK_ID'}",
        )
        self.diagnostics = tuple(diagnostics)


class Interrupted(TerraformError):
    """It was stopped, by the caller or by the deadline. Calls that were under way were finished."""

    def __init__(self, verb: str, code: int, diagnostics: Sequence[Diagnostic]) -> None:
        super().__init__(
            verb,
            code,
            (),
            said="it was stopped; what was done is in the state",
            remedy="plan again, and apply that plan, to go on",
        )
        # Kept and not told: they speak of what the stop itself cut short.
        self.diagnostics = tuple(diagnostics)


def error_of(
    verb: str, code: int, diagnostics: Sequence[Diagnostic], said: str, *, directory: str
) -> TerraformError:
    """The error for a process that ended with ``code``."""
    for each in diagnostics:
        if "state lock" in each.summary.lower() or "Lock Info" in each.detail:
            return StateLocked(verb, code, diagnostics, each.detail, directory)
    if "Error acquiring the state lock" in said:
        return StateLocked(verb, code, diagnostics, said, directory)
    return TerraformError(verb, code, diagnostics, said=said)
