"""The audit log: a line before each answer, or no answer."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Iterator
from pathlib import Path

import httpx
import orjson
import pytest
from support.door_handlers import RAN, url
from support.polling import wait_until
from support.running import LoopThread

from medport_local.serving import chain
from medport_local.serving.audit import AuditLog
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing
from medport_local.serving.outcome import Outcome


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
        async with httpx.AsyncClient(base_url=url(address), headers=headers, timeout=30) as client:
            answers = await asyncio.gather(*(client.post("/echo", json={"i": i}) for i in range(150)))
            return [each.status_code for each in answers]

    assert asyncio.run(ask()) == [200] * 150
    report = chain.verify(tmp_path / "audit")
    assert (report.unbroken, report.lines) == (True, 150)
