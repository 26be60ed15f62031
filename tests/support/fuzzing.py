"""Generated requests may ask for hours of work, which would prove nothing: here they are made small.

schemathesis loads this file for its hooks.
"""

from __future__ import annotations

from typing import Any

import schemathesis

MAX_TOKENS = 4
MIN_TIMEOUT_S = 30.0
_TIMEOUT = "X-Request-Timeout-S"
_LIMITS = ("max_tokens", "max_completion_tokens")


@schemathesis.hook
def before_call(context: Any, case: Any, kwargs: dict[str, Any]) -> None:
    """Few tokens, and enough time for them."""
    bound(case.body)
    given = (case.headers or {}).get(_TIMEOUT)
    if given is not None and _seconds(given) < MIN_TIMEOUT_S:
        case.headers[_TIMEOUT] = str(MIN_TIMEOUT_S)


def bound(body: Any) -> None:
    """Make a request a small one, in place. What is out of range stays so."""
    for each in _requests(body):
        for name in _LIMITS:
            if _is_above(each.get(name), MAX_TOKENS):
                each[name] = MAX_TOKENS
        if all(each.get(name) is None for name in _LIMITS):  # a null is no limit either
            each["max_tokens"] = MAX_TOKENS
        if "prompt" in each and each.get("stream") is True:
            each["stream"] = False  # its NUL-separated values are no JSON, whatever their media type says
        if _is_above(each.get("min_tokens"), 0):
            each["min_tokens"] = 1


def _requests(body: Any) -> list[dict[str, Any]]:
    if not isinstance(body, dict):
        return []
    instances = body.get("instances")
    found = instances if isinstance(instances, list) else [body]
    return [each for each in found if isinstance(each, dict) and ("messages" in each or "prompt" in each)]


def _is_above(value: Any, bound: int) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and bound < value <= 131_072


def _seconds(given: Any) -> float:
    try:
        seconds = float(given)
    except ValueError:
        return MIN_TIMEOUT_S
    return seconds if seconds > 0 else MIN_TIMEOUT_S
