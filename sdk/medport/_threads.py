"""Blocking work, off the event loop."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


async def in_thread(work: Callable[[], T]) -> T:
    """``asyncio.to_thread``. asyncio is loaded here: blocking callers need not wait 20 ms for its import."""
    import asyncio

    return await asyncio.to_thread(work)
