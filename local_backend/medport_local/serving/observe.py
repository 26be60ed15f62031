"""Prometheus metrics of one server, in a registry of its own. Labels hold names of ours, never content."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from starlette.responses import Response

from medport import _extras
from medport.errors import ConfigError, NotFound
from medport_local.serving.lifecycle import Lifecycle
from medport_local.serving.outcome import Outcome

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from medport_local.serving.exchange import Exchange

EXTRA = "observe"
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


@dataclass(frozen=True, slots=True)
class _Reading:
    """How a field of an engine's statistics is told."""

    name: str
    help: str
    counts: bool = False


# By the field's name. An engine that has no such field has no such metric.
_READINGS: Mapping[str, _Reading] = {
    "running": _Reading("engine_running", "Sequences that are being generated: the size of the running batch."),
    "queued": _Reading("engine_queued", "Requests that wait for their turn."),
    "held": _Reading("engine_held", "Sequences that hold device memory."),
    "steps": _Reading("engine_steps", "Runs of the model; tokens per step is the mean batch.", counts=True),
    "tokens_generated": _Reading(
        "tokens_generated", "Tokens generated; their rate is tokens per second.", counts=True
    ),
    "finished": _Reading("engine_finished", "Sequences that came to their end.", counts=True),
    "cancelled": _Reading("engine_cancelled", "Sequences whose caller left.", counts=True),
    "failed": _Reading("engine_failed", "Sequences that the engine failed.", counts=True),
    "expired": _Reading("expired", "Sequences, images and texts whose deadline passed.", counts=True),
    "prompt_tokens": _Reading(
        "engine_prompt_tokens", "Prompt tokens that were computed, those found in a cache left out.", counts=True
    ),
    "prefill_tokens_per_s": _Reading("prefill_tokens_per_second", "How fast prompts are computed, lately."),
    "kv_bytes_used": _Reading("kv_used_bytes", "Memory for keys and values that sequences hold."),
    "kv_bytes_total": _Reading("kv_capacity_bytes", "Memory for keys and values that is declared."),
    "reuse_bytes_used": _Reading(
        "reuse_used_bytes",
        "Prompt beginnings and image features that are kept for requests to share.",
    ),
    "cache_hits": _Reading("cache_hits", "Prompt tokens found in the prefix cache.", counts=True),
    "cache_misses": _Reading("cache_misses", "Prompt tokens not found in the prefix cache.", counts=True),
    "image_hits": _Reading("image_cache_hits", "Images whose features were found.", counts=True),
    "image_misses": _Reading("image_cache_misses", "Images whose features were looked for in vain.", counts=True),
    "pending": _Reading("embedder_pending", "Images and texts that wait to be embedded."),
    "pending_bytes": _Reading("embedder_pending_bytes", "Pixels and tokens that wait to be embedded."),
    "refused": _Reading("embedder_refused", "Images and texts that found no room.", counts=True),
    "images_per_s": _Reading("embedder_images_per_second", "What the device does at its best batch size."),
    "texts_per_s": _Reading("embedder_texts_per_second", "What the device does at its best batch size."),
    "batches": _Reading("embedder_batches", "Runs of the embedding model.", counts=True),
    "embedded": _Reading("embeddings", "Images and texts that were embedded.", counts=True),
}


