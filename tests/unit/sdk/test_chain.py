"""A fall-back chain: one deadline, fair shares of it, and only failures that another backend may not have."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from support.faults import Answer, FaultServer, dead_port, json_answer

import medport

ENDPOINT = {
    "endpoints": [
        {"name": "projects/p/locations/europe-west4/endpoints/e", "labels": {"medport-family": "medgemma"}}
    ]
}
FINE = json_answer({"predictions": {"choices": [{"message": {"content": "fine"}}]}})
STREAMED = Answer(
    200, b"data: " + orjson.dumps({"choices": [{"delta": {"content": "fine"}}]}) + b"\n\ndata: [DONE]\n\n"
)


@pytest.fixture
def first() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.routes = {"/endpoints": json_answer(ENDPOINT), ":predict": FINE, "/chat/completions": STREAMED}
        yield server


@pytest.fixture
def second() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.routes = {"/endpoints": json_answer(ENDPOINT), ":predict": FINE, "/chat/completions": STREAMED}
        yield server


@pytest.fixture
def chained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``chained(url, url, …)`` makes the profile ``ha`` of local backends ``p0``, ``p1``, …"""

    def make(*urls: str, **settings: object) -> None:
        names = [f"p{i}" for i in range(len(urls))]
        lines = [f'[profiles.{n}]\nbackend = "local"\nurl = "{u}"' for n, u in zip(names, urls, strict=True)]
        lines += ["[profiles.ha]", f"fallback = {orjson.dumps(names).decode()}"]
        lines += [f"{key} = {value}" for key, value in settings.items()]
        path = tmp_path / "chain.toml"
        path.write_text("\n".join(lines))
        monkeypatch.setenv("MEDPORT_CONFIG", str(path))

    return make


def test_the_first_that_works_answers(chained: Any, first: FaultServer, second: FaultServer) -> None:
    chained(first.url, second.url)

    with medport.Client("ha") as client:
        source = client.chat("hello").provenance

    assert (source.backend, source.attempts) == ("p0", 1)
    assert second.seen == []


def test_a_hanging_backend_uses_its_share_and_no_more(
    chained: Any, first: FaultServer, second: FaultServer
) -> None:
    first.routes[":predict"] = Answer(hangs=True)
    chained(first.url, second.url, timeout_s=2)
    began = time.monotonic()

    with medport.Client("ha") as client:
        source = client.chat("hello").provenance

    assert source.backend == "p1"
    assert 0.9 < time.monotonic() - began < 1.9


def test_all_hanging_end_with_the_one_deadline(chained: Any, first: FaultServer, second: FaultServer) -> None:
    first.routes[":predict"] = second.routes[":predict"] = Answer(hangs=True)
    chained(first.url, second.url, timeout_s=1)
    began = time.monotonic()

    with medport.Client("ha") as client, pytest.raises(medport.Timeout) as caught:
        client.chat("hello")

    assert time.monotonic() - began < 1.5
    assert caught.value.backend == "p1"
    assert caught.value.attempts == 2


def test_attempts_are_counted_over_the_whole_chain(chained: Any, first: FaultServer, second: FaultServer) -> None:
    busy = Answer(503, b"", {"retry-after": "0"})
    first.routes[":predict"] = busy
    second.script = []
    chained(first.url, second.url, max_attempts=3)

    with medport.Client("ha") as client:
        source = client.chat("hello").provenance

    assert len(first.asked(":predict")) == 3
    assert (source.backend, source.attempts) == ("p1", 4)


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 501])
def test_a_failure_that_would_follow_stays(
    chained: Any, first: FaultServer, second: FaultServer, status: int
) -> None:
    first.routes[":predict"] = Answer(status, b"{}")
    chained(first.url, second.url)

    with medport.Client("ha") as client, pytest.raises(medport.MedportError) as caught:
        client.chat("hello")

    assert caught.value.backend == "p0"
    assert second.seen == []


