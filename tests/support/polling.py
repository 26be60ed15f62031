"""Bounded waiting for what another thread does."""

from __future__ import annotations

import time
from collections.abc import Callable


def wait_until(true: Callable[[], bool], timeout_s: float = 10, *, step_s: float = 0.005) -> None:
    """Return as soon as ``true()``; fail after ``timeout_s``."""
    end = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < end, "did not come true in time"
        time.sleep(step_s)
