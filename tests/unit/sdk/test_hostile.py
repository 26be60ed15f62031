"""Answers made to harm: they end in a typed error, in bounded time and memory, and are not repeated to anyone."""

from __future__ import annotations

import gzip
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from copy import deepcopy
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.faults import Answer, FaultServer, json_answer

import medport
from medport import _http
from medport.errors import MedportError, ProtocolError
from medport.tasks.chat import Collector
from medport.wire import chat, sse, vertex

JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)

GOOD_ERROR = vertex.error_body(medport.ImageError("x", field="images[0]", remedy="y"))
GOOD_ANSWER = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "message": {"content": [{"type": "text", "text": "fine"}]}, "finish_reason": "stop"}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
    "predictions": [{"choices": [{"message": {"content": "fine"}}]}],
    "error": None,
}
GOOD_PIECE = {
    "id": "chatcmpl-1",
    "choices": [{"index": 0, "delta": {"content": "fine"}, "finish_reason": None}],
    "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
}


@st.composite
def spoiled(draw: st.DrawFn, good: object) -> object:
    """``good`` with one part of it, however deep, replaced by anything."""
    parts = draw(st.sampled_from(list(paths(good))))
    junk = draw(JSON)
    if not parts:
        return junk
    body: object = deepcopy(good)
    place: Any = body
    for step in parts[:-1]:
        place = place[step]
    place[parts[-1]] = junk
    return body


def paths(value: object, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield at
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from paths(inner, (*at, key))


ENDPOINT = {
    "endpoints": [
        {"name": "projects/p/locations/europe-west4/endpoints/e", "labels": {"medport-family": "medgemma"}}
    ]
}
FINE = {"predictions": {"choices": [{"message": {"content": "fine"}}]}}


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.routes = {"/endpoints": json_answer(ENDPOINT), ":predict": json_answer(FINE)}
        yield server


@pytest.fixture
def client(server: FaultServer) -> Iterator[medport.Client]:
    with medport.Client(url=server.url, max_attempts=1) as client:
        client.chat("hello")
        yield client


def test_answer_of_a_server_that_does_not_stream_is_one_delta(server: FaultServer, client: medport.Client) -> None:
    whole = {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}], "usage": {"total_tokens": 3}}
    server.routes["/chat/completions"] = json_answer(whole)

    with client.chat_stream("hello") as stream:
        texts = [delta.text for delta in stream]

    assert texts == ["fine"]
    assert stream.streamed is False
    assert (stream.result.text, stream.result.finish_reason) == ("fine", "stop")


def test_error_of_a_server_that_does_not_stream_is_raised(server: FaultServer, client: medport.Client) -> None:
    server.routes["/chat/completions"] = json_answer({"error": "no"})

    with client.chat_stream("hello") as stream, pytest.raises(medport.InputError):
        list(stream)


@settings(max_examples=400)
@given(
    spoiled(GOOD_ERROR) | spoiled([GOOD_ERROR]),
    st.sampled_from([400, 401, 403, 404, 409, 413, 418, 429, 500, 502, 503, 504, 599]),
)
def test_whatever_an_error_holds_it_is_a_typed_error(body: object, status: int) -> None:
    error = vertex.error_from(status, orjson.dumps(body))

    assert isinstance(error, MedportError)
    assert isinstance(str(error), str)


@given(st.binary(max_size=64))
def test_whatever_bytes_an_error_holds_it_is_a_typed_error(body: bytes) -> None:
    assert isinstance(vertex.error_from(500, body), medport.ServerError)


@settings(max_examples=400)
@given(spoiled(GOOD_ANSWER) | spoiled({"predictions": GOOD_ANSWER}))
def test_whatever_an_answer_holds_it_is_read_or_refused(body: object) -> None:
    with suppress(MedportError):
        chat.read_answer(body)


@settings(max_examples=400)
@given(st.binary(max_size=64) | spoiled(GOOD_PIECE).map(orjson.dumps))
def test_whatever_a_stream_event_holds_it_is_read_or_refused(event: bytes) -> None:
    with suppress(MedportError):
        Collector().take(event)


