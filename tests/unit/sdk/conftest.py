"""A stand-in for Vertex AI with canned answers, fresh for each test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.certificates import Authority
from support.running import LoopThread
from support.vertex import Account, Vertex


@pytest.fixture
def vertex(authority: Authority, account: Account, loop_thread: LoopThread, tmp_path: Path) -> Iterator[Vertex]:
    with Vertex(authority, tmp_path, account).serving(loop_thread) as vertex:
        yield vertex
