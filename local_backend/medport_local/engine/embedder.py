"""Embeddings: what waits is run in batches, images and texts apart, by one thread that owns the device."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport.errors import NotReady, ServerError
from medport_local.engine import vectors
from medport_local.engine.agreement import settle
from medport_local.engine.batch_time import BatchTime
from medport_local.engine.codecs import ImageCodec
from medport_local.engine.embedding_queue import KINDS, EmbedderLimits, EmbeddingQueue, Item, Kind
from medport_local.engine.loading import DtypeRule, Siglip, use_one_thread

__all__ = ["Embedder", "EmbedderLimits", "EmbedderStats"]

logger = logging.getLogger(__name__)

Vector: TypeAlias = "npt.NDArray[np.float32]"

_TEXTS_AT_ONCE = 16
"""Texts tokenised in one go, so that a request of thousands lets others in between."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderStats:
    """Where an embedder stands. Counts are since its start."""

    pending: int
    """Images and texts that wait or run."""
    pending_bytes: int
    batches: int
    embedded: int
    expired: int
    """Items whose deadline passed while they waited."""
    refused: int
    """Items that found no room."""
    mean_batch: float
    """Items in a batch, 0 before the first."""
    images_per_s: float
    """What the device does at the best batch size measured, not what was asked of it; 0 before the first."""
    texts_per_s: float


