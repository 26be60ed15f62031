"""OpenTelemetry spans with the GenAI conventions: who answered, how long, how many tokens. Never what was said.

A span is made when its request is over, from what is known then: nothing of it lies on the way of an answer.
Source: OpenTelemetry semantic conventions, GenAI spans and HTTP server spans (1.37); W3C Trace Context.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from medport import _extras
from medport_local.serving.outcome import Outcome

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

EXTRA = "observe"
SYSTEM = "medport"
"""``gen_ai.provider.name``; the list of well-known ones has no name for us."""


class Traces:
    """An observer that makes a span of each request but probes of health.

    Args:
        provider: where spans go. The command line makes one; there is no global one.

    Raises:
        ConfigError: opentelemetry is not installed.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._trace = _extras.load("opentelemetry.trace", extra=EXTRA)
        propagation = _extras.load("opentelemetry.trace.propagation.tracecontext", extra=EXTRA)
        self._parents = propagation.TraceContextTextMapPropagator()
        self._context = _extras.load("opentelemetry.context", extra=EXTRA)
        self._tracer = provider.get_tracer("medport_local")

    def __call__(self, outcome: Outcome) -> None:
        if outcome.action is None:
            return
        parent, state = outcome.parent
        carrier = {"traceparent": parent, **({"tracestate": state} if state else {})} if parent else {}
        facts = outcome.facts
        named = facts.operation is not None and facts.endpoint is not None
        span = self._tracer.start_span(
            f"{facts.operation} {facts.endpoint}" if named else f"{outcome.method} {outcome.route}",
            # An empty context, not the current one: what runs around the server is no parent of its requests.
            context=self._parents.extract(carrier, context=self._context.Context()),
            kind=self._trace.SpanKind.SERVER,
            attributes=_attributes(outcome),
            start_time=outcome.began_ns,
        )
        # The conventions call a server's span failed from 500 on: what the caller did wrong is no fault of ours.
        if outcome.status >= 500 or (outcome.error is not None and outcome.status < 400):
            span.set_status(self._trace.StatusCode.ERROR)
        span.end(outcome.began_ns + round(outcome.seconds * 1e9))


def _attributes(outcome: Outcome) -> dict[str, str | int | float | list[str]]:
    facts = outcome.facts
    host, port = outcome.server or (None, None)
    values: dict[str, str | int | float | list[str] | None] = {
        "http.request.method": outcome.method,
        "http.route": outcome.route,
        "http.response.status_code": outcome.status,
        "error.type": outcome.error,
        "server.address": host,
        "server.port": port,
        "medport.request_id": outcome.request_id,
    }
    if facts.operation is not None:
        values |= {
            "gen_ai.operation.name": facts.operation,
            "gen_ai.provider.name": SYSTEM,
            # As it is served, not as it was asked for: what a caller writes there is his own text.
            "gen_ai.request.model": facts.endpoint,
            "gen_ai.response.model": facts.pins.model_id,
            "gen_ai.response.finish_reasons": list(facts.finish_reasons) or None,
            "gen_ai.usage.input_tokens": facts.prompt_tokens,
            "gen_ai.usage.output_tokens": facts.completion_tokens if facts.operation != "embeddings" else None,
            "medport.model.revision": facts.pins.revision,
            "medport.model.adapters": list(facts.adapters) or None,
            "medport.first_token_s": outcome.first_token_s,
        }
    return {name: value for name, value in values.items() if value is not None}
