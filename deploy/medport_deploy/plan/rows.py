"""One line of a plan: a thing, what will be done to it, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Action = Literal["create", "update", "replace", "destroy", "traffic", "none"]
MARKS: Mapping[Action, str] = {
    "create": "+", "update": "~", "replace": "-/+", "destroy": "-", "traffic": "→", "none": " ",
}  # fmt: skip
"""As Terraform writes them; they, and not a colour, say what will be done."""


@dataclass(frozen=True, slots=True)
class Row:
    """What will be done to one thing."""

    address: str
    """Such as ``endpoint.medgemma``; what Terraform owns begins with ``terraform:``."""
    action: Action
    before: Mapping[str, Any] = field(default_factory=dict)
    """What is there, of the fields that will be others; values that are secret are not in it."""
    after: Mapping[str, Any] = field(default_factory=dict)
    why: str = ""
    downtime_s: float = 0.0
    """For how long nothing is expected to answer. An estimate."""
    duration_s: float = 0.0
    """An estimate."""
    blocked: bool = False
    """Whether medport cannot do it: ``why`` says who can."""
    untried: bool = False
    """Of a split: whether the fleet that is to get all stands and was never verified, so that it begins at 0 %."""

    @property
    def changes(self) -> bool:
        """Whether anything will be done."""
        return self.action != "none"
