"""Waiting for a long-running operation: with back-off, with a deadline, and through what passes.

Google's client gives up at the first 500, 429 or 401 while the operation goes on in the cloud. Here only the
operation itself, the deadline, the caller or a long silence ends the wait.

Source: google.longrunning.Operations; AIP-151.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from medport.errors import AuthError, ConnectionFailed, MedportError, NotFound, Timeout
from medport_deploy.control.errors import operation_error

Json = dict[str, Any]
_SLICE_S = 0.1


@dataclass(frozen=True, slots=True)
class Clock:
    """Time, so that tests need none."""

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep


class StillRunning(MedportError):
    """The caller waits no longer; the operation goes on at the server."""


@dataclass(frozen=True, slots=True)
class Polling:
    """How to wait for an operation. Seconds throughout.

    Raises, all of ``wait``:
        What the operation ended with, as ``control.errors.operation_error``.
        Timeout: the deadline passed.
        StillRunning: ``leave`` said so.
        AuthError: the credential is refused, and a fresh one too.
        NotFound, ConnectionFailed: the server does not know it, or has been silent for ``silence_s``.
        In these four the operation may go on.
    """

    first_s: float = 0.3
    longest_s: float = 10.0
    factor: float = 1.6
    silence_s: float = 300.0
    """For how long nothing but failures may be heard."""
    unknown: int = 3
    """How many answers in a row may say that there is no such operation: lists lag behind."""
    clock: Clock = field(default_factory=Clock)

    def wait(
        self,
        get: Callable[[str], Json],
        operation: Mapping[str, Any],
        *,
        doing: str,
        deadline_s: float,
        on_stage: Callable[[str], None] = lambda stage: None,
        leave: Callable[[], bool] = lambda: False,
    ) -> Json:
        """The operation once it is done; its ``response`` is what it made.

        Args:
            get: one poll, by the operation's name; raises errors of ours.
            operation: as the call that began it answered.
            on_stage: is told each new ``deploymentStage``.
            leave: whether to wait no longer; asked ten times a second.
        """
        name, found = str(operation["name"]), dict(operation)
        until, heard, step = self.clock.now() + deadline_s, self.clock.now(), self.first_s
        stage, strangers, refused = "", 0, False
        while not found.get("done"):
            if (now := str(found.get("metadata", {}).get("deploymentStage", ""))) not in ("", stage):
                stage = now
                on_stage(stage)
            self._pause(step, until, name, doing, leave)
            step = min(self.longest_s, step * self.factor)
            try:
                found = get(name)
                heard, strangers, refused = self.clock.now(), 0, False
            except NotFound as unknown:
                strangers += 1
                if strangers >= self.unknown:
                    raise _goes_on(unknown, name) from unknown
            except AuthError as no:
                if refused or not no.renewable:
                    raise _goes_on(no, name) from no
                refused = True
            except MedportError as fault:
                if not fault.retryable:
                    raise _goes_on(fault, name) from fault
                if self.clock.now() - heard > self.silence_s:
                    raise ConnectionFailed(
                        f"{doing}: the server has not answered for {self.silence_s:.0f} s",
                        remedy=f"the operation may go on; run the same command again to wait for {name}",
                    ) from fault
                step = max(step, min(fault.retry_after_s or 0.0, self.longest_s * 3))
        if found.get("error"):
            raise operation_error(found["error"], doing)
        return found

    def _pause(self, seconds: float, until: float, name: str, doing: str, leave: Callable[[], bool]) -> None:
        # Jitter, so that several runs do not ask in step; at least half, so that none asks without end.
        end = self.clock.now() + seconds * random.uniform(0.5, 1.0)  # noqa: S311  no secret
        while True:
            now = self.clock.now()
            if leave():
                raise StillRunning(
                    f"{doing}: left while it goes on at the server",
                    remedy=f"run the same command again to wait for {name}",
                )
            if now >= until:
                raise Timeout(
                    f"{doing}: not done before the deadline",
                    remedy=f"the operation goes on; run the same command again to wait for {name}",
                )
            if now >= end:
                return
            self.clock.sleep(min(_SLICE_S, end - now, until - now))


def _goes_on(error: MedportError, name: str) -> MedportError:
    remedy = f"{error.remedy}; " if error.remedy else ""
    return type(error)(error.message, field=error.field, remedy=f"{remedy}the operation goes on: {name}")
