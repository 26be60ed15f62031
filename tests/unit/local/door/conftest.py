"""Doors on a real socket, two keys for them, and who watches."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.door_handlers import TABLE, Hasty, url
from support.doors import serving
from support.running import LoopThread

from medport_local.serving import keys
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing
from medport_local.serving.outcome import Outcome


@pytest.fixture
def limited(tmp_path: Path) -> tuple[KeyRing, str, str]:
    """A ring with a key for medgemma alone and one for all models."""
    file = tmp_path / "keys.json"
    narrow, wide = keys.add(file, "narrow", models=["medgemma"]), keys.add(file, "wide")
    return KeyRing(file=file), narrow, wide


@pytest.fixture
def outcomes() -> list[Outcome]:
    return []


@pytest.fixture
def the_guard(limited: tuple[KeyRing, str, str], outcomes: list[Outcome]) -> Guard:
    made = Guard(keys=limited[0], observers=(outcomes.append,))
    made.lifecycle.start()
    return made


@pytest.fixture
def address(loop_thread: LoopThread, the_guard: Guard) -> Iterator[tuple[str, int]]:
    with serving(loop_thread, TABLE, the_guard, protocol=Hasty) as found:
        yield found


@pytest.fixture
def narrow(address: tuple[str, int], limited: tuple[KeyRing, str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url(address), headers={"x-goog-api-key": limited[1]}, timeout=20) as client:
        yield client


@pytest.fixture
def wide(address: tuple[str, int], limited: tuple[KeyRing, str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url(address), headers={"x-goog-api-key": limited[2]}, timeout=20) as client:
        yield client
