"""Which fault is tried again, how long to wait, how often, until when. Pure functions, given to tenacity."""

from __future__ import annotations

import random
from typing import Any

from tenacity import RetryCallState, retry_if_exception

from medport._call import Deadline
from medport.errors import MedportError, NotReady

FIRST_WAIT_S = 0.25
LONGEST_WAIT_S = 20.0
READY_POLL_S = 5.0


def policy(deadline: Deadline, *, max_attempts: int, ready_by: Deadline | None = None) -> dict[str, Any]:
    """Keyword arguments for tenacity's ``Retrying`` and ``AsyncRetrying``.

    A wait that would pass the deadline is not slept: the error is raised at once and says how long the server
    asked for. ``NotReady`` is tried again only while ``ready_by`` lasts, and then without a count: a cold
    endpoint takes minutes.
    """
    colds = 0

    def again(error: BaseException) -> bool:
        if isinstance(error, NotReady):
            return ready_by is not None
        return isinstance(error, MedportError) and error.retryable

    def stop(state: RetryCallState) -> bool:
        nonlocal colds
        cold = isinstance(_error(state), NotReady) and ready_by is not None
        colds += cold
        limit = ready_by if cold and ready_by is not None else deadline
        tired = not cold and state.attempt_number - colds >= max_attempts
        return tired or state.upcoming_sleep >= limit.remaining_s()

    return {"retry": retry_if_exception(again), "wait": wait_s, "stop": stop, "reraise": True}


def wait_s(state: RetryCallState) -> float:
    """What the server asked for, else full jitter over a doubling step.

    Source: M. Brooker, "Exponential Backoff and Jitter", AWS Architecture Blog, 2015.
    """
    error = _error(state)
    asked = error.retry_after_s if isinstance(error, MedportError) else None
    if asked is not None:
        return asked + random.uniform(0, FIRST_WAIT_S)  # noqa: S311 (no secret)
    if isinstance(error, NotReady):
        return READY_POLL_S
    step: float = FIRST_WAIT_S * 2 ** (state.attempt_number - 1)
    return random.uniform(0, min(LONGEST_WAIT_S, step))  # noqa: S311


def _error(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
