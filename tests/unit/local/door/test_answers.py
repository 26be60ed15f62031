"""Errors, deadlines and streams, as a caller sees them."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from support.polling import wait_until

from medport_local.serving.outcome import Outcome


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
    assert "TimeoutError at door_handlers.py" in caplog.text
    assert "CANARY" not in caplog.text


def test_each_body_has_the_limit_of_its_route(wide: httpx.Client) -> None:
    assert wide.post("/small", json={"a": "x" * 50}).status_code == 200
    assert wide.post("/small", json={"a": "x" * 150}).status_code == 413


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
