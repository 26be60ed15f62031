"""What goes to the log: one line a request, as text or as JSON. No path, query, prompt, key or fault's message."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Literal

import orjson

from medport_local.serving.outcome import Outcome

LogFormat = Literal["text", "json"]

access = logging.getLogger("medport_local.access")


def access_line(outcome: Outcome) -> None:
    """An observer: a line for a request that is over."""
    if not access.isEnabledFor(logging.INFO):
        return
    fields = {
        "method": outcome.method,
        "route": outcome.route,
        "status": outcome.status,
        "error": outcome.error,
        "ms": round(outcome.seconds * 1e3, 1),
        "bytes_in": outcome.bytes_in,
        "bytes_out": outcome.bytes_out,
        "request_id": outcome.request_id,
        "key": outcome.key,
        "endpoint": outcome.facts.endpoint,
    }
    access.info(
        "%s %s %d %.0f ms, in %d out %d bytes, key %s, request %s",
        outcome.method,
        outcome.route,
        outcome.status,
        outcome.seconds * 1e3,
        outcome.bytes_in,
        outcome.bytes_out,
        outcome.key or "-",
        outcome.request_id,
        extra={"fields": fields},
    )


class JsonFormatter(logging.Formatter):
    """One JSON object a line: ``time``, ``level``, ``logger``, and either the record's fields or its message.

    Of an exception only the type is told: its message may quote what was sent.
    """

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", None)
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            **(fields if isinstance(fields, dict) else {"message": record.getMessage()}),
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
        return orjson.dumps(line, default=str).decode()


class TextFormatter(logging.Formatter):
    """A line for people; of an exception only the type, too."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s %(message)s")

    def formatException(self, ei: object) -> str:
        kind = ei[0] if isinstance(ei, tuple) else None
        return f"({kind.__name__})" if isinstance(kind, type) else ""


def formatter(form: LogFormat) -> logging.Formatter:
    """The formatter for ``--log-format``."""
    return JsonFormatter() if form == "json" else TextFormatter()