class Metrics:
    """An observer of requests, and a reader of the engines at each scrape.

    Args:
        engines: gives the engines by model name; each has ``stats()``. Asked at each scrape.
        lifecycle: tells whether the server is ready, and how much is under way.

    Raises:
        ConfigError: prometheus-client is not installed.
    """

    def __init__(self, engines: Callable[[], Mapping[str, Any]], lifecycle: Lifecycle) -> None:
        prometheus = _extras.load("prometheus_client", extra=EXTRA)
        self._exposition = _extras.load("prometheus_client.exposition", extra=EXTRA)
        registry = self._registry = prometheus.CollectorRegistry(auto_describe=False)
        counter, histogram = prometheus.Counter, prometheus.Histogram
        own = {"namespace": "medport", "registry": registry}
        self._requests = counter("requests", "Requests.", ["method", "route", "status", "error"], **own)
        self._seconds = histogram(
            "request_seconds",
            "From a request's begin to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **own,
        )
        self._errors = counter("errors", "Errors, by their google.rpc code.", ["code"], **own)
        self._first = histogram(
            "first_token_seconds",
            "From a request's begin to its first token.",
            ["endpoint"],
            buckets=_SECONDS,
            **own,
        )
        self._prompt = counter("prompt_tokens", "Tokens of prompts, those of images too.", ["endpoint"], **own)
        self._completion = counter("completion_tokens", "Tokens of answers.", ["endpoint"], **own)
        self._received = counter("received_bytes", "Bytes of requests' bodies.", **own)
        self._sent = counter("sent_bytes", "Bytes of answers.", **own)
        registry.register(_Engines(engines, lifecycle))
        prometheus.ProcessCollector(registry=registry)

    def __call__(self, outcome: Outcome) -> None:
        facts = outcome.facts
        self._requests.labels(outcome.method, outcome.route, str(outcome.status), outcome.error or "").inc()
        self._seconds.labels(outcome.route).observe(outcome.seconds)
        if outcome.code is not None:
            self._errors.labels(outcome.code).inc()
        self._received.inc(outcome.bytes_in)
        self._sent.inc(outcome.bytes_out)
        if facts.endpoint is not None:
            if outcome.first_token_s is not None:
                self._first.labels(facts.endpoint).observe(outcome.first_token_s)
            self._prompt.labels(facts.endpoint).inc(facts.prompt_tokens)
            self._completion.labels(facts.endpoint).inc(facts.completion_tokens)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """All metrics, in the form that ``accept`` asks for, and its media type."""
        encode, media_type = self._exposition.choose_encoder(accept)
        return encode(self._registry), media_type


def route(metrics: Metrics | None) -> Callable[[Exchange], Any]:
    """The handler of ``GET /metrics``."""

    async def show(exchange: Exchange) -> Response:
        if metrics is None:
            raise NotFound(
                "this server measures nothing", remedy=f'pip install "medport[{EXTRA}]" and start it again'
            )
        body, media_type = metrics.render(exchange.headers.get("accept", ""))
        return Response(body, headers={"content-type": media_type})

    return show


def metrics_if_installed(engines: Callable[[], Mapping[str, Any]], lifecycle: Lifecycle) -> Metrics | None:
    """``Metrics``, or ``None`` where prometheus-client is not installed."""
    try:
        return Metrics(engines, lifecycle)
    except ConfigError:
        return None


class _Engines:
    """Reads the engines when it is asked, so that nothing is counted twice."""

    def __init__(self, engines: Callable[[], Mapping[str, Any]], lifecycle: Lifecycle) -> None:
        self._engines = engines
        self._lifecycle = lifecycle

    def collect(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        yield GaugeMetricFamily(
            "medport_ready", "1 while requests are welcome.", value=float(self._lifecycle.ready)
        )
        running = float(self._lifecycle.running)
        yield GaugeMetricFamily("medport_requests_running", "Requests under way.", value=running)
        stats = {model: engine.stats() for model, engine in self._engines().items()}
        for field, reading in _READINGS.items():
            values = {model: getattr(each, field) for model, each in stats.items() if hasattr(each, field)}
            if not values:
                continue
            kind = CounterMetricFamily if reading.counts else GaugeMetricFamily
            family = kind(f"medport_{reading.name}", reading.help, labels=["model"])
            for model, value in values.items():
                family.add_metric([model], float(value))
            yield family
        yield from _device_memory()


def _device_memory() -> Iterable[Metric]:
    from prometheus_client.core import GaugeMetricFamily

    # Only where torch is loaded anyway and runs on CUDA: asking must not start a device.
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return
    family = GaugeMetricFamily("medport_device_memory_bytes", "Memory that tensors hold.", labels=["device"])
    for index in range(torch.cuda.device_count()):
        family.add_metric([f"cuda:{index}"], float(torch.cuda.memory_allocated(index)))
    yield family
