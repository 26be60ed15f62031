"""Text generation: one thread owns the device and loops schedule → run → postprocess.

``Engine`` is the protocol that the serving side knows; ``TorchEngine`` is ours. Requests come from an event loop,
their events go back to it without blocking it. Cancelling is an ordinary state: the sequence is gone, and its
memory free, at the next step.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Protocol

from medport.errors import MedportError, NotReady, ServerError
from medport_local.engine.codecs import ImageCodec
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.grammar import Grammars
from medport_local.engine.loading import Gemma, use_one_thread
from medport_local.engine.prompt import PromptBuilder
from medport_local.engine.runner import Runner
from medport_local.engine.sampler import Choice, Sampler
from medport_local.engine.scheduler import Batch, Scheduler
from medport_local.engine.sequence import Event, FinishReason, GenerationRequest, Sampling, Sequence, TokenLogprob
from medport_local.snapshot import Snapshot

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine takes at once."""

    max_running: int = 8
    max_queue: int = 64
    max_images: int = 128
    """Images in one request; a whole-slide prompt of the reference notebooks holds 125."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond plain text."""

    images: bool
    seeds: bool = True
    logprobs: bool = True
    grammar: bool = True
    prefix_cache: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Where an engine stands. Counts are since its start."""

    running: int
    queued: int
    steps: int
    tokens_generated: int
    finished: int
    cancelled: int
    failed: int
    held: int
    """Sequences that hold device memory."""


class Handle(Protocol):
    """A request on its way: an async iterator of events, the last of which has a ``finish_reason``."""

    @property
    def id(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[Event]: ...


class Engine(Protocol):
    """What serving needs of text generation."""

    @property
    def prompts(self) -> PromptBuilder: ...
    @property
    def images(self) -> ImageCodec | None: ...
    @property
    def grammars(self) -> Grammars | None: ...
    @property
    def limits(self) -> EngineLimits: ...
    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def healthy(self) -> bool: ...
    def submit(self, request: GenerationRequest) -> Handle: ...
    def cancel(self, id: int) -> None: ...
    def stats(self) -> Stats: ...
    def close(self, drain_s: float = 0.0) -> None: ...


class TorchEngine:
    """The engine that runs everywhere."""

    def __init__(self, gemma: Gemma, snapshot: Snapshot, *, limits: EngineLimits | None = None) -> None:
        self.limits = limits or EngineLimits()
        self.capabilities = Capabilities(images=gemma.images is not None)
        self.images = gemma.images
        self.prompts = PromptBuilder(
            gemma,
            model_id=snapshot.model_id,
            max_context=snapshot.max_context,
            max_images=self.limits.max_images,
        )
        self._max_context = snapshot.max_context
        self._small = gemma.small
        self._eos_ids = gemma.eos_ids
        self._pieces = gemma.text.pieces()
        self._special = gemma.text.special_pieces()
        self.grammars = Grammars(
            self._pieces, gemma.text.encode, eos_ids=gemma.eos_ids, control_ids=gemma.text.control_ids
        )
        self._runner = Runner(gemma)
        self._sampler = Sampler(gemma.eos_ids)
        self._scheduler = Scheduler(max_running=self.limits.max_running, max_queue=self.limits.max_queue)
        self._texts: dict[int, Detokenizer] = {}
        self._alive: dict[int, Sequence] = {}
        self._ids = itertools.count(1)
        self._counts = {"steps": 0, "tokens": 0, "finished": 0, "cancelled": 0, "failed": 0}
        self._changed = threading.Condition()
        self._closing = False
        self._stopped = False
        self._thread = threading.Thread(target=self._loop, name="medport-engine", daemon=True)
        self._thread.start()

    @property
    def healthy(self) -> bool:
        """Whether new requests are taken."""
        return self._thread.is_alive() and not self._closing

    def submit(self, request: GenerationRequest) -> Handle:
        """Queue a request. Call it from the event loop that will read the events.

        Raises:
            QuotaExceeded: the queue is full.
            NotReady: the engine is stopping.
        """
        assert 0 < len(request.tokens) < self._max_context, "the prompt builder checks this"
        pending = _Pending(next(self._ids), self.cancel)
        sequence = Sequence(id=pending.id, request=request, deliver=pending.deliver, queued_at=time.monotonic())
        with self._changed:
            if not self.healthy:
                raise NotReady("the server is stopping", remedy="try again in a moment")
            self._scheduler.add(sequence)
            self._alive[sequence.id] = sequence
            self._texts[sequence.id] = self._detokenizer(request.sampling)
            self._changed.notify_all()
        return pending

    def cancel(self, id: int) -> None:
        """Drop a request at the next step; nothing happens if it is over already."""
        with self._changed:
            if (sequence := self._alive.get(id)) is not None:
                sequence.cancelled = True
                self._changed.notify_all()

    def stats(self) -> Stats:
        """Where the engine stands now."""
        with self._changed:
            return Stats(
                running=self._scheduler.running,
                queued=self._scheduler.queued,
                steps=self._counts["steps"],
                tokens_generated=self._counts["tokens"],
                finished=self._counts["finished"],
                cancelled=self._counts["cancelled"],
                failed=self._counts["failed"],
                held=self._runner.held,
            )

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, let the present ones finish for ``drain_s`` seconds, then drop them."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._alive, timeout=drain_s)
            for sequence in self._scheduler.everyone():
                sequence.deliver(NotReady("the server is stopping", remedy="try again in a moment"))
                sequence.cancelled = True
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _loop(self) -> None:
        if self._small:
            use_one_thread()
        while True:
            with self._changed:
                self._sweep()
                batch = self._scheduler.next_batch()
                if batch is None:
                    if self._stopped:
                        return
                    self._changed.wait()
                    continue
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        try:
            logits = self._runner.forward(batch)  # float32 [sequences, vocabulary]
            choices = self._sampler.pick(logits, batch.sequences)
        except Exception as fault:
            # Out of memory, mostly. The type only: a message could quote the input.
            logger.error("a step failed: %s", type(fault).__name__)
            with self._changed:
                for sequence in batch.sequences:
                    self._leave(sequence, "failed")
                    sequence.deliver(
                        ServerError("the model failed", remedy="try again; if it lasts, see the server's log")
                    )
            return
        with self._changed:
            self._counts["steps"] += 1
            for sequence, choice in zip(batch.sequences, choices, strict=True):
                if sequence.cancelled:
                    continue
                if isinstance(choice, MedportError):
                    self._leave(sequence, "failed")
                    sequence.deliver(choice)
                else:
                    self._accept(sequence, choice)

    def _accept(self, sequence: Sequence, choice: Choice) -> None:
        sampling, token = sequence.request.sampling, choice.token
        sequence.generated.append(token)
        self._counts["tokens"] += 1
        detokenizer = self._texts[sequence.id]
        finish: FinishReason | None = None
        text = ""
        told: tuple[TokenLogprob, ...] = ()
        ended = token in sampling.stop_token_ids or (token in self._eos_ids and not sampling.ignore_eos)
        if not ended or sampling.include_stop:
            text = detokenizer.feed(token, armed=len(sequence.generated) > sampling.min_tokens)
            told = _told(choice, detokenizer)
        room = min(sampling.max_tokens, self._max_context - sequence.prompt_tokens)
        if ended or detokenizer.stopped or choice.complete:
            finish = "stop"
        elif len(sequence.generated) >= room:
            finish = "length"
        if finish is not None:
            text += detokenizer.flush()
            finish = "stop" if detokenizer.stopped else finish
            self._leave(sequence, "finished")
        sequence.deliver(
            Event(text=text, tokens=told, finish_reason=finish, completion_tokens=len(sequence.generated))
        )

    def _detokenizer(self, sampling: Sampling) -> Detokenizer:
        special = None if sampling.skip_special_tokens else self._special
        return Detokenizer(self._pieces, sampling.stop, include_stop=sampling.include_stop, special=special)

    def _leave(self, sequence: Sequence, count: str) -> None:
        self._scheduler.finish(sequence, now=time.monotonic())
        self._forget(sequence, count)

    def _sweep(self) -> None:
        cancelled = [each for each in self._alive.values() if each.cancelled]
        if cancelled:
            self._scheduler.sweep()
            for sequence in cancelled:
                self._forget(sequence, "cancelled")

    def _forget(self, sequence: Sequence, count: str) -> None:
        self._runner.release(sequence)
        self._sampler.forget(sequence)
        del self._alive[sequence.id], self._texts[sequence.id]
        self._counts[count] += 1
        self._changed.notify_all()


def _told(choice: Choice, detokenizer: Detokenizer) -> tuple[TokenLogprob, ...]:
    if choice.logprob is None:
        return ()
    top = tuple((token, detokenizer.piece(token), logprob) for token, logprob in choice.top)
    return (TokenLogprob(choice.token, detokenizer.piece(choice.token), choice.logprob, top),)


class _Pending:
    """A handle whose events arrive in the event loop that submitted it."""

    def __init__(self, id: int, cancel: Callable[[int], None]) -> None:
        self.id = id
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | MedportError] = asyncio.Queue()
        self._cancel = cancel

    def deliver(self, event: Event | MedportError) -> None:
        try:
            self._loop.call_soon_threadsafe(self._events.put_nowait, event)
        except RuntimeError:  # the loop is closed: nobody listens any more
            self._cancel(self.id)

    async def __aiter__(self) -> AsyncIterator[Event]:
        """The events; leaving early cancels the request."""
        try:
            while True:
                event = await self._events.get()
                if isinstance(event, MedportError):
                    raise event
                yield event
                if event.finish_reason is not None:
                    return
        finally:
            self._cancel(self.id)
