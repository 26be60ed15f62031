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
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from medport.errors import InputError, MedportError, NotReady, ServerError, Timeout
from medport_local.engine import devices
from medport_local.engine.blocks import Memory
from medport_local.engine.codecs import ImageCodec
from medport_local.engine.decoder import Decoder
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.footprint import Footprint, lay_out
from medport_local.engine.grammar import Grammars
from medport_local.engine.kvcache import KvCache, ring_bytes, token_bytes
from medport_local.engine.loading import Gemma, use_one_thread
from medport_local.engine.prompt import PromptBuilder
from medport_local.engine.runner import Runner
from medport_local.engine.sampler import Choice, Sampler
from medport_local.engine.scheduler import Batch, Scheduler
from medport_local.engine.sequence import Event, FinishReason, GenerationRequest, Sampling, Sequence, TokenLogprob
from medport_local.snapshot import Snapshot

if TYPE_CHECKING:
    from medport_local.engine.lora import Adapter

logger = logging.getLogger(__name__)

_SHARE = {"cpu": 0.4, "mps": 0.5, "cuda": 0.9}
"""Of the memory that is free beside the weights, what keys and values get unless told otherwise."""
_IDLE_S = 30.0
"""How often an idle engine looks for what it has kept too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine takes at once, and what it may hold."""

    max_running: int = 16
    max_queue: int = 64
    max_images: int = 128
    """Images in one request; a whole-slide prompt of the reference notebooks holds 125."""
    kv_bytes: int | None = None
    """For keys and values. ``None``: a share of what is free, and no more than full places can use."""
    reuse_bytes: int = 0
    """For image features and prompt beginnings that later requests of the same tenant can use. 0, the default,
    keeps nothing of a request once it is over."""
    stall_ms: float = 200.0
    """How long a new prompt may hold up the answers that are being written, at once."""
    max_wait_s: float = 120.0
    """Whoever would wait longer for the first token is told to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond plain text."""

    images: bool
    seeds: bool = True
    logprobs: bool = True
    grammar: bool = True
    prefix_cache: bool = False
    adapters: tuple[str, ...] = ()
    """Names that ``GenerationRequest.adapter`` may have."""


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
    expired: int = 0
    """Whose deadline passed."""
    prompt_tokens: int = 0
    """Prompt tokens that were computed."""
    cache_hits: int = 0
    """Prompt tokens that were found in the prefix cache."""
    cache_misses: int = 0
    image_hits: int = 0
    """Images whose features were found."""
    image_misses: int = 0
    kv_bytes_used: int = 0
    kv_bytes_total: int = 0
    reuse_bytes_used: int = 0
    prefill_tokens_per_s: float = 0.0


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
    """The engine that runs everywhere.

    Args:
        gemma: the model.
        snapshot: where it comes from.
        limits: what it may take and hold.
        adapters: LoRA adapters by name, on the model's device and in its dtype.

    Raises:
        ConfigError: ``limits.kv_bytes`` does not hold one sequence.
    """

    def __init__(
        self,
        gemma: Gemma,
        snapshot: Snapshot,
        *,
        limits: EngineLimits | None = None,
        adapters: Mapping[str, Adapter] | None = None,
    ) -> None:
        self.limits = limits or EngineLimits()
        self.capabilities = Capabilities(
            images=gemma.images is not None,
            prefix_cache=self.limits.reuse_bytes > 0,
            adapters=tuple(adapters or ()),
        )
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
        self._image_token_id = gemma.image_token_id
        self._pieces = gemma.text.pieces()
        self._special = gemma.text.special_pieces()
        self.grammars = Grammars(
            self._pieces, gemma.text.encode, eos_ids=gemma.eos_ids, control_ids=gemma.text.control_ids
        )
        decoder = Decoder.of(gemma)
        self.footprint = _footprint(decoder, self.limits, snapshot.max_context)
        """How the memory for keys and values is laid out."""
        self._memory = Memory(slots=self.footprint.slots, tokens=self.footprint.tokens)
        cache = KvCache(
            decoder.shape,
            slots=self.footprint.slots,
            tokens=self.footprint.tokens,
            window=self.footprint.window,
            dtype=decoder.dtype,
            device=decoder.device,
        )
        self._runner = Runner(
            gemma,
            decoder,
            cache,
            lambda sequence: self._memory.lease(sequence.id),
            reuse_bytes=self.limits.reuse_bytes,
            group_bytes=self.footprint.shared_bytes,
            stall_s=self.limits.stall_ms / 1000,
            adapters=adapters,
        )
        self._sampler = Sampler(gemma.eos_ids)
        self._scheduler = Scheduler(
            self._memory,
            max_running=self.footprint.slots,
            max_queue=self.limits.max_queue,
            stall_ms=self.limits.stall_ms,
            max_wait_s=self.limits.max_wait_s,
            max_context=snapshot.max_context,
            restore=self._runner.restore,
        )
        self._texts: dict[int, Detokenizer] = {}
        self._alive: dict[int, Sequence] = {}
        self._groups: Counter[str] = Counter()
        self._ids = itertools.count(1)
        self._counts: Counter[str] = Counter()
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
            QuotaExceeded: too many wait, or the wait is too long; says when to come back.
            InputError: prompt and ``max_tokens`` never fit into the memory, or there is no such adapter.
            NotReady: the engine is stopping.
        """
        assert 0 < len(request.tokens) < self._max_context, "the prompt builder checks this"
        if request.adapter is not None and request.adapter not in self.capabilities.adapters:
            raise InputError("names an adapter that is not loaded", field="model", remedy="see the list of models")
        blocks = image_blocks(request.tokens, self._image_token_id)
        assert len(blocks) == len(request.images), "the prompt builder makes a block of each image"
        pending = _Pending(next(self._ids), self.cancel)
        sequence = Sequence(
            id=pending.id,
            request=request,
            deliver=pending.deliver,
            queued_at=time.monotonic(),
            image_blocks=blocks,
        )
        with self._changed:
            if not self.healthy:
                raise NotReady("the server is stopping", remedy="try again in a moment")
            self._scheduler.add(sequence)
            self._alive[sequence.id] = sequence
            self._texts[sequence.id] = self._detokenizer(request.sampling)
            if request.group is not None:
                self._groups[request.group] += 1
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
            memory, runner, counts = self._memory, self._runner, self._counts
            return Stats(
                running=self._scheduler.running,
                queued=self._scheduler.queued,
                steps=counts["steps"],
                tokens_generated=counts["tokens"],
                finished=counts["finished"],
                cancelled=counts["cancelled"],
                failed=counts["failed"],
                expired=counts["expired"],
                held=memory.held,
                prompt_tokens=counts["prompt_tokens"],
                cache_hits=runner.cache_hits,
                cache_misses=runner.cache_misses,
                image_hits=runner.image_hits,
                image_misses=runner.image_misses,
                kv_bytes_used=self.footprint.used_bytes(slots=memory.held, tokens=memory.used_tokens),
                kv_bytes_total=self.footprint.kv_bytes,
                reuse_bytes_used=runner.reuse_bytes_used,
                prefill_tokens_per_s=self._scheduler.prefill_tokens_per_s,
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
                    self._runner.expire()
                    self._changed.wait(_IDLE_S if self._runner.keeps else None)
                    continue
            self._step(batch)

    def _step(self, batch: Batch) -> None:
        began = time.monotonic()
        batch, logits, faulty = self._run(batch)
        seconds = time.monotonic() - began
        choices: list[Choice | MedportError] = []
        if logits is not None:
            choices = list(self._sampler.pick(logits, batch.sequences))
        with self._changed:
            self._counts["steps"] += 1
            for sequence in faulty:
                self._leave(sequence, "failed")
                sequence.deliver(_model_failed())
            if not batch.sequences:
                return
            self._scheduler.ran(batch, seconds)
            self._counts["prompt_tokens"] += batch.end - batch.start
            for sequence, choice in zip(batch.sequences, choices, strict=False):
                if sequence.cancelled:
                    continue
                if isinstance(choice, MedportError):
                    self._leave(sequence, "failed")
                    sequence.deliver(choice)
                else:
                    self._accept(sequence, choice)

    def _run(self, batch: Batch) -> tuple[Batch, Tensor | None, list[Sequence]]:
        """The step, or what of it can be done without those that make it fail."""
        try:
            return batch, self._runner.run(batch), []
        except Exception as fault:
            _note(fault)
            if len(batch.sequences) == 1:
                return Batch(batch.phase, ()), None, list(batch.sequences)
        # One of them is to blame, or all: each gets its token alone. What a failed step wrote is written again.
        rows: list[Tensor] = []
        sound: list[Sequence] = []
        faulty: list[Sequence] = []
        for sequence in batch.sequences:
            try:
                row = self._runner.run(Batch(batch.phase, (sequence,)))
            except Exception as fault:
                _note(fault)
                faulty.append(sequence)
            else:
                assert row is not None
                rows.append(row)
                sound.append(sequence)
        return Batch(batch.phase, tuple(sound)), torch.cat(rows) if rows else None, faulty

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
        if count == "failed":
            self._runner.scrub(sequence)
        self._scheduler.finish(sequence)
        self._forget(sequence, count)

    def _sweep(self) -> None:
        cancelled, expired = self._scheduler.sweep(time.monotonic())
        for sequence in cancelled:
            self._forget(sequence, "cancelled")
        for sequence in expired:
            self._forget(sequence, "expired")
            sequence.deliver(Timeout("the request's deadline passed", remedy="allow more time or fewer tokens"))

    def _forget(self, sequence: Sequence, count: str) -> None:
        self._runner.release(sequence)
        self._sampler.forget(sequence)
        del self._alive[sequence.id], self._texts[sequence.id]
        if (group := sequence.request.group) is not None:
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]
                self._runner.forget_group(group)
        self._counts[count] += 1
        self._changed.notify_all()


def image_blocks(tokens: tuple[int, ...], image_token_id: int | None) -> tuple[tuple[int, int], ...]:
    """Where each run of soft tokens begins and ends (one past)."""
    if image_token_id is None:
        return ()
    blocks = []
    place = 0
    for is_image, run in itertools.groupby(tokens, key=lambda token: token == image_token_id):
        length = sum(1 for _ in run)
        if is_image:
            blocks.append((place, place + length))
        place += length
    return tuple(blocks)


def _footprint(decoder: Decoder, limits: EngineLimits, max_context: int) -> Footprint:
    shape, size = decoder.shape, decoder.dtype.itemsize
    device = decoder.device
    kv_bytes = limits.kv_bytes
    if kv_bytes is None:
        kv_bytes = int(devices.describe(device).free_bytes * _SHARE[device.type])
    return lay_out(
        kv_bytes=kv_bytes,
        reuse_bytes=limits.reuse_bytes,
        max_running=limits.max_running,
        max_context=max_context,
        window=shape.window,
        ring_token_bytes=ring_bytes(shape, 1, size),
        token_bytes=token_bytes(shape, size),
    )


def _note(fault: Exception) -> None:
    # Out of memory, mostly. The type only: a message could quote the input.
    logger.error("a step failed: %s", type(fault).__name__)
    if isinstance(fault, torch.OutOfMemoryError):
        torch.cuda.empty_cache()


def _model_failed() -> ServerError:
    return ServerError("the model failed", remedy="try again; if it lasts, see the server's log")


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
