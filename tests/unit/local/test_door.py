"""The door around a handler, on real sockets: scopes asked for, slow and tiny senders, streams, the audit log."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import os
import socket
import time
from collections.abc import AsyncGenerator, Callable, Iterator
from pathlib import Path

import httpx
import orjson
import pytest
from starlette.responses import PlainTextResponse, Response
from support.doors import serving
from support.polling import wait_until
from support.running import LoopThread

from medport.errors import InputError, MedportError, row_of
from medport_local.serving import chain, guard, keys
from medport_local.serving.audit import AuditLog
from medport_local.serving.exchange import JSON, Events, Exchange
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing
from medport_local.serving.outcome import Outcome
from medport_local.serving.protocol import Protocol

RAN: list[str] = []


async def echo(exchange: Exchange) -> Response:
    exchange.permit("medgemma")
    body = await exchange.json()
    RAN.append(exchange.request_id)
    exchange.facts.deployed_model = "1"
    exchange.facts.endpoint = "medgemma"
    return JSON(body)


async def small(exchange: Exchange) -> Response:
    exchange.permit_any()
    return JSON(await exchange.json(limit=100))


async def forgetful(exchange: Exchange) -> Response:
    return JSON({"secret": "CANARY"})


async def named(exchange: Exchange) -> Response:
    return JSON({"endpoint": exchange.path["endpoint"]})


async def listed(exchange: Exchange) -> Response:
    return JSON([name for name in ("medgemma", "medsiglip") if exchange.may(name)])


async def dialect(exchange: Exchange) -> Response:
    exchange.permit_any()

    def render(error: MedportError) -> Response:
        return PlainTextResponse(f"own form: {error.message}", status_code=row_of(error).http)

    exchange.render_error = render
    if (await exchange.json()).get("broken"):

        def fails(error: MedportError) -> Response:
            raise RuntimeError("CANARY")

        exchange.render_error = fails
    raise InputError("no")


async def patient(exchange: Exchange) -> Response:
    exchange.permit_any()
    exchange.bound(0.2)
    exchange.bound(100)
    await exchange.within(asyncio.sleep(10))
    return JSON({})


async def inner_timeout(exchange: Exchange) -> Response:
    exchange.permit_any()

    async def fails() -> None:
        raise TimeoutError("CANARY of another library")

    await exchange.within(fails())
    return JSON({})


CLOSED: list[bool] = []


async def stream(exchange: Exchange) -> Events:
    exchange.permit("medgemma")
    body = await exchange.json()
    exchange.facts.deployed_model = "1"

    async def values() -> AsyncGenerator[object, None]:
        for i in range(int(str(body.get("count", 3)))):
            exchange.first_token()
            yield {"i": i}
            await asyncio.sleep(0.005)
        if body.get("fail"):
            raise InputError("in mid stream")

    if body.get("raw"):
        return Events(
            values(),
            close=lambda: CLOSED.append(True),
            media_type="application/json",
            encode=lambda value: orjson.dumps(value) + b"\0",
            last=None,
        )
    return Events(values(), close=lambda: CLOSED.append(True))


async def forgetful_stream(exchange: Exchange) -> Events:
    async def values() -> AsyncGenerator[object, None]:
        yield "CANARY"

    return Events(values(), close=lambda: CLOSED.append(True))


async def health(exchange: Exchange) -> Response:
    return PlainTextResponse("ok" if exchange.lifecycle.ready else "not ok")


class Hasty(Protocol):
    head_s = 0.3


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
    table = {
        "POST /echo": (echo, "infer"), "POST /small": (small, "infer"), "GET /forgetful": (forgetful, "read"),
        "GET /forgetful-admin": (forgetful, "admin"), "GET /endpoints/{endpoint}": (named, "read"),
        "GET /list": (listed, "read"), "POST /dialect": (dialect, "infer"), "GET /patient": (patient, "infer"),
        "GET /inner": (inner_timeout, "infer"), "POST /stream": (stream, "infer"),
        "GET /forgetful-stream": (forgetful_stream, "infer"), "GET /health": (health, None),
    }  # fmt: skip
    with serving(loop_thread, table, the_guard, protocol=Hasty) as found:  # type: ignore[arg-type]
        yield found


@pytest.fixture
def narrow(address: tuple[str, int], limited: tuple[KeyRing, str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=_url(address), headers={"x-goog-api-key": limited[1]}, timeout=20) as client:
        yield client


@pytest.fixture
def wide(address: tuple[str, int], limited: tuple[KeyRing, str, str]) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=_url(address), headers={"x-goog-api-key": limited[2]}, timeout=20) as client:
        yield client


def _url(address: tuple[str, int]) -> str:
    return f"http://{address[0]}:{address[1]}"


# Scopes


def test_path_that_names_an_endpoint_is_for_the_keys_of_that_endpoint(narrow: httpx.Client) -> None:
    assert narrow.get("/endpoints/medgemma").status_code == 200

    refused = narrow.get("/endpoints/medsiglip")

    assert refused.status_code == 403
    assert refused.json()["error"]["status"] == "PERMISSION_DENIED"
    assert "medsiglip" not in refused.text


@pytest.mark.parametrize("path", ["/endpoints/MEDGEMMA", "/endpoints/medgemma%00", "/endpoints/medgemma%20"])
def test_name_that_is_almost_right_is_not_right(narrow: httpx.Client, path: str) -> None:
    assert narrow.get(path).status_code == 403


def test_list_leaves_out_what_the_key_is_not_for(narrow: httpx.Client, wide: httpx.Client) -> None:
    assert narrow.get("/list").json() == ["medgemma"]
    assert wide.get("/list").json() == ["medgemma", "medsiglip"]


def test_answer_of_a_handler_that_forgot_to_ask_is_kept_back(
    wide: httpx.Client, narrow: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    for client in (wide, narrow):
        answer = client.get("/forgetful")
        assert answer.status_code == 500
        assert "CANARY" not in answer.text
    assert "/forgetful answers without asking" in caplog.text


def test_stream_of_a_handler_that_forgot_to_ask_is_kept_back_and_closed(wide: httpx.Client) -> None:
    CLOSED.clear()

    answer = wide.get("/forgetful-stream")

    assert answer.status_code == 500
    assert "CANARY" not in answer.text
    assert CLOSED == [True]


# Errors and deadlines


def test_error_is_rendered_in_the_handlers_own_form(wide: httpx.Client) -> None:
    answer = wide.post("/dialect", json={})

    assert (answer.status_code, answer.text) == (400, "own form: no")


def test_form_that_fails_itself_becomes_the_envelope(wide: httpx.Client) -> None:
    answer = wide.post("/dialect", json={"broken": True})

    assert answer.json()["error"]["code"] == 500
    assert "CANARY" not in answer.text


def test_deadline_can_only_be_lowered(wide: httpx.Client) -> None:
    started = time.monotonic()

    assert wide.get("/patient").status_code == 504
    assert wide.get("/patient", headers={"X-Request-Timeout-S": "50"}).status_code == 504
    assert time.monotonic() - started < 8


def test_timeout_of_another_library_is_not_the_callers_deadline(
    wide: httpx.Client, caplog: pytest.LogCaptureFixture
) -> None:
    assert wide.get("/inner").status_code == 500
    assert "TimeoutError at test_door.py" in caplog.text
    assert "CANARY" not in caplog.text


def test_each_body_has_the_limit_of_its_route(wide: httpx.Client) -> None:
    assert wide.post("/small", json={"a": "x" * 50}).status_code == 200
    assert wide.post("/small", json={"a": "x" * 150}).status_code == 413


# Streams


def test_stream_ends_with_the_last_part(wide: httpx.Client) -> None:
    text = wide.post("/stream", json={"count": 2}).text

    assert text == 'data: {"i":0}\n\ndata: {"i":1}\n\ndata: [DONE]\n\n'


def test_stream_may_have_another_form(wide: httpx.Client) -> None:
    answer = wide.post("/stream", json={"count": 2, "raw": True})

    assert answer.headers["content-type"] == "application/json"
    assert answer.content == b'{"i":0}\0{"i":1}\0'


def test_error_in_mid_stream_comes_in_the_streams_form(wide: httpx.Client, outcomes: list[Outcome]) -> None:
    parts = wide.post("/stream", json={"count": 1, "raw": True, "fail": True}).content.split(b"\0")

    assert json.loads(parts[1])["error"]["code"] == 400
    wait_until(lambda: len(outcomes) == 1)
    assert (outcomes[0].status, outcomes[0].error, outcomes[0].code) == (200, "InputError", "INVALID_ARGUMENT")


def test_time_to_first_token_is_within_the_request(wide: httpx.Client, outcomes: list[Outcome]) -> None:
    wide.post("/stream", json={"count": 5})

    wait_until(lambda: len(outcomes) == 1)
    assert outcomes[0].first_token_s is not None
    assert 0 < outcomes[0].first_token_s <= outcomes[0].seconds


# Attack 1: the way in


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer ' OR 1=1 --"},
        {"Authorization": "Bearer"},
        {"Host": "x/health?x="},
        {"Host": "health", "X-Original-URL": "/health", "X-Rewrite-URL": "/health"},
        {"X-Forwarded-For": "127.0.0.1", "X-Forwarded-Host": "localhost"},
        {"x-api-key": "root"},
        {"Cookie": "key=root"},
    ],
)
def test_attack_1_no_header_opens_a_door(address: tuple[str, int], headers: dict[str, str]) -> None:
    answer = httpx.get(f"{_url(address)}/list", headers=headers)

    assert answer.status_code == 401
    assert answer.json()["error"]["status"] == "UNAUTHENTICATED"


@pytest.mark.parametrize(
    "path", ["/health/../list", "//list", "/list/", "/LIST", "/health%2f..%2flist", "/list;x=/health"]
)
def test_attack_1_no_spelling_of_a_path_goes_around_the_door(address: tuple[str, int], path: str) -> None:
    with socket.create_connection(address, timeout=10) as raw:
        raw.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        status = raw.recv(4096).split(b" ")[1]
    assert status in (b"401", b"404")


def test_attack_1_redirects_follow_no_host_header(address: tuple[str, int]) -> None:
    # Of the whole app: the router would answer 307 to http://evil/list.
    from medport_local import app

    made = app.create_app(app.Settings(api_key="k" * 20))
    assert made.router.redirect_slashes is False


# Attack 3: size and time


def _answer_to(address: tuple[str, int], data: bytes, timeout_s: float = 15) -> bytes:
    with socket.create_connection(address, timeout=timeout_s) as raw:
        raw.sendall(data)
        got = b""
        with contextlib.suppress(ConnectionResetError):
            while piece := raw.recv(65536):
                got += piece
        return got


@pytest.mark.parametrize("size", [20_000, 60_000, 150_000, 2_000_000])
def test_attack_3_giant_header_is_refused(
    address: tuple[str, int], limited: tuple[KeyRing, str, str], size: int
) -> None:
    head = f"GET /list HTTP/1.1\r\nHost: x\r\nConnection: close\r\nx-goog-api-key: {limited[2]}\r\nX-A: ".encode()
    with socket.create_connection(address, timeout=15) as raw:
        try:
            raw.sendall(head + b"a" * size + b"\r\n\r\n")
            got = raw.recv(4096)
        except OSError:  # it hung up while we were still talking
            got = b""
    assert (b" 400 " in got or not got) if size > guard.MAX_HEAD_BYTES else b" 200 " in got


def test_attack_3_long_target_is_refused(address: tuple[str, int]) -> None:
    assert b" 400 " in _answer_to(
        address, b"GET /" + b"a" * 40_000 + b" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    )


def _post(path: str, key: str, *more: str) -> bytes:
    return "\r\n".join(
        [f"POST {path} HTTP/1.1", "Host: x", f"x-goog-api-key: {key}", "Connection: close", *more, "", ""]
    ).encode()


@pytest.mark.parametrize("length", ["4000000000", "9" * 19, "9" * 5000])
def test_attack_3_declared_size_without_a_body_is_refused_at_once(
    address: tuple[str, int], limited: tuple[KeyRing, str, str], length: str
) -> None:
    started = time.monotonic()

    got = _answer_to(address, _post("/echo", limited[2], f"Content-Length: {length}"))

    assert b" 413 " in got or b" 400 " in got
    assert time.monotonic() - started < 5


def test_attack_3_gzip_bomb_is_not_opened(wide: httpx.Client) -> None:
    bomb = gzip.compress(b" " * 50_000_000)

    assert wide.post("/echo", content=bomb, headers={"Content-Encoding": "gzip"}).status_code == 400
    assert wide.post("/echo", content=bomb, headers={"Content-Encoding": "br"}).status_code == 400


def test_attack_3_body_in_chunks_of_one_byte_is_refused(
    address: tuple[str, int], limited: tuple[KeyRing, str, str]
) -> None:
    body = b"1\r\n \r\n" * 3_000_000
    with socket.create_connection(address, timeout=30) as raw:
        started = time.monotonic()
        try:
            raw.sendall(_post("/echo", limited[2], "Transfer-Encoding: chunked") + body + b"0\r\n\r\n")
            got = raw.recv(4096)
        except OSError:
            got = b""
    assert b" 200 " not in got
    # Not a speed: without the limit all three million go through the parser, one by one.
    assert time.monotonic() - started < 20


def test_body_in_small_but_honest_chunks_is_taken(wide: httpx.Client) -> None:
    text = orjson.dumps({"a": "x" * 200_000})

    answer = wide.post("/echo", content=(text[i : i + 100] for i in range(0, len(text), 100)))

    assert answer.status_code == 200


def test_attack_3_body_that_stops_coming_is_given_up(
    address: tuple[str, int], limited: tuple[KeyRing, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STALL_S", 0.3)

    got = _answer_to(address, _post("/echo", limited[2], "Content-Length: 100") + b"{")

    assert b" 400 " in got
    assert b"too slowly" in got


def test_attack_3_body_that_drips_is_given_up(
    address: tuple[str, int], limited: tuple[KeyRing, str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "STALL_S", 0.5)
    with socket.create_connection(address, timeout=10) as raw:
        raw.sendall(_post("/echo", limited[2], "Content-Length: 1000000"))
        got = b""
        raw.settimeout(0.1)
        for _ in range(60):
            try:
                raw.sendall(b" ")  # each well within the stall limit
                got = raw.recv(4096)
                break
            except TimeoutError:
                continue
        raw.settimeout(5)
        with contextlib.suppress(ConnectionResetError):
            while piece := raw.recv(4096):
                got += piece
    assert b"too slowly" in got


@pytest.mark.parametrize("sent", [b"", b"GET /list HT", b"GET /list HTTP/1.1\r\nHost: x\r\n"])
def test_attack_3_head_that_does_not_come_ends_the_connection(address: tuple[str, int], sent: bytes) -> None:
    with socket.create_connection(address, timeout=5) as raw:
        raw.sendall(sent)
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(100) == b""


def test_attack_3_head_that_drips_on_a_used_connection_ends_it(
    address: tuple[str, int], limited: tuple[KeyRing, str, str]
) -> None:
    with socket.create_connection(address, timeout=5) as raw:
        raw.sendall(f"GET /list HTTP/1.1\r\nHost: x\r\nx-goog-api-key: {limited[2]}\r\n\r\n".encode())
        assert b" 200 " in raw.recv(4096)
        ended = False
        for _ in range(40):
            try:
                raw.sendall(b"G")
                raw.settimeout(0.05)
                ended = raw.recv(100) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
    assert ended


def test_slow_answer_is_not_taken_for_a_slow_caller(wide: httpx.Client) -> None:
    # Longer than a head may take, on one connection, several times.
    for _ in range(3):
        assert wide.post("/stream", json={"count": 100}).text.endswith("[DONE]\n\n")


def test_rest_of_a_refused_body_may_not_come_for_ever(address: tuple[str, int]) -> None:
    with socket.create_connection(address, timeout=5) as raw:
        raw.sendall(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n")
        ended = False
        for _ in range(60):
            try:
                raw.sendall(b" ")
                raw.settimeout(0.05)
                ended = raw.recv(4096) == b""
            except TimeoutError:
                continue
            except OSError:
                ended = True
            if ended:
                break
    assert ended


# Life


def test_while_refusing_new_requests_get_503_and_health_still_answers(
    wide: httpx.Client, the_guard: Guard, address: tuple[str, int]
) -> None:
    assert httpx.get(f"{_url(address)}/health").text == "ok"
    the_guard.lifecycle.drain()
    assert wide.get("/list").status_code == 200
    assert httpx.get(f"{_url(address)}/health").text == "not ok"
    the_guard.lifecycle.refuse()

    answer = wide.get("/list")

    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Connection"] == "close"
    assert httpx.get(f"{_url(address)}/health").text == "not ok"


def test_requests_under_way_are_counted(wide: httpx.Client, the_guard: Guard, loop_thread: LoopThread) -> None:
    with wide.stream("POST", "/stream", json={"count": 200}) as answer:
        lines = answer.iter_lines()  # held: the connection ends with it
        next(lines)
        assert the_guard.lifecycle.running == 1
        assert not loop_thread.run(the_guard.lifecycle.idle(0.05))

    assert loop_thread.run(the_guard.lifecycle.idle(5))
    assert the_guard.lifecycle.running == 0


# Limits


def test_rate_of_a_key_is_429_with_retry_after(address: tuple[str, int], the_guard: Guard, tmp_path: Path) -> None:
    file = tmp_path / "rate.json"
    key, other = keys.add(file, "slow", rate="2/h"), keys.add(file, "other", rate="2/h")
    the_guard.keys = KeyRing(file=file)
    RAN.clear()
    with httpx.Client(base_url=_url(address), headers={"x-goog-api-key": key}) as client:
        statuses = [client.post("/echo", json={}).status_code for _ in range(2)]
        refused = client.post("/echo", json={})
        reading = client.get("/list").status_code

    assert statuses == [200, 200]
    assert refused.status_code == 429
    assert 1 < int(refused.headers["Retry-After"]) <= 1801
    assert refused.json()["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert len(RAN) == 2
    assert reading == 200
    assert httpx.post(f"{_url(address)}/echo", json={}, headers={"x-goog-api-key": other}).status_code == 200


def test_places_of_a_key_are_given_back_also_when_the_caller_leaves(
    address: tuple[str, int], the_guard: Guard, tmp_path: Path
) -> None:
    file = tmp_path / "rate.json"
    key = keys.add(file, "one", concurrent=1)
    the_guard.keys = KeyRing(file=file)
    with httpx.Client(base_url=_url(address), headers={"x-goog-api-key": key}) as client:
        with client.stream("POST", "/stream", json={"count": 2000}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert client.post("/echo", json={}).status_code == 429
        wait_until(lambda: the_guard.lifecycle.running == 0)

        assert client.post("/echo", json={}).status_code == 200


# The audit log


@pytest.fixture
def audit(the_guard: Guard, tmp_path: Path) -> Iterator[AuditLog]:
    the_guard.audit = AuditLog(tmp_path / "audit")
    yield the_guard.audit
    the_guard.audit.close()


def _records(directory: Path, request_id: str) -> list[dict[str, object]]:
    wait_until(lambda: any(each["event"] == "request" for each in chain.find(directory, request_id)))
    return chain.find(directory, request_id)


def test_answer_leaves_after_its_line_with_the_digests_of_what_was_sent(
    wide: httpx.Client, audit: AuditLog, tmp_path: Path
) -> None:
    body = b'{"prompt":  "CANARY"}'

    answer = wide.post("/echo", content=body, headers={"X-Request-Id": "r1"})

    # At once: the line was there before the answer.
    (record,) = chain.find(tmp_path / "audit", "r1")
    assert (record["key"], record["status"], record["endpoint"], record["error"]) == (
        "wide",
        200,
        "medgemma",
        None,
    )
    assert record["input_hmac_sha256"] == chain.keyed(tmp_path / "audit", body)
    assert record["output_hmac_sha256"] == chain.keyed(tmp_path / "audit", answer.content)
    assert "CANARY" not in json.dumps(record)


def test_large_body_has_the_digest_of_its_bytes(wide: httpx.Client, audit: AuditLog, tmp_path: Path) -> None:
    body = orjson.dumps({"a": "x" * 3_000_000})

    wide.post("/echo", content=body, headers={"X-Request-Id": "big"})

    (record,) = chain.find(tmp_path / "audit", "big")
    assert record["input_hmac_sha256"] == record["output_hmac_sha256"] == chain.keyed(tmp_path / "audit", body)


def test_stream_has_a_line_before_its_first_byte_and_one_before_its_last(
    wide: httpx.Client, audit: AuditLog, tmp_path: Path
) -> None:
    got = b""
    with wide.stream("POST", "/stream", json={"count": 30}, headers={"X-Request-Id": "s1"}) as answer:
        for piece in answer.iter_raw():
            got += piece
            events = [each["event"] for each in chain.find(tmp_path / "audit", "s1")]
            assert events == (["began", "request"] if b"DONE" in got else events)
            assert events[0] == "began"

    record = _records(tmp_path / "audit", "s1")[-1]
    assert record["output_hmac_sha256"] == chain.keyed(tmp_path / "audit", got)


def test_caller_who_leaves_is_in_the_log_too(wide: httpx.Client, audit: AuditLog, tmp_path: Path) -> None:
    with wide.stream("POST", "/stream", json={"count": 2000}, headers={"X-Request-Id": "left"}) as answer:
        next(answer.iter_lines())

    assert _records(tmp_path / "audit", "left")[-1]["status"] == 499


def test_what_reached_no_model_is_not_in_the_log(
    wide: httpx.Client, narrow: httpx.Client, audit: AuditLog, tmp_path: Path
) -> None:
    wide.get("/list", headers={"X-Request-Id": "a"})
    wide.post("/echo", content=b"{", headers={"X-Request-Id": "b"})
    narrow.get("/endpoints/medsiglip", headers={"X-Request-Id": "c"})
    wide.post("/echo", json={}, headers={"X-Request-Id": "d"})

    assert chain.verify(tmp_path / "audit").lines == 1


def test_answer_without_a_line_is_kept_back(
    wide: httpx.Client, audit: AuditLog, outcomes: list[Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [1000.0]
    monkeypatch.setattr(audit, "_monotonic", lambda: clock[0])
    RAN.clear()

    def broken(handle: int, data: bytes) -> int:
        raise OSError(28, "no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", broken)
        first = wide.post("/echo", json={"secret": "CANARY"})
        second = wide.post("/echo", json={"secret": "CANARY"})
        clock[0] += 6
        stream = wide.post("/stream", json={})
        wait_until(lambda: len(outcomes) == 3)  # a line is tried for again after the answer
    clock[0] += 6

    for refused in (first, second, stream):
        assert refused.status_code == 503
        assert "audit log" in refused.text
        assert "CANARY" not in refused.text
        assert int(refused.headers["Retry-After"]) >= 1
    assert len(RAN) == 1  # the second was refused before it reached a model
    assert wide.post("/echo", json={}).status_code == 200


def test_many_requests_at_once_make_one_chain(
    address: tuple[str, int],
    limited: tuple[KeyRing, str, str],
    audit: AuditLog,
    loop_thread: LoopThread,
    tmp_path: Path,
) -> None:
    async def ask() -> list[int]:
        headers = {"x-goog-api-key": limited[2]}
        async with httpx.AsyncClient(base_url=_url(address), headers=headers, timeout=30) as client:
            answers = await asyncio.gather(*(client.post("/echo", json={"i": i}) for i in range(150)))
            return [each.status_code for each in answers]

    assert asyncio.run(ask()) == [200] * 150
    report = chain.verify(tmp_path / "audit")
    assert (report.unbroken, report.lines) == (True, 150)


# Who watches


def test_outcome_of_each_kind_of_end(
    wide: httpx.Client, narrow: httpx.Client, address: tuple[str, int], outcomes: list[Outcome]
) -> None:
    wide.post("/echo", json={})
    wide.post("/echo", content=b"{")
    narrow.get("/endpoints/medsiglip")
    httpx.get(f"{_url(address)}/list")
    with wide.stream("POST", "/stream", json={"count": 2000}) as answer:
        next(answer.iter_lines())

    wait_until(lambda: len(outcomes) == 5)
    found = [(each.route, each.status, each.code, each.key) for each in outcomes]
    assert found == [
        ("/echo", 200, None, "wide"),
        ("/echo", 400, "INVALID_ARGUMENT", "wide"),
        ("/endpoints/{endpoint}", 403, "PERMISSION_DENIED", None),
        ("/list", 401, "UNAUTHENTICATED", None),
        ("/stream", 200, None, "wide"),
    ]


def test_observer_that_fails_harms_nobody(
    wide: httpx.Client, the_guard: Guard, caplog: pytest.LogCaptureFixture, outcomes: list[Outcome]
) -> None:
    def fails(outcome: Outcome) -> None:
        raise ValueError("CANARY")

    the_guard.observers = (fails, outcomes.append)

    assert wide.post("/echo", json={}).status_code == 200
    wait_until(lambda: len(outcomes) == 1)
    assert "ValueError" in caplog.text
    assert "CANARY" not in caplog.text


def test_line_of_the_log_in_json(wide: httpx.Client, caplog: pytest.LogCaptureFixture) -> None:
    from medport_local.serving.logs import JsonFormatter

    caplog.set_level(logging.INFO)
    wide.post("/echo?CANARY", json={"a": "CANARY"}, headers={"X-Request-Id": "j1"})

    def lines() -> list[logging.LogRecord]:
        return [record for record in list(caplog.records) if record.name == "medport_local.access"]

    wait_until(lambda: len(lines()) == 1)
    line = json.loads(JsonFormatter().format(lines()[0]))
    assert {name: line[name] for name in ("route", "status", "request_id", "key", "endpoint", "bytes_in")} == {
        "route": "/echo", "status": 200, "request_id": "j1", "key": "wide", "endpoint": "medgemma", "bytes_in": 14,
    }  # fmt: skip
    assert line["ms"] >= 0
    assert "CANARY" not in json.dumps(line)


@pytest.mark.parametrize("form", ["text", "json"])
def test_log_tells_of_an_exception_only_the_type(form: str) -> None:
    from medport_local.serving.logs import formatter

    make: Callable[[str], logging.Formatter] = formatter  # type: ignore[assignment]
    try:
        raise ValueError("CANARY")
    except ValueError:
        import sys

        record = logging.LogRecord("asyncio", logging.ERROR, "f", 1, "it failed", None, sys.exc_info())

    said = make(form).format(record)

    assert "it failed" in said
    assert "ValueError" in said
    assert "CANARY" not in said
