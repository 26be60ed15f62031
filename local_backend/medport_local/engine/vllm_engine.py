"""vLLM behind the ``Engine`` protocol: our prompts, our text, our errors; its scheduling and its arithmetic.

vLLM's ``AsyncLLM`` runs in an event loop of its own thread, and its model in processes that it starts. Token ids
and prepared pixels go in, token ids and logprobs come out.

What does not hold here, and holds for ``TorchEngine``:

* vLLM reads the weights from the snapshot's directory itself. They are hashed again after it did, and no file may
  have changed meanwhile; but it keeps no copy of its own making, and maps files that stay on the disk.
* Its random numbers are its own: a seed gives the same text again, and another text than ``TorchEngine``'s.
* Keys, values and image features of a finished request stay in its memory, out of reach, until others replace
  them.
* ``GenerationRequest.group`` is not heeded: each of the ``n`` answers to a prompt computes it anew.
* No grammars and no LoRA adapters. ``stall_ms`` and ``max_wait_s`` are not heeded either.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import threading
import time
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import aclosing
from typing import Any

import torch

from medport.errors import ConfigError, InputError, NotReady, ServerError, Timeout
from medport_local.engine.answer import Answer
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.engine import Capabilities, EngineLimits, Handle, Stats, image_blocks
from medport_local.engine.handle import Pending
from medport_local.engine.loading import Gemma
from medport_local.engine.prompt import PromptBuilder
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.engine.vllm_library import Library
from medport_local.engine.vllm_options import (
    VllmDtype,
    engine_options,
    likely,
    refuse_unsupported,
    sampling_options,
)
from medport_local.engine.vllm_tickets import Outcome, Ticket, Tickets
from medport_local.engine.vllm_weights import unchanged
from medport_local.snapshot import Snapshot

logger = logging.getLogger(__name__)

_SHUTDOWN_S = 15.0
"""vLLM's processes are killed after so long."""


