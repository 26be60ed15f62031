"""Metrics and traces: what is counted, what a span says, and that neither is needed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from prometheus_client.parser import text_string_to_metric_families
from support.local_server import LocalServer, local_server
from support.polling import wait_until
from support.running import LoopThread

from medport.errors import ConfigError
from medport_local.app import Settings
from medport_local.engine.embedder import EmbedderStats
from medport_local.engine.engine import EngineLimits, Stats
from medport_local.serving import keys, observe
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.observe import Metrics
from medport_local.serving.outcome import Facts, Outcome
from medport_local.serving.traces import Traces

CHAT = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 4}


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def provider(spans: InMemorySpanExporter) -> TracerProvider:
    made = TracerProvider()
    made.add_span_processor(SimpleSpanProcessor(spans))
    return made


@pytest.fixture(scope="module")
def server(
    gemma_folder: Path, siglip_folder: Path, loop_thread: LoopThread, provider: TracerProvider
) -> Iterator[LocalServer]:
    settings = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        engine_limits=EngineLimits(max_running=2, max_queue=8),
        drain_s=1.0,
    )
    with local_server(loop_thread, settings, tracer_provider=provider) as running:
        yield running


@pytest.fixture
def http(server: LocalServer) -> Iterator[httpx.Client]:
    with server.client() as client:
        yield client


def values(http: httpx.Client) -> dict[tuple[str, ...], float]:
    """Each sample by its name and its labels' values."""
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(http.get("/metrics").text)
        for sample in family.samples
    }


def outcome(**more: Any) -> Outcome:
    known: dict[str, Any] = {
        "method": "POST", "route": "/v1/chat/completions", "action": "infer", "status": 200, "error": None,
        "code": None, "request_id": "r1", "key": "gw", "facts": Facts(), "began_ns": 1_700_000_000_000_000_000,
        "seconds": 0.5, "first_token_s": None, "bytes_in": 10, "bytes_out": 20,
    }  # fmt: skip
    return Outcome(**{**known, **more})


# Metrics


def test_each_request_is_counted_by_route_status_and_error(http: httpx.Client) -> None:
    before = values(http)
    http.post("/v1/chat/completions", json=CHAT)
    http.post("/v1/chat/completions", json={**CHAT, "temperature": -1})
    http.get("/nothing")

    ok = ("medport_requests_total", "", "POST", "/v1/chat/completions", "200")
    bad = ("medport_requests_total", "InputError", "POST", "/v1/chat/completions", "400")
    none = ("medport_requests_total", "NotFound", "GET", "-", "404")
    wait_until(lambda: values(http).get(none, 0) == before.get(none, 0) + 1)
    after = values(http)
    assert after[ok] == before.get(ok, 0) + 1
    assert after[bad] == before.get(bad, 0) + 1
    code = ("medport_errors_total", "INVALID_ARGUMENT")
    assert after[code] == before.get(code, 0) + 1
    assert after[("medport_request_seconds_count", "/v1/chat/completions")] >= 2


def test_tokens_and_first_token_are_counted_by_endpoint(http: httpx.Client) -> None:
    before = values(http)
    streamed = http.post(
        "/v1/chat/completions", json={**CHAT, "stream": True, "stream_options": {"include_usage": True}}
    ).text
    usage = json.loads(streamed.split("data: ")[-2])["usage"]

    def grown(name: str) -> float:
        return values(http).get((name, "medgemma"), 0) - before.get((name, "medgemma"), 0)

    wait_until(lambda: grown("medport_first_token_seconds_count") == 1)
    assert grown("medport_prompt_tokens_total") == usage["prompt_tokens"]
    assert grown("medport_completion_tokens_total") == usage["completion_tokens"]
    assert grown("medport_tokens_generated_total") >= usage["completion_tokens"]


def test_engines_are_read_at_each_scrape(http: httpx.Client, server: LocalServer) -> None:
    body = {"instances": [{"text": "a"}, {"text": "b"}]}
    before = values(http)
    http.post("/v1/projects/local/locations/europe-west4/endpoints/medsiglip:predict", json=body)

    after = values(http)

    embedded = ("medport_embeddings_total", "medsiglip")
    assert after[embedded] == before[embedded] + 2
    stats = server.app.state.engines["medgemma"].stats()
    assert after[("medport_engine_steps_total", "medgemma")] == stats.steps
    for name in ("engine_queued", "engine_running", "engine_held"):
        assert after[(f"medport_{name}", "medgemma")] == 0
    assert after[("medport_ready",)] == 1
    assert after[("medport_requests_running",)] == 1  # the scrape itself


