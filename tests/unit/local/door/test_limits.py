"""The door while the server ends, and a key's rate and places."""

from __future__ import annotations

from pathlib import Path

import httpx
from support.door_handlers import RAN, url
from support.polling import wait_until
from support.running import LoopThread

from medport_local.serving import keys
from medport_local.serving.guard import Guard
from medport_local.serving.keyring import KeyRing


def test_while_refusing_new_requests_get_503_and_health_still_answers(
    wide: httpx.Client, the_guard: Guard, address: tuple[str, int]
) -> None:
    assert httpx.get(f"{url(address)}/health").text == "ok"
    the_guard.lifecycle.drain()
    assert wide.get("/list").status_code == 200
    assert httpx.get(f"{url(address)}/health").text == "not ok"
    the_guard.lifecycle.refuse()

    answer = wide.get("/list")

    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) >= 1
    assert answer.headers["Connection"] == "close"
    assert httpx.get(f"{url(address)}/health").text == "not ok"


def test_requests_under_way_are_counted(wide: httpx.Client, the_guard: Guard, loop_thread: LoopThread) -> None:
    with wide.stream("POST", "/stream", json={"count": 200}) as answer:
        lines = answer.iter_lines()  # held: the connection ends with it
        next(lines)
        assert the_guard.lifecycle.running == 1
        assert not loop_thread.run(the_guard.lifecycle.idle(0.05))

    assert loop_thread.run(the_guard.lifecycle.idle(5))
    assert the_guard.lifecycle.running == 0


def test_rate_of_a_key_is_429_with_retry_after(address: tuple[str, int], the_guard: Guard, tmp_path: Path) -> None:
    file = tmp_path / "rate.json"
    key, other = keys.add(file, "slow", rate="2/h"), keys.add(file, "other", rate="2/h")
    the_guard.keys = KeyRing(file=file)
    RAN.clear()
    with httpx.Client(base_url=url(address), headers={"x-goog-api-key": key}) as client:
        statuses = [client.post("/echo", json={}).status_code for _ in range(2)]
        refused = client.post("/echo", json={})
        reading = client.get("/list").status_code

    assert statuses == [200, 200]
    assert refused.status_code == 429
    assert 1 < int(refused.headers["Retry-After"]) <= 1801
    assert refused.json()["error"]["status"] == "RESOURCE_EXHAUSTED"
    assert len(RAN) == 2
    assert reading == 200
    assert httpx.post(f"{url(address)}/echo", json={}, headers={"x-goog-api-key": other}).status_code == 200


def test_places_of_a_key_are_given_back_also_when_the_caller_leaves(
    address: tuple[str, int], the_guard: Guard, tmp_path: Path
) -> None:
    file = tmp_path / "rate.json"
    key = keys.add(file, "one", concurrent=1)
    the_guard.keys = KeyRing(file=file)
    with httpx.Client(base_url=url(address), headers={"x-goog-api-key": key}) as client:
        with client.stream("POST", "/stream", json={"count": 2000}) as answer:
            lines = answer.iter_lines()
            next(lines)
            assert client.post("/echo", json={}).status_code == 429
        wait_until(lambda: the_guard.lifecycle.running == 0)

        assert client.post("/echo", json={}).status_code == 200