class Embedder:
    """MedSigLIP behind a queue.

    Args:
        siglip: the model. It belongs to the embedder from then on: it may be converted and packed in place.
        limits: what to take at once.
        dtype: ``"auto"`` measures, see ``agreement.settle``; that takes some seconds per image on a CPU.
        times: how batch sizes are learnt.
    """

    def __init__(
        self,
        siglip: Siglip,
        *,
        limits: EmbedderLimits | None = None,
        dtype: DtypeRule = "auto",
        times: type[BatchTime] = BatchTime,
    ) -> None:
        self.limits = limits or EmbedderLimits()
        self.logit_scale = siglip.logit_scale
        self.logit_bias = siglip.logit_bias
        # Asked before packing, which takes weights out of the model's count.
        self._small = siglip.small
        self._siglip, self.agreement = settle(siglip, dtype)
        self._queue = EmbeddingQueue(
            max_batch=self.limits.max_batch,
            max_items=self.limits.max_pending,
            max_bytes=self.limits.max_pending_bytes,
            budget_s=self.limits.latency_ms / 1e3,
            times=times,
        )
        self._changed = threading.Condition()
        self._batches = self._embedded = 0
        self._closing = False
        # One thread: the tokenizer is not made for several, and the device thread must not wait for a long text.
        self._tokenizing = ThreadPoolExecutor(1, thread_name_prefix="medport-tokenizer")
        self._thread = threading.Thread(target=self._loop, name="medport-embedder", daemon=True)
        self._thread.start()

    @property
    def images(self) -> ImageCodec:
        """Makes the arrays that ``embed_images`` takes. CPU work: call it in a worker thread."""
        return self._siglip.images

    @property
    def text_length(self) -> int:
        """Tokens of a text; each is padded or cut to it."""
        return self._siglip.text.length

    @property
    def healthy(self) -> bool:
        """Whether new requests are taken."""
        return self._thread.is_alive() and not self._closing

    async def embed_images(
        self,
        pixel_values: Sequence[npt.NDArray[np.float32]],
        *,
        tenant: str = "",
        deadline: float | None = None,
    ) -> list[Vector]:
        """One unit vector, float32 ``[projection]``, for each float32 ``[3, size, size]``.

        Args:
            pixel_values: as ``images`` makes them.
            tenant: on whose behalf; tenants get equal shares of a busy device.
            deadline: in ``time.monotonic()``; what has not begun then is dropped.

        Raises:
            QuotaExceeded: too much is waiting.
            InputError: more than may ever wait.
            NotReady: the embedder is stopping.
            Timeout: the deadline passed.
        """
        side = self.images.side_px
        assert all(image.shape == (3, side, side) and image.dtype == np.float32 for image in pixel_values)
        return await self._embed(
            [
                Item(kind="image", value=image, size_bytes=image.nbytes, tenant=tenant, deadline=deadline)
                for image in pixel_values
            ]
        )

    async def embed_texts(
        self, texts: Sequence[str], *, tenant: str = "", deadline: float | None = None
    ) -> list[Vector]:
        """One unit vector, float32 ``[projection]``, for each text. The rest is as in ``embed_images``."""
        with self._changed:
            self._check_open()
            # Before the work of tokenising. What then waits is tokens: a long text is not kept.
            self._queue.check_room(len(texts), 8 * self.text_length * len(texts), now=time.monotonic())
        items = []
        for start in range(0, len(texts), _TEXTS_AT_ONCE):
            for ids in await self._tokenized(texts[start : start + _TEXTS_AT_ONCE]):
                items.append(Item(kind="text", value=ids, size_bytes=ids.nbytes, tenant=tenant, deadline=deadline))
        return await self._embed(items)

    def stats(self) -> EmbedderStats:
        """Where the embedder stands now."""
        with self._changed:
            queue = self._queue
            return EmbedderStats(
                pending=queue.pending,
                pending_bytes=queue.pending_bytes,
                batches=self._batches,
                embedded=self._embedded,
                expired=queue.expired,
                refused=queue.refused,
                mean_batch=self._embedded / self._batches if self._batches else 0.0,
                images_per_s=queue.rate("image"),
                texts_per_s=queue.rate("text"),
            )

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, work for ``drain_s`` seconds on what waits, then drop the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._queue.waiting, timeout=drain_s)
            for item in self._queue.clear():
                item.result.set_exception(_stopping())
            self._changed.notify_all()
        self._thread.join()
        self._tokenizing.shutdown()

    async def _tokenized(self, texts: Sequence[str]) -> list[Tensor]:
        try:
            ids = asyncio.get_running_loop().run_in_executor(
                self._tokenizing, self._siglip.text.encode, list(texts)
            )
        except RuntimeError as closed:
            raise _stopping() from closed
        return list((await ids).unbind())

    async def _embed(self, items: list[Item]) -> list[Vector]:
        with self._changed:
            self._check_open()
            self._queue.add(items, now=time.monotonic())
            self._changed.notify_all()
        # Cancelling the caller cancels the futures, and the queue drops those.
        found: list[Vector] = await asyncio.gather(*(asyncio.wrap_future(item.result) for item in items))
        return found

    def _check_open(self) -> None:
        if not self.healthy:
            raise _stopping()

    def _loop(self) -> None:
        if self._small:
            use_one_thread()
        self._warm_up()
        while True:
            with self._changed:
                self._changed.notify_all()
                while not self._queue.waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                batch = self._queue.next_batch(now=time.monotonic())
            if batch:
                self._run(batch)

    def _warm_up(self) -> None:
        """Run one item of each kind twice: the first run prepares the device, the second tells how fast it is."""
        side = self.images.side_px
        values: dict[Kind, object] = {
            "image": np.zeros((3, side, side), np.float32),
            "text": torch.zeros(self.text_length, dtype=torch.int64),
        }
        for kind in KINDS:
            for measured in (False, True):
                began = time.monotonic()
                try:
                    self._forward(kind, [values[kind]])
                except Exception as fault:
                    logger.error("the first run failed: %s", type(fault).__name__)
                    break
                if measured:
                    with self._changed:
                        self._queue.learn(kind, 1, time.monotonic() - began)

    def _run(self, batch: list[Item]) -> None:
        began = time.monotonic()
        try:
            found = self._forward(batch[0].kind, [item.value for item in batch])
        except torch.OutOfMemoryError:
            self._run_in_halves(batch)
        except Exception as fault:
            self._fail(batch, fault)
        else:
            with self._changed:
                self._queue.done(batch, seconds=time.monotonic() - began)
                self._batches += 1
                self._embedded += len(batch)
            for item, vector in zip(batch, found, strict=True):
                item.result.set_result(vector)

    def _run_in_halves(self, batch: list[Item]) -> None:
        """Do what one run has no memory for in two, and give no batch as large again."""
        if len(batch) == 1:
            self._fail(batch, MemoryError())
            return
        half = len(batch) // 2
        logger.warning("no memory for a batch of %d; %d at most from here on", len(batch), half)
        with self._changed:
            self._queue.shrink(batch[0].kind, half)
        for part in (batch[:half], batch[half:]):
            self._run(part)

    def _fail(self, batch: list[Item], fault: Exception) -> None:
        # The type only: a message could quote the input.
        logger.error("a batch failed: %s", type(fault).__name__)
        with self._changed:
            self._queue.done(batch, seconds=None)
        for item in batch:
            item.result.set_exception(
                ServerError("the model failed", remedy="try again; if it lasts, see the server's log")
            )

    def _forward(self, kind: Kind, values: Sequence[object]) -> Vector:
        tower = vectors.of_images if kind == "image" else vectors.of_texts
        unit: Vector = tower(self._siglip, values).numpy()  # type: ignore[arg-type]
        return unit


def _stopping() -> NotReady:
    return NotReady("the server is stopping", remedy="try again in a moment")
