"""Servers to fetch from, and fetchers that trust them."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.certificates import Authority
from support.faults import FaultServer

from medport_local.serving.fetch import Fetcher, FetchLimits

MakeFetcher = Callable[..., Fetcher]


@pytest.fixture
def make_fetcher(authority: Authority) -> Iterator[MakeFetcher]:
    """A fetcher with these entries, which trusts the tests' authority and lets its names resolve as told."""
    made: list[Fetcher] = []

    def make(*allow: str, names: dict[str, list[str]] | None = None, **limits: Any) -> Fetcher:
        def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
            return [(0, 0, 0, "", (address, port)) for address in (names or {"localhost": ["127.0.0.1"]})[host]]

        tls = ssl.create_default_context(cafile=authority.ca_file)
        fetcher = Fetcher(allow, limits=FetchLimits(**{"timeout_s": 10.0, **limits}), resolve=resolve, tls=tls)
        made.append(fetcher)
        return fetcher

    yield make
    for fetcher in made:
        fetcher.close()


@pytest.fixture
def web() -> Iterator[FaultServer]:
    with FaultServer() as server:
        yield server


@pytest.fixture
def secure_web(authority: Authority) -> Iterator[FaultServer]:
    with FaultServer(authority.issue("localhost", "images.hospital", "127.0.0.1")) as server:
        yield server
