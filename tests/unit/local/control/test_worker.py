"""Jobs in lanes: in order within one, side by side between them, and no job stops its lane."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import pytest

from medport_local.control.worker import LeftOff, Worker


def test_the_jobs_of_a_lane_are_done_one_after_another_in_order() -> None:
    worker, done, inside = Worker(4), list[int](), threading.Lock()

    def job(number: int) -> None:
        assert inside.acquire(blocking=False)
        done.append(number)
        inside.release()

    for number in range(50):
        worker.do("lane", lambda number=number: job(number))  # type: ignore[misc]

    assert worker.quiet(10)
    assert done == list(range(50))
    worker.close()


def test_lanes_are_done_side_by_side() -> None:
    worker, both = Worker(2), threading.Barrier(2, timeout=10)

    for lane in ("one", "other"):
        worker.do(lane, lambda: both.wait() and None)

    assert worker.quiet(10)
    assert not both.broken
    worker.close()


def test_a_job_that_fails_does_not_stop_its_lane_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    worker, done = Worker(1), list[str]()

    def failing() -> None:
        raise RuntimeError

    worker.do("lane", failing)
    worker.do("lane", lambda: done.append("next"))

    assert worker.quiet(10)
    assert done == ["next"]
    assert "a job of lane failed" in caplog.text
    worker.close()


def test_a_job_that_the_servers_end_interrupts_is_no_failure(caplog: pytest.LogCaptureFixture) -> None:
    worker, begun = Worker(1), threading.Event()

    def long() -> None:
        begun.set()
        if worker.pause(60):
            raise LeftOff

    with caplog.at_level(logging.WARNING):
        worker.do("lane", long)
        worker.do("lane", lambda: pytest.fail("it was begun after the end"))
        begun.wait(10)
        worker.close()

    assert caplog.text == ""


def test_nothing_is_begun_once_the_worker_is_closed() -> None:
    worker, done = Worker(1), list[str]()
    worker.close()

    worker.do("lane", lambda: done.append("late"))

    assert done == []


def test_waiting_for_quiet_ends_when_the_time_is_over() -> None:
    worker, go = Worker(1), threading.Event()
    worker.do("lane", lambda: go.wait(10) and None)

    assert not worker.quiet(0.01)
    go.set()
    assert worker.quiet(10)
    worker.close()


def test_a_job_that_comes_just_as_the_worker_closes_is_taken_or_dropped_and_no_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    worker, done = Worker(1), list[str]()
    submit, closing = worker._pool.submit, threading.Thread(target=worker.close)

    def late(*args: Any) -> Any:
        closing.start()
        time.sleep(0.1)
        return submit(*args)

    monkeypatch.setattr(worker._pool, "submit", late)

    worker.do("lane", lambda: done.append("job"))
    closing.join()

    assert done in ([], ["job"])
