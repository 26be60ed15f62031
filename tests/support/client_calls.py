"""Which call of a client a test makes, and what comes of it: the rows of ``tests/conformance/CONTROL.md``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

Outcome = Literal["ok", "refused", "501", "no"]
T = TypeVar("T")


def call(said: str, outcome: Outcome = "ok", why: str = "") -> Callable[[T], T]:
    """Mark a test with a row of the table.

    ``control_table.py`` reads it from the source; so all three are written out.

    Args:
        said: the call as a caller writes it, without what does not matter.
        outcome: ``refused``: as it should be. ``501``: this server does not offer it. ``no``: it does not work.
        why: what is refused, or why it does not work.
    """
    assert said
    assert outcome == "ok" or why, "say why"
    return lambda test: test
