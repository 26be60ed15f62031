"""The shared host's own word for a request that takes longer than it allows."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest

from medport.errors import InputError, MedportError, Timeout
from medport_local.serving.endpoints import SHARED
from medport_local.serving.routes import _shared_error


@pytest.mark.parametrize(
    ("age_s", "error", "status"),
    [
        (SHARED.timeout_s + 1, Timeout("the deadline passed"), 503),
        (1.0, Timeout("the deadline passed"), 504),  # the caller's own, shorter wish
        (SHARED.timeout_s + 1, InputError("wrong"), 400),
    ],
)
def test_shared_host_says_that_it_took_too_long(age_s: float, error: MedportError, status: int) -> None:
    exchange: Any = SimpleNamespace(started=time.monotonic() - age_s)

    answer = _shared_error(exchange, error)

    assert answer.status_code == status
    said = orjson.loads(bytes(answer.body))["error"]["message"]
    assert ("Took too long to respond when processing" in said) == (status == 503)
