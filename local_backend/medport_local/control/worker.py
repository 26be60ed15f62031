"""Threads that do what takes long: the jobs of one lane one after another, lanes side by side."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

Job = Callable[[], None]

logger = logging.getLogger(__name__)


class LeftOff(Exception):
    """Raised by a job that the server's end interrupts; the next start goes on from what is recorded."""


class Worker:
    """A few threads. They start with the first jobs.

    Args:
        threads: how many lanes get on at once.
    """

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="control")
        self._changed = threading.Condition()
        self._lanes: dict[str, deque[Job]] = {}
        """Those with a job that runs or waits; the first of each is the one that runs."""
        self._closing = threading.Event()

    @property
    def closing(self) -> bool:
        """Long jobs ask this, and leave off."""
        return self._closing.is_set()

    def do(self, lane: str, job: Job) -> None:
        """Do a job after those that the lane has already. Nothing is done once the worker closes."""
        with self._changed:
            if self.closing:
                return
            waiting = self._lanes.setdefault(lane, deque())
            waiting.append(job)
            if len(waiting) == 1:
                self._pool.submit(self._next, lane)

    def pause(self, seconds: float) -> bool:
        """Wait, for a job; true at once if the worker closes."""
        return self._closing.wait(seconds)

    def quiet(self, timeout_s: float) -> bool:
        """Wait until no job runs or waits; whether that came."""
        until = time.monotonic() + timeout_s
        with self._changed:
            while self._lanes:
                left = until - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(left)
            return True

    def close(self) -> None:
        """Begin no more jobs and wait for those that run."""
        # Under the lock: who hands a job in meanwhile finds a pool that takes it.
        with self._changed:
            self._closing.set()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _next(self, lane: str) -> None:
        with self._changed:
            job = self._lanes[lane][0]
        try:
            if not self.closing:
                job()
        except LeftOff:
            pass
        except Exception as fault:
            # A job answers for its own faults; one that does not must not stop the lane.
            logger.error("a job of %s failed: %s", lane, type(fault).__name__, exc_info=fault)
        with self._changed:
            waiting = self._lanes[lane]
            waiting.popleft()
            if not waiting:
                del self._lanes[lane]
                self._changed.notify_all()
            elif not self.closing:
                self._pool.submit(self._next, lane)
