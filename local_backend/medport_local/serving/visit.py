"""What goes on around a handler: admission, the standing headers, the line in the audit log, and who is told."""

from __future__ import annotations

import asyncio
import hmac
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from starlette.datastructures import MutableHeaders
from starlette.types import Message, Send

from medport.errors import MedportError, NotReady, ServerError, row_of
from medport.wire.vertex import REQUEST_ID_HEADER
from medport_local.serving import guard as guards
from medport_local.serving.guard import Guard
from medport_local.serving.identity import resource_in
from medport_local.serving.logs import access_line
from medport_local.serving.outcome import Outcome
from medport_local.serving.verbs import CHANGES, Action

if TYPE_CHECKING:
    from medport_local.serving.exchange import Exchange

logger = logging.getLogger(__name__)

CLIENT_CLOSED = 499
_LARGE = 1024 * 1024
"""Bytes whose digest takes longer than a switch to a worker thread."""


class Visit:
    """One request at one door, from ``enter`` to ``end``."""

    def __init__(
        self, guard: Guard, action: Action | None, template: str, exchange: Exchange, send: Send, *, verb: str = ""
    ) -> None:
        self.status = 0
        """What was sent; 0 if nothing was yet."""
        self._guard = guard
        self._action = action
        self._verb = verb
        self._template = template
        self._exchange = exchange
        self._send = send
        self._began_ns = time.time_ns()
        self._leave: Callable[[], None] | None = None
        self._error: MedportError | None = None
        self._output: hmac.HMAC | None = None
        self._recorded = False
        self._known = False
        """Whether it is clear who asks."""
        self._bytes_out = 0

    def enter(self) -> None:
        """Let the request in, or raise why not. Reads nothing of the body."""
        exchange = self._exchange
        guards.check_head(exchange.scope)
        if self._action is not None:
            exchange.principal = self._guard.identify(exchange.headers, exchange.scope.get("query_string", b""))
            self._known = True
            endpoint = exchange.path.get("endpoint")
            exchange.principal.check(self._action, self._verb, endpoint=endpoint, resource=self._resource)
            exchange.scope_checked = endpoint is not None
            self._leave = self._guard.admit(exchange.principal, self._action)
            self._guard.lifecycle.enter()
            if self._guard.audit is not None and self._action in CHANGES:
                # First of all: there shall be no change without a line about it.
                self._append("began", 0)
            elif self._guard.audit is not None and self._action == "infer":
                exchange.body_digest, self._output = self._guard.audit.digest(), self._guard.audit.digest()
        if (seconds := guards.timeout_s(exchange.headers)) is not None:
            exchange.bound(seconds)

    def error_of(self, fault: Exception) -> MedportError:
        """The error that is answered for ``fault``, which is noted."""
        self._error = fault if isinstance(fault, MedportError) else self._unexpected(fault)
        if isinstance(self._error, NotReady) and self._guard.lifecycle.draining:
            # The next try shall find another server.
            self._exchange.answer_headers["Connection"] = "close"
        return self._error

    def begin(self) -> None:
        """Put a line into the audit log before a stream begins.

        Raises:
            NotReady: it cannot be written.
        """
        if self._audited:
            self._append("began", 0)

    async def seal(self, body: bytes, status: int) -> None:
        """Put the line into the audit log before the answer ``body`` goes out. Raises as ``begin`` does."""
        if not self._audited:
            return
        if self._output is not None:
            await feed(self._output, body)
        self.record(status)

    def hash(self, data: bytes) -> None:
        """Note a part of a stream that goes out."""
        if self._output is not None:
            self._output.update(data)

    def record(self, status: int) -> None:
        """Put the line into the audit log, once. Raises as ``begin`` does."""
        if self._audited and not self._recorded:
            self._append("request", status)
            self._recorded = True

    async def send(self, message: Message) -> None:
        """Send on, with the standing headers."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = MutableHeaders(scope=message)
            headers[REQUEST_ID_HEADER] = self._exchange.request_id
            for name, value in self._exchange.answer_headers.items():
                headers[name] = value
            if self._exchange.body_broken:
                headers["Connection"] = "close"
        elif message["type"] == "http.response.body":
            self._bytes_out += len(message.get("body", b""))
        await self._send(message)

    def end(self) -> None:
        """Give back what was taken, and tell everyone who watches. Called once, whatever happened."""
        status = self.status or CLIENT_CLOSED
        # If it failed, that was logged where it happened, and there is no answer left to keep back.
        with suppress(MedportError):
            # Not recorded yet: the caller left, or the server stops.
            self.record(status if self._error or self.status != 200 else CLIENT_CLOSED)
        if self._leave is not None:
            self._leave()
            self._guard.lifecycle.leave()
        outcome = self._outcome(status)
        for observer in (access_line, *self._guard.observers):
            try:
                observer(outcome)
            except Exception as fault:
                logger.error("an observer failed: %s", type(fault).__name__)

    @property
    def _audited(self) -> bool:
        """Whether a model was reached, or somebody who is known tried to change something."""
        if self._guard.audit is None:
            return False
        return self._known if self._action in CHANGES else self._exchange.facts.deployed_model is not None

    @property
    def _resource(self) -> str:
        return resource_in(self._exchange.scope["path"])

    def _append(self, event: str, status: int) -> None:
        exchange, error = self._exchange, self._error
        assert self._guard.audit is not None
        record: dict[str, object] = {
            "event": event,
            "request_id": exchange.request_id,
            "key": exchange.principal.name,
            "action": self._action,
            "route": self._template,
        }
        record |= {"verb": self._verb, "resource": self._resource} if self._action in CHANGES else self._asked()
        if event == "request":
            record |= {
                "status": status,
                "error": type(error).__name__ if error else None,
                "ms": round((time.monotonic() - exchange.started) * 1e3, 1),
            }
            record |= {} if self._action in CHANGES else self._answered()
        self._guard.audit.append(record)

    def _asked(self) -> dict[str, object]:
        exchange, facts = self._exchange, self._exchange.facts
        return {
            "endpoint": facts.endpoint,
            "deployed_model": facts.deployed_model,
            "model": facts.model,
            **facts.pins.as_dict(),
            "adapters": dict(facts.adapters),
            "input_hmac_sha256": exchange.body_digest.hexdigest() if exchange.body_digest else None,
        }

    def _answered(self) -> dict[str, object]:
        facts = self._exchange.facts
        return {
            "output_hmac_sha256": self._output.hexdigest() if self._output else None,
            "finish_reasons": list(facts.finish_reasons),
            "prompt_tokens": facts.prompt_tokens,
            "completion_tokens": facts.completion_tokens,
            "embeddings": facts.embeddings,
        }

    def _outcome(self, status: int) -> Outcome:
        exchange, error = self._exchange, self._error
        first = exchange.first_token_at
        code = row_of(error).status if error else "CANCELLED" if status == CLIENT_CLOSED else None
        return Outcome(
            method=exchange.scope["method"],
            route=self._template,
            action=self._action,
            status=status,
            error=type(error).__name__ if error else None,
            code=code,
            request_id=exchange.request_id,
            key=exchange.principal.name if self._leave else None,
            facts=exchange.facts,
            began_ns=self._began_ns,
            seconds=time.monotonic() - exchange.started,
            first_token_s=first - exchange.started if first is not None else None,
            bytes_in=exchange.bytes_in,
            bytes_out=self._bytes_out,
            parent=(exchange.headers.get("traceparent", ""), exchange.headers.get("tracestate", "")),
            server=exchange.scope.get("server"),
        )

    def _unexpected(self, fault: Exception) -> ServerError:
        # The type and where it was raised; never its message, which may quote the request.
        request_id = self._exchange.request_id
        trace, place = fault.__traceback__, "?"
        while trace is not None:
            place = f"{trace.tb_frame.f_code.co_filename.rpartition('/')[2]}:{trace.tb_lineno}"
            trace = trace.tb_next
        logger.error("request %s: %s at %s", request_id, type(fault).__name__, place)
        return ServerError(
            f"the server failed (request {request_id})", remedy="try again; if it lasts, see its log"
        )


async def feed(digest: hmac.HMAC, data: bytes) -> None:
    """Add to a digest, in a worker thread where that is quicker than to hold up the loop."""
    if len(data) < _LARGE:
        digest.update(data)
    else:
        await asyncio.to_thread(digest.update, data)
