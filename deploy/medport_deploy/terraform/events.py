"""What terraform says while it works, line by line, as values.

Source: Terraform documentation, "Machine-Readable UI" (``-json``), format 1.2.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

Severity = Literal["error", "warning"]


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """Something that is wrong, or that may be."""

    severity: Severity
    summary: str
    detail: str = ""
    address: str | None = None
    file: str | None = None
    line: int | None = None

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}: " if self.file and self.line else ""
        first = self.detail.strip().split("\n", 1)[0]
        return f"{place}{self.summary}{f': {first}' if first and first != self.summary else ''}"


@dataclass(frozen=True, slots=True)
class Planned:
    """What would be done to a resource."""

    address: str
    action: str
    """``create``, ``update``, ``replace``, ``delete``, ``read``, ``import``, ``move``, ``forget``."""
    reason: str | None = None
    """Why it would be replaced or deleted."""


@dataclass(frozen=True, slots=True)
class Drifted:
    """A resource that is no longer as terraform left it."""

    address: str
    action: str
    """What happened to it: ``update`` or ``delete``."""


@dataclass(frozen=True, slots=True)
class Working:
    """A resource that is being changed."""

    address: str
    action: str
    stage: Literal["started", "going on", "done", "failed"]
    elapsed_s: float = 0.0
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Summary:
    """How much there is to do, or was done."""

    operation: str
    """``plan``, ``apply``, ``destroy``."""
    add: int
    change: int
    remove: int
    imported: int = 0

    @property
    def total(self) -> int:
        return self.add + self.change + self.remove + self.imported


@dataclass(frozen=True, slots=True)
class Outputs:
    """The root's outputs. Terraform leaves out the values of sensitive ones."""

    values: Mapping[str, Any] = field(default_factory=dict)


Event: TypeAlias = Diagnostic | Planned | Drifted | Working | Summary | Outputs

_STAGES: Mapping[str, Literal["started", "going on", "done", "failed"]] = {
    "apply_start": "started",
    "apply_progress": "going on",
    "apply_complete": "done",
    "apply_errored": "failed",
}


def event_of(line: str) -> Event | None:
    """The event of a line; ``None`` for what is no event, or one that says nothing we use."""
    if not line.startswith("{"):
        return None
    try:
        return _read(json.loads(line))
    except (ValueError, TypeError, AttributeError):
        # Of a shape that no terraform writes: a line that cannot be shown must not end the run that it tells of.
        return None


def _read(said: object) -> Event | None:
    match said:
        case {"type": "diagnostic", "diagnostic": {"severity": ("error" | "warning") as severity} as told}:
            return diagnostic(severity, told)
        case {"type": "planned_change", "change": change}:
            return Planned(_address(change), str(change.get("action")), change.get("reason"))
        case {"type": "resource_drift", "change": change}:
            return Drifted(_address(change), str(change.get("action")))
        case {"type": "change_summary", "changes": changes}:
            counts = {key: int(changes.get(key, 0)) for key in ("add", "change", "remove")}
            return Summary(str(changes.get("operation")), **counts, imported=int(changes.get("import", 0)))
        case {"type": "outputs", "outputs": outputs}:
            return Outputs({name: each.get("value") for name, each in outputs.items()})
        case {"type": kind, "hook": hook} if kind in _STAGES:
            return Working(
                _address(hook),
                str(hook.get("action")),
                _STAGES[kind],
                float(hook.get("elapsed_seconds", 0)),
                hook.get("id_value"),
            )
    return None


def diagnostic(severity: Severity, said: Mapping[str, Any]) -> Diagnostic:
    """A diagnostic of any of terraform's JSON forms. The snippet of source is left out: it may hold values."""
    where = said.get("range") or {}
    return Diagnostic(
        severity=severity,
        summary=str(said.get("summary", "")),
        detail=str(said.get("detail", "")),
        address=said.get("address"),
        file=where.get("filename"),
        line=(where.get("start") or {}).get("line"),
    )


def _address(said: Mapping[str, Any]) -> str:
    return str((said.get("resource") or {}).get("addr", ""))
