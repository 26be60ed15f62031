"""What requests to what serves have shown, as checks; ``smoke`` and ``golden`` send them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from medport.errors import VerificationError
from medport_deploy.control.errors import clean
from medport_deploy.verify.result import Check, compared, drift, skipped

_BACK = "see the endpoint's log; to go back: medport deploy rollback"


class Tried(Protocol):
    """How one kind of request went; ``smoke.SmokeResult`` is one."""

    @property
    def kind(self) -> str:
        """Such as ``text``, ``stream``, ``golden``."""
        ...

    @property
    def status(self) -> str:
        """``ok``, ``failed`` or ``skipped``."""
        ...

    @property
    def detail(self) -> str:
        """In words of ours: nothing of a patient's is in it."""
        ...

    @property
    def latency_ms(self) -> float | None: ...


Smoke = Callable[[str, str], Sequence[Tried]]
"""Sends requests of all kinds to a model, by its name, and to its deployed model."""


def checks(name: str, deployed_model_id: str, percent: int, smoke: Smoke | None) -> list[Check]:
    """One check for each kind of request.

    Args:
        percent: of the traffic that the deployed model has.
        smoke: ``None``: nothing is sent.

    Raises:
        What ``smoke`` raises, except ``VerificationError``, which is a finding.
    """
    if smoke is None:
        return [skipped("smoke", name, "not asked for")]
    if not percent:
        return [skipped("smoke", name, "the fleet has no traffic")]
    try:
        results = smoke(name, deployed_model_id)
    except VerificationError as failed:
        return [drift("smoke", name, "answers as it should", clean(str(failed)), remedy=failed.remedy or _BACK)]
    return [_tried(name, each) for each in results]


def _tried(name: str, result: Tried) -> Check:
    check = f"smoke.{result.kind}"
    if result.status == "skipped":
        return skipped(check, name, result.detail)
    if result.status != "ok":
        return drift(check, name, "answers as it should", result.detail, remedy=_BACK)
    took = None if result.latency_ms is None else round(result.latency_ms, 1)
    return compared(check, name, True, True, shown={"detail": result.detail, "latency_ms": took})
