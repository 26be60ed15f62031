"""Where the command line sends OpenTelemetry spans: an OTLP collector, as the standard variables say."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from medport import _extras
from medport_local.serving.traces import EXTRA

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")


@contextmanager
def provider_from_environment(*, wanted: bool) -> Iterator[TracerProvider | None]:
    """A provider that exports by OTLP over HTTP; it is flushed in the end.

    Args:
        wanted: also without an endpoint in the environment, to a collector on this machine.

    Yields:
        ``None`` unless it is wanted or the environment names an endpoint, or if OTEL_SDK_DISABLED is true.

    Raises:
        ConfigError: opentelemetry is not installed.
    """
    if not (wanted or any(os.environ.get(name) for name in _ENDPOINTS)):
        yield None
        return
    if os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true":
        yield None
        return
    _extras.load("opentelemetry.sdk.trace", extra=EXTRA)
    _extras.load("opentelemetry.exporter.otlp.proto.http.trace_exporter", extra=EXTRA)
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.resources import SERVICE_NAME, OTELResourceDetector, Resource
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    # The name is a default; OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES win. No process detector: arguments of
    # the command line and names of files are nobody's business.
    resource = Resource({SERVICE_NAME: "medport"}).merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    try:
        yield provider
    finally:
        provider.shutdown()
