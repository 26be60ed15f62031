"""Embeddings: whatever waits is run together, images and texts apart, by one thread that owns the device."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from medport.errors import NotReady, QuotaExceeded, ServerError
from medport_local.engine.codecs import ImageCodec
from medport_local.engine.loading import Siglip, use_one_thread

logger = logging.getLogger(__name__)

Vector: TypeAlias = "npt.NDArray[np.float32]"


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderLimits:
    """What an embedder takes at once."""

    max_batch: int = 32
    """Items of one kind in one run of the model."""
    max_pending: int = 4096
    """Items that may wait; one request may not hold more either."""
    max_per_request: int | None = None
    """Embeddings in one request, patches counted; the container's MAX_EMBEDDINGS_PER_REQUEST."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbedderStats:
    """Where an embedder stands. Counts are since its start."""

    pending: int
    batches: int
    embedded: int


@dataclass(slots=True, eq=False)
class _Item:
    kind: Literal["image", "text"]
    value: object = field(repr=False)
    result: Future[Vector] = field(default_factory=Future, repr=False)


class Embedder:
    """MedSigLIP behind a queue."""

    def __init__(self, siglip: Siglip, *, limits: EmbedderLimits | None = None) -> None:
        self.limits = limits or EmbedderLimits()
        self.logit_scale = siglip.logit_scale
        self.logit_bias = siglip.logit_bias
        self._siglip = siglip
        self._waiting: deque[_Item] = deque()
        self._changed = threading.Condition()
        self._counts = {"batches": 0, "embedded": 0}
        self._busy = 0
        self._closing = False
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

    async def embed_images(self, pixel_values: Sequence[npt.NDArray[np.float32]]) -> list[Vector]:
        """One unit vector, float32 ``[projection]``, for each float32 ``[3, size, size]``.

        Raises:
            QuotaExceeded: too much is waiting.
            NotReady: the embedder is stopping.
        """
        return await self._embed([_Item("image", value) for value in pixel_values])

    async def embed_texts(self, texts: Sequence[str]) -> list[Vector]:
        """One unit vector, float32 ``[projection]``, for each text. Raises as ``embed_images`` does."""
        return await self._embed([_Item("text", text) for text in texts])

    def stats(self) -> EmbedderStats:
        """Where the embedder stands now."""
        with self._changed:
            return EmbedderStats(pending=len(self._waiting) + self._busy, **self._counts)

    def close(self, drain_s: float = 0.0) -> None:
        """Take no more requests, work for ``drain_s`` seconds on what waits, then drop the rest."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting, timeout=drain_s)
            for item in self._waiting:
                if item.result.set_running_or_notify_cancel():
                    item.result.set_exception(NotReady("the server is stopping", remedy="try again in a moment"))
            self._waiting.clear()
            self._changed.notify_all()
        self._thread.join()

    async def _embed(self, items: list[_Item]) -> list[Vector]:
        with self._changed:
            if not self.healthy:
                raise NotReady("the server is stopping", remedy="try again in a moment")
            if len(self._waiting) + len(items) > self.limits.max_pending:
                raise QuotaExceeded(
                    f"more than {self.limits.max_pending} embeddings would wait",
                    remedy="send fewer at once",
                    retry_after_s=1.0,
                )
            self._waiting.extend(items)
            self._changed.notify_all()
        # Cancelling the caller cancels the futures, and the loop skips those.
        return await asyncio.gather(*(asyncio.wrap_future(item.result) for item in items))

    def _loop(self) -> None:
        if self._siglip.small:
            use_one_thread()
        while True:
            with self._changed:
                self._changed.notify_all()
                while not self._waiting:
                    if self._closing:
                        return
                    self._changed.wait()
                batch = self._next_batch()
                self._busy = len(batch)
            if batch:
                self._run(batch)

    def _next_batch(self) -> list[_Item]:
        """The oldest item and the next of its kind, in order; what was cancelled is dropped."""
        kind = self._waiting[0].kind
        batch: list[_Item] = []
        rest: deque[_Item] = deque()
        while self._waiting and len(batch) < self.limits.max_batch:
            item = self._waiting.popleft()
            if item.kind != kind:
                rest.append(item)
            elif item.result.set_running_or_notify_cancel():
                batch.append(item)
        self._waiting.extendleft(reversed(rest))
        return batch

    def _run(self, batch: list[_Item]) -> None:
        try:
            vectors = self._forward(batch)
        except Exception as fault:
            # The type only: a message could quote the input.
            logger.error("a batch failed: %s", type(fault).__name__)
            with self._changed:
                self._busy = 0
            for item in batch:
                item.result.set_exception(
                    ServerError("the model failed", remedy="try again; if it lasts, see the server's log")
                )
            return
        with self._changed:
            self._busy = 0
            self._counts["batches"] += 1
            self._counts["embedded"] += len(batch)
        for item, vector in zip(batch, vectors, strict=True):
            item.result.set_result(vector)

    @torch.inference_mode()
    def _forward(self, batch: list[_Item]) -> Vector:
        model, device = self._siglip.model, self._siglip.device
        if batch[0].kind == "image":
            pixels = torch.from_numpy(np.stack([np.asarray(item.value) for item in batch]))  # [n, 3, size, size]
            output = model.get_image_features(pixel_values=pixels.to(device, model.dtype))
        else:
            ids = self._siglip.text.encode([str(item.value) for item in batch])  # [n, length]
            output = model.get_text_features(input_ids=ids.to(device))
        features: Tensor = output.pooler_output.float()  # [n, projection]
        unit: Vector = torch.nn.functional.normalize(features, dim=-1).cpu().numpy()
        return unit
