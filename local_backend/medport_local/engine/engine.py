"""Text generation: one thread owns the device and loops schedule → run → postprocess.

``protocol.Engine`` is what the serving side knows; ``TorchEngine`` is ours. Requests come from an event loop and
their events go back to it without blocking it. Cancelling is an ordinary state: the sequence is gone, and its
memory free, at the next step.
"""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from medport.errors import InputError, MedportError, NotReady, ServerError, Timeout
from medport_local.engine import devices
from medport_local.engine.answer import Answer
from medport_local.engine.blocks import Memory
from medport_local.engine.decoder import Decoder
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.footprint import Footprint, lay_out
from medport_local.engine.grammar import Grammars
from medport_local.engine.handle import Pending
from medport_local.engine.kvcache import KvCache, ring_bytes, token_bytes
from medport_local.engine.loading import Gemma, use_one_thread
from medport_local.engine.prompt import PromptBuilder
from medport_local.engine.protocol import Capabilities, Engine, EngineLimits, Handle, Stats
from medport_local.engine.runner import Runner
from medport_local.engine.sampler import Choice, Sampler
from medport_local.engine.scheduler import Batch, Scheduler
from medport_local.engine.sequence import GenerationRequest, Sequence
from medport_local.snapshot import Snapshot

if TYPE_CHECKING:
    from medport_local.engine.lora import Adapter

__all__ = ["Capabilities", "Engine", "EngineLimits", "Handle", "Stats", "TorchEngine"]

logger = logging.getLogger(__name__)

_SHARE = {"cpu": 0.4, "mps": 0.5, "cuda": 0.9}
"""Of the memory that is free beside the weights, what keys and values get unless told otherwise."""
_IDLE_S = 30.0
"""How often an idle engine looks for what it has kept too long."""


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
        # The memory may hold fewer than were allowed; whoever asks for many answers at once must know.
        self.limits = replace(self.limits, max_running=self.footprint.slots)
        # Nothing below may hold this engine: its weights are free with the last reference, not at some later time.
        self._memory = memory = Memory(slots=self.footprint.slots, tokens=self.footprint.tokens)
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
            lambda sequence: memory.lease(sequence.id),
            shared_bytes=self.footprint.shared_bytes,
            reuses=self.limits.reuse_bytes > 0,
            stall_s=self.limits.stall_ms / 1000,
            adapters=adapters,
        )
        self._runner.warm()
        self._sampler = Sampler(gemma.eos_ids)
        self._scheduler = Scheduler(
            self._memory,
            max_running=self.footprint.slots,
            max_queue=self.limits.max_queue,
            stall_ms=self.limits.stall_ms,
            max_wait_s=self.limits.max_wait_s,
            max_context=snapshot.max_context,
            restore=partial(_restored, self._runner),
        )
        self._answers: dict[int, Answer] = {}
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
        pending = Pending(next(self._ids), self.cancel)
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
            self._answers[sequence.id] = self._answer(request)
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
        choices: list[Choice | MedportError] = []
        if logits is not None:
            choices = list(self._sampler.pick(logits, batch.sequences))
        # Asked late: a card has done a step when its tokens are there.
        seconds = time.monotonic() - began
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
        sequence.generated.append(choice.token)
        self._counts["tokens"] += 1
        event = self._answers[sequence.id].accept(
            choice.token, logprob=choice.logprob, top=choice.top, complete=choice.complete
        )
        if event.finish_reason is not None:
            self._leave(sequence, "finished")
        sequence.deliver(event)

    def _answer(self, request: GenerationRequest) -> Answer:
        sampling = request.sampling
        special = None if sampling.skip_special_tokens else self._special
        return Answer(
            sampling,
            Detokenizer(self._pieces, sampling.stop, include_stop=sampling.include_stop, special=special),
            eos_ids=self._eos_ids,
            room=self._max_context - len(request.tokens),
        )

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
        del self._alive[sequence.id], self._answers[sequence.id]
        if (group := sequence.request.group) is not None:
            self._groups[group] -= 1
            if not self._groups[group]:
                del self._groups[group]
                self._runner.forget_group(group)
        self._counts[count] += 1
        self._changed.notify_all()


def _restored(runner: Runner, sequence: Sequence) -> int:
    try:
        return runner.restore(sequence)
    except Exception as fault:
        _note(fault)
        return 0  # then all of it is computed


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