@pytest.mark.parametrize(
    "make", [lambda: b"[" * 100_000, lambda: b'{"error":' * 50_000, lambda: b"\xff" * 9, lambda: b"1" * 100_000]
)
def test_deep_or_broken_json_is_refused(
    client: medport.Client, server: FaultServer, make: Callable[[], bytes]
) -> None:
    server.routes[":predict"] = Answer(200, make(), {"content-type": "application/json"})

    with pytest.raises(ProtocolError):
        client.chat("hello")


def test_an_answer_beyond_the_cap_is_not_read_to_its_end(
    client: medport.Client, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "MAX_REPLY_BYTES", 1_000_000)
    sent: list[int] = []

    def endless() -> Iterator[bytes]:
        while len(sent) < 10_000:
            sent.append(1)
            yield b" " * 65_536

    server.routes[":predict"] = Answer(200, endless())

    with pytest.raises(ProtocolError, match="larger"):
        client.chat("hello")

    assert len(sent) < 1_000


def test_a_stream_beyond_the_cap_is_left(
    client: medport.Client, server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_http, "MAX_REPLY_BYTES", 1_000_000)
    event = sse.encode(orjson.dumps({"choices": [{"delta": {"content": "x" * 1_000}}]}))
    server.routes["/chat/completions"] = Answer(200, (event for _ in range(100_000)))

    with client.chat_stream("hello") as stream, pytest.raises(ProtocolError, match="larger"):
        list(stream)


def test_a_stream_of_nothing_but_heartbeats_ends_with_the_deadline(
    client: medport.Client, server: FaultServer
) -> None:
    def heartbeats() -> Iterator[bytes]:
        while not server.closing.wait(0.02):
            yield b": still here\n\n"

    server.routes["/chat/completions"] = Answer(200, heartbeats())
    began = time.monotonic()

    with client.chat_stream("hello", timeout_s=0.5) as stream, pytest.raises(medport.Timeout):
        list(stream)

    assert time.monotonic() - began < 5


def test_an_answer_that_drips_ends_with_the_deadline(client: medport.Client, server: FaultServer) -> None:
    def drops() -> Iterator[bytes]:
        while not server.closing.wait(0.02):
            yield b" "

    server.routes[":predict"] = Answer(200, drops())
    began = time.monotonic()

    with pytest.raises(medport.Timeout):
        client.chat("hello", timeout_s=0.5)

    assert time.monotonic() - began < 5


def test_no_compression_is_asked_for_and_none_is_undone(client: medport.Client, server: FaultServer) -> None:
    bomb = gzip.compress(b" " * 50_000_000)
    server.routes[":predict"] = Answer(200, bomb, {"content-encoding": "gzip", "content-type": "application/json"})

    with pytest.raises(ProtocolError):
        client.chat("hello")

    assert {seen.headers["accept-encoding"] for seen in server.seen} == {"identity"}


def test_no_cookie_is_kept(client: medport.Client, server: FaultServer) -> None:
    server.routes[":predict"] = json_answer(FINE, **{"set-cookie": "session=1; Path=/"})
    for _ in range(2):
        client.chat("hello")

    assert not any("cookie" in seen.headers for seen in server.seen)


@pytest.mark.parametrize("value", ["soon", "-5", "nan", "", "Wed, 21 Oct 2026 07:28:00 GMT", "1e999"])
def test_a_retry_after_that_is_no_number_of_seconds_does_no_harm(
    client: medport.Client, server: FaultServer, value: str
) -> None:
    server.routes[":predict"] = Answer(429, b"", {"retry-after": value})

    with pytest.raises(medport.QuotaExceeded):
        client.chat("hello", timeout_s=2)


def test_proxies_of_the_environment_are_not_used_for_a_server_of_ones_own(
    server: FaultServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as proxy:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, proxy.url)
        with medport.Client(url=server.url) as client:
            assert client.chat("hello").text == "fine"

        assert proxy.seen == []


def test_a_foreign_message_is_cut_to_a_line_without_quotes_or_long_words() -> None:
    error = vertex.error_from(400, orjson.dumps({"error": {"message": "a 'secret' " + "x" * 5_000 + "\nsecond"}}))

    assert "secret" not in str(error)
    assert "second" not in str(error)
    assert len(str(error)) < 400
