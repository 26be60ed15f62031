"""What goes wrong on the way, on real sockets: each fault its own error, retried only where that can help."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from support.certificates import Authority
from support.faults import Answer, FaultServer, dead_port, json_answer

import medport

ENDPOINTS = {
    "endpoints": [
        {"name": f"projects/p/locations/europe-west4/endpoints/{family}", "labels": {"medport-family": family}}
        for family in ("medgemma", "medsiglip")
    ]
}
CHAT = json_answer({"predictions": {"choices": [{"message": {"content": "fine"}, "finish_reason": "stop"}]}})
CANARY = "CANARY-Okonkwo"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer() as server:
        server.routes = {"/endpoints": json_answer(ENDPOINTS), ":predict": CHAT}
        yield server


@pytest.fixture
def client(server: FaultServer) -> Iterator[medport.Client]:
    with medport.Client(url=server.url) as client:
        yield client


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (
            json_answer({"error": {"code": 400, "message": "bad", "status": "INVALID_ARGUMENT"}}, 400),
            medport.InputError,
        ),
        (
            json_answer([{"error": {"code": 403, "message": "no", "status": "PERMISSION_DENIED"}}], 403),
            medport.AuthError,
        ),
        (Answer(401, b"who?"), medport.AuthError),
        (Answer(404, b"<html>"), medport.NotFound),
        (Answer(413, b""), medport.RequestTooLarge),
        (Answer(302, b"", {"location": "https://elsewhere.example/"}), medport.ProtocolError),
        (Answer(200, b"<html>please log in</html>", {"content-type": "text/html"}), medport.ProtocolError),
        (json_answer({"error": "'CANARY-Okonkwo' is not of type 'integer'"}), medport.InputError),
        (json_answer({"predictions": {"error": {"message": "no", "object": "error"}}}), medport.InputError),
        (json_answer({"predictions": []}), medport.ProtocolError),
        (Answer(429, b"Model is not yet ready for inference. Please wait"), medport.NotReady),
    ],
)
def test_a_bad_answer_is_its_typed_error_at_once(
    client: medport.Client, server: FaultServer, answer: Answer, error: type[medport.MedportError]
) -> None:
    server.routes[":predict"] = answer

    with pytest.raises(medport.MedportError) as caught:
        client.chat(f"{CANARY}?")

    assert type(caught.value) is error
    assert caught.value.backend == "local"
    assert CANARY not in str(caught.value)
    assert len(server.asked(":predict")) == 1


def test_a_busy_server_is_asked_again_after_the_time_it_names(client: medport.Client, server: FaultServer) -> None:
    client.chat("warm")
    server.script = [Answer(429, b"", {"retry-after": "0.3"}), Answer(503, b"", {"retry-after": "0"})]
    began = time.monotonic()

    result = client.chat("hello")

    assert result.text == "fine"
    assert result.provenance.attempts == 3
    assert time.monotonic() - began >= 0.3


def test_a_wait_past_the_deadline_is_not_slept(client: medport.Client, server: FaultServer) -> None:
    server.routes[":predict"] = Answer(429, b"", {"retry-after": "60"})
    began = time.monotonic()

    with pytest.raises(medport.QuotaExceeded) as caught:
        client.chat("hello", timeout_s=2)

    assert caught.value.retry_after_s == 60
    assert time.monotonic() - began < 2


def test_a_cold_endpoint_is_waited_for_only_when_asked(client: medport.Client, server: FaultServer) -> None:
    cold = Answer(429, b"Model is not yet ready for inference.", {"retry-after": "0"})
    server.script = [cold, cold]

    assert client.chat("hello", wait_until_ready=10).provenance.attempts == 3


def test_a_silent_server_is_a_timeout(client: medport.Client, server: FaultServer) -> None:
    server.routes[":predict"] = Answer(hangs=True)

    with pytest.raises(medport.Timeout):
        client.chat("hello", timeout_s=0.5)


def test_a_cut_answer_is_a_broken_connection(server: FaultServer) -> None:
    server.routes[":predict"] = Answer(200, b'{"predic', {"content-type": "application/json"}, missing=100)

    with medport.Client(url=server.url, max_attempts=1) as client, pytest.raises(medport.ConnectionFailed):
        client.chat("hello")


def test_a_server_that_is_down_says_so() -> None:
    url = f"http://localhost:{dead_port()}"
    with medport.Client(url=url, max_attempts=2) as client, pytest.raises(medport.ConnectionFailed) as caught:
        client.chat("hello")

    assert caught.value.attempts == 2
    assert caught.value.remedy


def test_a_certificate_nobody_trusts_is_not_tried_twice(authority: Authority) -> None:
    with (
        FaultServer(authority.issue("localhost")) as server,
        medport.Client(url=server.url) as client,
        pytest.raises(medport.ConnectionFailed) as caught,
    ):
        client.chat("hello")

    assert caught.value.field == "ca_file"
    assert caught.value.attempts == 1


def events(*pieces: str, done: bool = True) -> list[bytes]:
    chunks = [{"choices": [{"delta": {"content": piece}}]} for piece in pieces]
    lines = [b"data: " + orjson.dumps(chunk) + b"\n\n" for chunk in chunks]
    return [*lines, b"data: [DONE]\n\n"] if done else lines


def test_a_stream_that_has_begun_is_not_begun_again(client: medport.Client, server: FaultServer) -> None:
    server.routes["/chat/completions"] = Answer(200, events("one", "two", done=False))

    with client.chat_stream("hello") as stream, pytest.raises(medport.ConnectionFailed):
        list(stream)

    assert len(server.asked("/chat/completions")) == 1


def test_an_error_in_mid_stream_is_raised(client: medport.Client, server: FaultServer) -> None:
    error = b'data: {"error": {"code": 500, "message": "gone"}}\n\n'
    server.routes["/chat/completions"] = Answer(200, [*events("one", done=False), error])

    with client.chat_stream("hello") as stream, pytest.raises(medport.ServerError):
        list(stream)


def test_an_endless_event_is_refused(client: medport.Client, server: FaultServer) -> None:
    server.routes["/chat/completions"] = Answer(200, [b"data: "] + [b"x" * 1_000_000] * 8)

    with client.chat_stream("hello") as stream, pytest.raises(medport.ProtocolError, match="4 MiB"):
        list(stream)


def prediction(value: Any) -> dict[str, Any]:
    return {"embedding": value, "model_temperature": 1.0, "model_bias": 0.0}


@pytest.mark.parametrize(
    "body",
    [
        b'{"predictions": [{"embedding": [NaN, 1.0]}]}',
        orjson.dumps({"predictions": [prediction([None, 1.0])]}),
        orjson.dumps({"predictions": [prediction([0.0, 0.0])]}),
        orjson.dumps({"predictions": [prediction([[1.0], [2.0]])]}),
        orjson.dumps({"predictions": []}),
        orjson.dumps({"predictions": [{"embedding": [1.0]}]}),
    ],
)
def test_an_embedding_that_is_none_is_not_handed_on(
    client: medport.Client, server: FaultServer, body: bytes
) -> None:
    server.routes[":predict"] = Answer(200, body, {"content-type": "application/json"})

    with pytest.raises(medport.ProtocolError):
        client.embed_texts("hello")


def chain(tmp_path: Any, first: str, second: str) -> str:
    path = tmp_path / "medport.toml"
    path.write_text(
        f'[profiles.a]\nbackend = "local"\nurl = "{first}"\n[profiles.b]\nbackend = "local"\nurl = "{second}"\n'
        '[profiles.ha]\nfallback = ["a", "b"]\ntimeout_s = 4\n'
    )
    return str(path)


def test_the_second_backend_answers_when_the_first_hangs(
    server: FaultServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as silent:
        silent.routes = {"/endpoints": Answer(hangs=True)}
        monkeypatch.setenv("MEDPORT_CONFIG", chain(tmp_path, silent.url, server.url))
        with medport.Client("ha") as client:
            result = client.chat("hello")

    assert result.provenance.backend == "b"


def test_a_fault_of_the_request_does_not_move_on(
    server: FaultServer, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    with FaultServer() as strict:
        strict.routes = {"/endpoints": json_answer(ENDPOINTS), ":predict": Answer(400, b"{}")}
        monkeypatch.setenv("MEDPORT_CONFIG", chain(tmp_path, strict.url, server.url))
        with medport.Client("ha") as client, pytest.raises(medport.InputError):
            client.chat("hello")

    assert not server.seen