@pytest.mark.parametrize("answer", [Answer(503, b""), Answer(429, b"", {"retry-after": "99"}), Answer(504, b"")])
def test_a_failure_that_may_pass_moves_on(
    chained: Any, first: FaultServer, second: FaultServer, answer: Answer
) -> None:
    first.routes[":predict"] = answer
    chained(first.url, second.url, max_attempts=1, timeout_s=5)

    with medport.Client("ha") as client:
        assert client.chat("hello").provenance.backend == "p1"


def test_a_cold_backend_moves_on_rather_than_wait(chained: Any, first: FaultServer, second: FaultServer) -> None:
    first.routes[":predict"] = Answer(429, b"Model is not yet ready for inference.")
    chained(first.url, second.url)
    began = time.monotonic()

    with medport.Client("ha") as client:
        assert client.chat("hello").provenance.backend == "p1"

    assert time.monotonic() - began < 4


def test_a_stream_moves_on_before_its_first_byte(chained: Any, second: FaultServer) -> None:
    chained(f"http://localhost:{dead_port()}", second.url, max_attempts=1)

    with medport.Client("ha") as client, client.chat_stream("hello") as stream:
        assert "".join(delta.text for delta in stream) == "fine"

    assert stream.result.provenance.backend == "p1"


def test_a_stream_that_broke_does_not_move_on(chained: Any, first: FaultServer, second: FaultServer) -> None:
    first.routes["/chat/completions"] = Answer(200, b'data: {"choices":[{"delta":{"content":"fi"}}]}\n\n')
    chained(first.url, second.url)

    with (
        medport.Client("ha") as client,
        client.chat_stream("hello") as stream,
        pytest.raises(medport.ConnectionFailed) as caught,
    ):
        list(stream)

    assert caught.value.backend == "p0"
    assert second.seen == []


def test_the_async_client_moves_on_alike(chained: Any, first: FaultServer, second: FaultServer) -> None:
    first.routes[":predict"] = first.routes["/chat/completions"] = Answer(503, b"", {"retry-after": "0"})
    chained(first.url, second.url, max_attempts=2)

    async def ask() -> tuple[medport.Chat, medport.Chat]:
        async with medport.AsyncClient("ha") as client:
            answer = await client.chat("hello")
            async with client.chat_stream("hello") as stream:
                async for _ in stream:
                    pass
            return answer, stream.result

    for result in asyncio.run(ask()):
        assert (result.provenance.backend, result.provenance.attempts) == ("p1", 3)


def test_an_async_stream_of_heartbeats_ends_with_the_deadline(first: FaultServer) -> None:
    def heartbeats() -> Iterator[bytes]:
        while not first.closing.wait(0.02):
            yield b": still here\n\n"

    first.routes["/chat/completions"] = Answer(200, heartbeats())

    async def ask() -> None:
        async with medport.AsyncClient(url=first.url) as client, client.chat_stream("hi", timeout_s=0.5) as stream:
            async for _ in stream:
                pass

    with pytest.raises(medport.Timeout):
        asyncio.run(ask())


def test_a_cancelled_task_leaves_the_connection(first: FaultServer) -> None:
    first.routes[":predict"] = Answer(hangs=True)

    async def ask() -> None:
        async with medport.AsyncClient(url=first.url) as client:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.3):
                    await client.chat("hello")
            first.routes[":predict"] = FINE
            assert (await client.chat("hello")).text == "fine"

    asyncio.run(ask())


def test_a_closed_client_says_so(first: FaultServer) -> None:
    client = medport.Client(url=first.url)
    client.chat("hello")
    client.close()
    client.close()

    with pytest.raises(medport.ConfigError, match="closed"):
        client.chat("hello")


def test_a_chain_of_one_profile_that_is_unknown_is_refused(chained: Any, tmp_path: Path) -> None:
    (tmp_path / "chain.toml").write_text('[profiles.ha]\nfallback = ["nowhere"]\n')

    with pytest.raises(medport.ConfigError) as caught:
        medport.config.resolve("ha", environment={"MEDPORT_CONFIG": str(tmp_path / "chain.toml")})

    assert caught.value.field == "profiles.ha.fallback"