class VllmEngine:
    """Text generation by vLLM. Serving takes it from ``open_vllm``; the test itself, and benchmarks, from here.

    Args:
        gemma: the codecs around the model. Its ``model`` is not used and may be ``None``.
        snapshot: verified; vLLM loads it from its directory.
        limits: ``max_running`` sequences at once, in ``kv_bytes`` of keys and values; with ``reuse_bytes`` above 0
            prompts share what they begin with, within a tenant. vLLM keeps that in ``kv_bytes`` too.
        dtype: of weights and arithmetic.

    Raises:
        ConfigError: vLLM is not installed, or cannot load the model.
        VerificationError: a file changed while vLLM was loading it.
    """

    grammars = None

    def __init__(
        self,
        gemma: Gemma,
        snapshot: Snapshot,
        *,
        limits: EngineLimits | None = None,
        dtype: VllmDtype = "bfloat16",
    ) -> None:
        self.limits = limits or EngineLimits()
        self._library = Library()
        self._dtype = torch.float32 if dtype == "float32" else torch.bfloat16
        self._gemma = gemma
        self._pieces = gemma.text.pieces()
        self._special = gemma.text.special_pieces()
        self._tickets = Tickets(self.limits)
        self._ids = itertools.count(1)
        self._stop = asyncio.Event()
        self._llm: Any
        self._loop = self._started(
            snapshot, engine_options(snapshot, self.limits, dtype=dtype, eager=self._library.eager)
        )
        config = self._llm.model_config
        self._context = min(snapshot.max_context, int(config.max_model_len))
        self._vocabulary = int(config.get_vocab_size())
        self._token_bytes = _token_bytes(config, self._dtype.itemsize)
        self.images = gemma.images
        self.capabilities = Capabilities(
            images=gemma.images is not None, grammar=False, prefix_cache=self.limits.reuse_bytes > 0
        )
        self.prompts = PromptBuilder(
            gemma, model_id=snapshot.model_id, max_context=self._context, max_images=self.limits.max_images
        )

    @property
    def healthy(self) -> bool:
        """Whether new requests are taken."""
        return self._thread.is_alive() and not self._tickets.closed and not self._llm.errored

    def submit(self, request: GenerationRequest) -> Handle:
        """Queue a request. Call it from the event loop that will read the events.

        Raises:
            InputError: it asks for what vLLM cannot do here.
            QuotaExceeded: the queue is full.
            NotReady: the engine is stopping.
            ServerError: vLLM is dead.
        """
        refuse_unsupported(request.sampling, request.adapter)
        room = self._context - len(request.tokens)
        assert request.tokens, "the prompt builder checks this"
        assert room > 0, "the prompt builder checks this"
        pending = Pending(next(self._ids), self.cancel)
        answer = Answer(
            request.sampling, self._detokenizer(request.sampling), eos_ids=self._gemma.eos_ids, room=room
        )
        ticket = Ticket(pending, request, answer, room)
        if not self.healthy and not self._tickets.closed:
            raise _failed()
        self._tickets.add(ticket)
        self._soon(self._start, ticket)
        return pending

    def cancel(self, id: int) -> None:
        """Drop a request; nothing happens if it is over already."""
        if (ticket := self._tickets.get(id)) is not None:
            self._soon(self._drop, ticket, "cancelled")

    def stats(self) -> Stats:
        """Where the engine stands now.

        ``kv_bytes_used`` is an upper bound, as vLLM drops what leaves the window. ``steps`` counts outputs of
        single requests: vLLM does not tell its own.
        """
        census, counts = self._tickets.census(), self._tickets.counts()
        total = self.limits.kv_bytes or 0
        return Stats(
            running=census.running,
            queued=census.queued,
            held=census.running,
            steps=counts["steps"],
            tokens_generated=counts["tokens"],
            finished=counts["finished"],
            cancelled=counts["cancelled"],
            failed=counts["failed"],
            expired=counts["expired"],
            prompt_tokens=counts["misses"],
            cache_hits=counts["hits"],
            cache_misses=counts["misses"] if self.capabilities.prefix_cache else 0,
            kv_bytes_used=min(total, census.running_tokens * self._token_bytes),
            kv_bytes_total=total,
        )

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let the present ones finish for ``drain_s`` seconds, then drop them."""
        for ticket in self._tickets.close(drain_s):
            ticket.pending.deliver(NotReady("the server is stopping", remedy="try again in a moment"))
        self._soon(self._stop.set)
        self._thread.join()

    def _started(self, snapshot: Snapshot, options: Mapping[str, object]) -> asyncio.AbstractEventLoop:
        """Start the thread of vLLM's event loop, and wait until the model is loaded."""
        ready: Future[asyncio.AbstractEventLoop] = Future()
        self._thread = threading.Thread(
            target=lambda: asyncio.run(self._serve(options, ready)), name="medport-vllm", daemon=True
        )
        loop: asyncio.AbstractEventLoop | None = None
        try:
            with unchanged(snapshot):
                self._thread.start()
                loop = ready.result()
        except BaseException:
            if loop is not None:
                loop.call_soon_threadsafe(self._stop.set)
            raise
        return loop

    async def _serve(self, options: Mapping[str, object], ready: Future[asyncio.AbstractEventLoop]) -> None:
        """The life of vLLM."""
        try:
            self._llm = self._library.start(options)
        except Exception as fault:
            error = ConfigError(
                f"vLLM cannot load the model ({type(fault).__name__})",
                field="engine",
                remedy="see vLLM's lines in the log; more KV memory, or --engine torch, may help",
            )
            error.__cause__ = fault
            ready.set_exception(error)
            return
        ready.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        remaining = self._tickets.everyone()
        for ticket in remaining:
            self._drop(ticket, "cancelled")
        await asyncio.gather(*(each.task for each in remaining if each.task), return_exceptions=True)
        # Its finalizer would shut it down once more, while Python itself is going down.
        llm, self._llm = self._llm, None
        llm.shutdown(timeout=_SHUTDOWN_S)

    def _soon(self, call: Any, *arguments: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: all is over
            self._loop.call_soon_threadsafe(call, *arguments)

    def _start(self, ticket: Ticket) -> None:
        if ticket.outcome is not None:  # cancelled meanwhile
            self._leave(ticket)
            return
        ticket.task = self._loop.create_task(self._run(ticket))
        ticket.task.add_done_callback(lambda _: self._leave(ticket))
        if ticket.request.deadline is not None:
            delay_s = max(0.0, ticket.request.deadline - time.monotonic())
            ticket.alarm = self._loop.call_later(delay_s, self._expire, ticket)

    def _expire(self, ticket: Ticket) -> None:
        if ticket.outcome is None:
            ticket.pending.deliver(
                Timeout("the request's deadline passed", remedy="allow more time or fewer tokens")
            )
            self._drop(ticket, "expired")

    def _drop(self, ticket: Ticket, outcome: Outcome) -> None:
        if ticket.outcome is None:
            ticket.outcome = outcome
            if ticket.task is not None:
                ticket.task.cancel()

    def _leave(self, ticket: Ticket) -> None:
        if ticket.alarm is not None:
            ticket.alarm.cancel()
        self._tickets.leave(ticket)

    async def _run(self, ticket: Ticket) -> None:
        """One request's way through vLLM."""
        request = ticket.request
        try:
            options = sampling_options(
                request.sampling, eos_ids=self._gemma.eos_ids, vocabulary=self._vocabulary, room=ticket.room
            )
            blocks = image_blocks(request.tokens, self._gemma.image_token_id)
            outputs = self._llm.generate(
                self._library.prompt(request, blocks, shared=self.capabilities.prefix_cache, dtype=self._dtype),
                self._library.parameters(options),
                request_id=str(ticket.pending.id),
                priority=ticket.priority,
            )
            async with aclosing(outputs):  # which also stops what a stop string ended
                async for output in outputs:
                    if self._accept(ticket, output):
                        return
            raise RuntimeError("vLLM ended an answer that is not over")
        except Exception as fault:
            # The type only: a message could quote the input.
            logger.error("a request failed: %s", type(fault).__name__)
            ticket.outcome = ticket.outcome or "failed"
            self._leave(ticket)
            ticket.pending.deliver(_refused() if isinstance(fault, self._library.client_error) else _failed())

    def _accept(self, ticket: Ticket, output: Any) -> bool:
        """Tell the new tokens; says whether the answer is over."""
        completion, logprobs = output.outputs[0], ticket.request.sampling.logprobs
        self._tickets.count(steps=1, tokens=len(completion.token_ids))
        if not ticket.answer.count:
            hits = output.num_cached_tokens or 0
            self._tickets.count(hits=hits, misses=len(ticket.request.tokens) - hits)
        for i, token in enumerate(completion.token_ids):
            if logprobs is None:
                event = ticket.answer.accept(token)
            else:
                position = completion.logprobs[i]
                event = ticket.answer.accept(
                    token, logprob=position[token].logprob, top=likely(position, logprobs)
                )
            if event.finish_reason is not None:
                ticket.outcome = "finished"
                self._leave(ticket)
            ticket.pending.deliver(event)
            if event.finish_reason is not None:
                return True
        return False

    def _detokenizer(self, sampling: Sampling) -> Detokenizer:
        special = None if sampling.skip_special_tokens else self._special
        return Detokenizer(self._pieces, sampling.stop, include_stop=sampling.include_stop, special=special)


def _token_bytes(config: Any, itemsize: int) -> int:
    """Keys and values of one token in all layers."""
    text = config.hf_text_config
    return int(2 * text.num_hidden_layers * text.num_key_value_heads * text.head_dim * itemsize)


def _failed() -> ServerError:
    return ServerError("the model failed", remedy="try again; if it lasts, see the server's log")


def _refused() -> InputError:
    return InputError("vLLM does not take this request", remedy="leave out unusual options")
