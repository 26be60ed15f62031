"""Which quotas a plan needs at its peak, and what Google says of them."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

import pytest
from support.deploy_plans import deployed, lock, spec

from medport.errors import AuthError, QuotaExceeded
from medport_deploy.control.credentials import bearer
from medport_deploy.plan import capacity, diff, quota
from medport_deploy.plan.capacity import Capacity, Machines
from medport_deploy.plan.quota import Headroom, ServiceUsage

METRIC = "aiplatform.googleapis.com/custom_model_serving_nvidia_l4_gpus"
OTHER = "77" * 20


class Usage(BaseHTTPRequestHandler):
    """Answers as the Service Usage API does."""

    answer: ClassVar[tuple[int, Any]] = (200, {})
    asked: ClassVar[list[tuple[str, str]]] = []

    def do_GET(self) -> None:
        self.asked.append((self.path, self.headers["Authorization"]))
        status, body = self.answer
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None: ...


@contextmanager
def usage(status: int, body: Any) -> Iterator[ServiceUsage]:
    Usage.answer, Usage.asked = (status, body), []
    with ThreadingHTTPServer(("127.0.0.1", 0), Usage) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        limits = ServiceUsage(
            "radiology", bearer(lambda: "a-token"), address=f"http://127.0.0.1:{server.server_port}"
        )
        try:
            yield limits
        finally:
            limits.close()
            server.shutdown()
            thread.join()


def answer(*buckets: dict[str, Any], unit: str = "1/{project}/{region}") -> dict[str, Any]:
    return {"metric": METRIC, "consumerQuotaLimits": [{"unit": unit, "quotaBuckets": list(buckets)}]}


HERE = {"effectiveLimit": "4", "dimensions": {"region": "europe-west4"}}
ELSEWHERE = {"effectiveLimit": "16", "dimensions": {"region": "us-central1"}}
EVERYWHERE = {"effectiveLimit": "1"}


def test_canary_needs_two_fleets_at_its_peak() -> None:
    wanted = spec(model={"replicas": {"min": 2, "max": 3}})
    found = deployed(wanted, lock(wanted))

    machines = capacity.of(wanted, found, diff.rows(wanted, lock(wanted, commit=OTHER), found))

    assert quota.needs(machines) == (Headroom(METRIC, now=4, peak=8, most=12),)


def test_recreating_needs_no_more_than_there_is() -> None:
    wanted = spec(rollout={"strategy": "recreate"})
    found = deployed(wanted, lock(wanted))

    machines = capacity.of(wanted, found, diff.rows(wanted, lock(wanted, commit=OTHER), found))

    assert quota.needs(machines) == (Headroom(METRIC, now=2, peak=2, most=2),)


def test_machines_without_accelerators_need_processors() -> None:
    phase = (Machines("n1-standard-8", None, 0, 2, 3),)

    assert quota.needs(Capacity((), phase, phase)) == (
        Headroom("aiplatform.googleapis.com/custom_model_serving_cpus", now=0, peak=16, most=24),
    )


def test_limit_is_that_of_the_location() -> None:
    with usage(200, answer(EVERYWHERE, ELSEWHERE, HERE)) as limits:
        assert limits.limit(METRIC, "europe-west4") == 4

    path, authorization = Usage.asked[0]
    assert path.endswith(
        "/projects/radiology/services/aiplatform.googleapis.com/consumerQuotaMetrics/"
        "aiplatform.googleapis.com%2Fcustom_model_serving_nvidia_l4_gpus"
    )
    assert authorization == "Bearer a-token"


def test_limit_of_a_location_without_its_own_is_that_of_all() -> None:
    with usage(200, answer(ELSEWHERE, EVERYWHERE)) as limits:
        assert limits.limit(METRIC, "europe-west4") == 1


def test_limit_that_is_left_out_is_zero_and_minus_one_is_none() -> None:
    with usage(200, answer({"dimensions": {"region": "europe-west4"}})) as limits:
        assert limits.limit(METRIC, "europe-west4") == 0
    with usage(200, answer({**HERE, "effectiveLimit": "-1"})) as limits:
        assert limits.limit(METRIC, "europe-west4") is None


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (403, {"error": {"code": 403, "message": "no permission", "status": "PERMISSION_DENIED"}}, "403"),
        (200, b"<html>", "cannot be read"),
        (200, {"consumerQuotaLimits": [1]}, "cannot be read"),
        (200, answer(HERE, unit="1/{project}"), "no limit for this location"),
    ],
)
def test_limit_that_cannot_be_read_says_why_and_fails_nothing(status: int, body: Any, said: str) -> None:
    with usage(status, body) as limits:
        (found,) = quota.headroom([Headroom(METRIC, 0, 2, 2)], limits, "europe-west4")

    assert said in (found.unread or "")
    assert (found.limit, found.short) == (None, False)


def test_server_that_is_not_there_is_no_failure_of_the_plan() -> None:
    limits = ServiceUsage("radiology", bearer(lambda: "a-token"), address="http://127.0.0.1:1")

    (found,) = quota.headroom([Headroom(METRIC, 0, 2, 2)], limits, "europe-west4")

    assert "could not be reached" in (found.unread or "")
    limits.close()


def test_accelerator_whose_quota_has_no_known_name_is_not_asked_for() -> None:
    class Never:
        def limit(self, metric: str, location: str) -> int | None:
            raise AssertionError(metric)

    phase = (Machines("a4-highgpu-8g", "NVIDIA_B200", 8, 1, 1),)
    (found,) = quota.headroom(quota.needs(Capacity((), phase, phase)), Never(), "europe-west4")

    assert found.unread == "its name is not known here"
    assert found.peak == 8


def test_limit_of_zero_is_refused_with_both_numbers() -> None:
    with pytest.raises(QuotaExceeded, match="is 0 in europe-west4, and 2 are needed at once"):
        quota.require([Headroom(METRIC, 0, 2, 2, limit=0)], "europe-west4")


def test_limit_as_large_as_the_peak_is_enough() -> None:
    quota.require([Headroom(METRIC, 2, 4, 8, limit=4)], "europe-west4")


def test_refusal_of_the_service_is_typed() -> None:
    with (
        usage(403, {"error": {"code": 403, "message": "x", "status": "PERMISSION_DENIED"}}) as limits,
        pytest.raises(AuthError),
    ):
        limits.limit(METRIC, "europe-west4")