@pytest.mark.skipif(sys.platform != "linux", reason="read from /proc")
def test_memory_of_the_process_is_told(http: httpx.Client) -> None:
    assert values(http)[("process_resident_memory_bytes",)] > 10_000_000


def test_two_servers_count_apart() -> None:
    first, second = (Metrics(dict, Lifecycle()) for _ in range(2))

    first(outcome())

    assert b"medport_requests_total{" in first.render()[0]
    assert b"medport_requests_total{" not in second.render()[0]


def test_scraper_that_asks_for_open_metrics_gets_them() -> None:
    body, media_type = Metrics(dict, Lifecycle()).render("application/openmetrics-text; version=1.0.0")

    assert media_type.startswith("application/openmetrics-text")
    assert body.endswith(b"# EOF\n")


def test_engine_that_cannot_count_something_has_no_such_metric() -> None:
    class Stats:
        running = 3

    class Engine:
        def stats(self) -> Stats:
            return Stats()

    text = Metrics(lambda: {"m": Engine()}, Lifecycle()).render()[0].decode()

    assert 'medport_engine_running{model="m"} 3.0' in text
    assert "cache_hits" not in text


def test_work_and_memory_of_the_engine_are_told_with_their_units(http: httpx.Client, server: LocalServer) -> None:
    http.post("/v1/chat/completions", json={**CHAT, "n": 2})
    engine = server.app.state.engines["medgemma"]
    wait_until(lambda: engine.stats().held == 0)

    seen, stats = values(http), engine.stats()

    for name, told in {
        "engine_prompt_tokens_total": stats.prompt_tokens,
        "cache_hits_total": stats.cache_hits,
        "cache_misses_total": stats.cache_misses,
        "image_cache_hits_total": 0,
        "image_cache_misses_total": 0,
        "expired_total": stats.expired,
        "kv_used_bytes": 0,
        "kv_capacity_bytes": stats.kv_bytes_total,
        "reuse_used_bytes": 0,
        "prefill_tokens_per_second": stats.prefill_tokens_per_s,
    }.items():
        assert seen[(f"medport_{name}", "medgemma")] == told, name
    assert stats.cache_hits > 0
    assert stats.kv_bytes_total > 0
    for name in ("embedder_pending_bytes", "embedder_refused_total", "expired_total"):
        assert seen[(f"medport_{name}", "medsiglip")] == 0


def test_no_metric_has_a_callers_name_among_its_labels(
    gemma_folder: Path, loop_thread: LoopThread, tmp_path: Path
) -> None:
    key = keys.add(tmp_path / "keys.json", "canary-tenant", actions=("infer", "metrics"))
    settings = Settings(snapshots={"medgemma": gemma_folder}, keys_file=tmp_path / "keys.json", drain_s=1.0)
    with local_server(loop_thread, settings) as running, running.client(key) as client:
        assert client.post("/v1/chat/completions", json=CHAT).status_code == 200
        text = client.get("/metrics").text

    assert "medport_tokens_generated_total" in text
    assert "canary" not in text


def test_every_figure_of_the_engines_is_told_or_follows_from_others() -> None:
    known = {field.name for kind in (Stats, EmbedderStats) for field in fields(kind)}

    assert known - set(observe._READINGS) == {"mean_batch"}
    assert set(observe._READINGS) <= known


def test_cache_hits_are_counted_once_an_engine_tells_them() -> None:
    class Stats:
        cache_hits = 7

    class Engine:
        def stats(self) -> Stats:
            return Stats()

    text = Metrics(lambda: {"m": Engine()}, Lifecycle()).render()[0].decode()

    assert 'medport_cache_hits_total{model="m"} 7.0' in text


def test_without_the_package_the_route_says_what_to_install(
    siglip_folder: Path, loop_thread: LoopThread, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    settings = Settings(snapshots={"medsiglip": siglip_folder}, drain_s=1.0)

    with local_server(loop_thread, settings) as running, running.client() as client:
        answer = client.get("/metrics")
        assert client.get("/v1/models").status_code == 200

    assert answer.status_code == 404
    assert "medport[observe]" in answer.text


# Traces


def last_span(spans: InMemorySpanExporter, count: int = 1) -> ReadableSpan:
    wait_until(lambda: len(spans.get_finished_spans()) >= count)
    return spans.get_finished_spans()[-1]


def test_span_of_a_chat_follows_the_genai_conventions(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    spans.clear()
    answer = http.post("/v1/chat/completions", json=CHAT)
    body, request_id = answer.json(), answer.headers["X-Request-Id"]

    span = last_span(spans)

    said = dict(span.attributes or {})
    assert (span.name, span.kind) == ("chat medgemma", SpanKind.SERVER)
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "medgemma"
    assert said["gen_ai.response.model"] == "medport/medgemma-toy"
    assert said["gen_ai.usage.input_tokens"] == body["usage"]["prompt_tokens"]
    assert said["gen_ai.usage.output_tokens"] == body["usage"]["completion_tokens"]
    assert said["gen_ai.response.finish_reasons"] == (body["choices"][0]["finish_reason"],)
    assert said["server.address"] == "127.0.0.1"
    assert said["http.route"] == "/v1/chat/completions"
    assert said["http.response.status_code"] == 200
    assert said["medport.request_id"] == request_id
    assert span.status.status_code is StatusCode.UNSET
    assert span.start_time is not None
    assert span.end_time is not None
    assert 0 < span.end_time - span.start_time < 30e9


@pytest.mark.parametrize("more", [{"n": 2}, {"stream": True}, {"model": "medgemma+canary"}, {"max_tokens": 9999}])
def test_span_holds_nothing_of_what_was_asked_or_answered(
    http: httpx.Client, spans: InMemorySpanExporter, more: dict[str, Any]
) -> None:
    spans.clear()
    body = {"messages": [{"role": "user", "content": "the canary sings"}], "max_tokens": 4, "stop": ["canary"]}
    http.post("/v1/chat/completions", json={**body, **more})

    span = last_span(spans)

    assert "gen_ai.request.model" in (span.attributes or {}) or span.name == "POST /v1/chat/completions"
    assert "canary" not in span.to_json()


def test_span_of_embeddings_names_the_operation(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    spans.clear()
    path = "/v1/projects/local/locations/europe-west4/endpoints/medsiglip:predict"
    http.post(path, json={"instances": [{"text": "a"}]})

    span = last_span(spans)

    assert span.name == "embeddings medsiglip"
    assert "gen_ai.usage.output_tokens" not in (span.attributes or {})


def test_span_belongs_to_the_trace_of_the_caller(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    spans.clear()
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    http.get("/v1/models", headers={"traceparent": f"00-{trace}-{parent}-01", "tracestate": "vendor=1"})

    span = last_span(spans)

    assert span.context is not None
    assert f"{span.context.trace_id:032x}" == trace
    assert span.parent is not None
    assert f"{span.parent.span_id:016x}" == parent
    assert span.name == "GET /v1/models"


@pytest.mark.parametrize("given", ["", "nonsense", "00-0-0-01", "00-" + "0" * 32 + "-" + "0" * 16 + "-01"])
def test_parent_that_is_none_begins_a_trace(http: httpx.Client, spans: InMemorySpanExporter, given: str) -> None:
    spans.clear()
    http.get("/v1/models", headers={"traceparent": given})

    assert last_span(spans).parent is None


def test_caller_who_does_not_sample_is_obeyed(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    spans.clear()
    http.get("/v1/models", headers={"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"})
    http.get("/v1/models")

    last_span(spans)
    assert len(spans.get_finished_spans()) == 1


def test_probes_of_health_make_no_spans(http: httpx.Client, spans: InMemorySpanExporter) -> None:
    spans.clear()
    for path in ("/health", "/health/live", "/health/ready", "/ping"):
        http.get(path)
    http.get("/v1/models")

    assert last_span(spans).name == "GET /v1/models"
    assert len(spans.get_finished_spans()) == 1


@pytest.mark.parametrize(
    ("status", "error", "failed"),
    [(200, None, False), (400, "InputError", False), (429, "QuotaExceeded", False), (503, "NotReady", True),
     (500, "ServerError", True), (200, "Timeout", True)],
)  # fmt: skip
def test_span_fails_where_the_server_did(
    provider: TracerProvider, spans: InMemorySpanExporter, status: int, error: str | None, failed: bool
) -> None:
    spans.clear()

    Traces(provider)(outcome(status=status, error=error))

    span = last_span(spans)
    assert (span.status.status_code is StatusCode.ERROR) is failed
    assert (span.attributes or {}).get("error.type") == error


def test_traces_without_the_package_name_the_extra(
    provider: TracerProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.trace", None)

    with pytest.raises(ConfigError, match=r"medport\[observe\]"):
        Traces(provider)


def test_metrics_without_the_package_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)

    assert observe.metrics_if_installed(dict, Lifecycle()) is None
