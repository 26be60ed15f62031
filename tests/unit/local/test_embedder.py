"""Embeddings against transformers' own, and the thread that makes them."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import SiglipModel, SiglipTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medport.errors import InputError, NotReady, QuotaExceeded, ServerError, Timeout
from medport_local import phantom
from medport_local.engine import vectors
from medport_local.engine.batch_time import BatchTime
from medport_local.engine.embedder import Embedder, EmbedderLimits
from medport_local.engine.loading import load_siglip
from medport_local.snapshot import open_snapshot

TEXTS = ["Normal lungs.", "a nodule on the left", "", "x " * 200]


class FullBatches(BatchTime):
    """All that waits, as if a batch of any size took the same time."""

    def best(self, waiting: int, *, most: int, budget_s: float) -> int:
        return min(waiting, most)


class Gate:
    """Holds the device thread at its next batch until the test lets it go."""

    def __init__(self, embedder: Embedder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.held, self.open = threading.Event(), threading.Event()
        self.sizes: list[tuple[str, int]] = []
        self._forward = embedder._forward
        monkeypatch.setattr(embedder, "_forward", self)

    def __call__(self, kind: Any, values: Sequence[object]) -> np.ndarray:
        self.held.set()
        assert self.open.wait(10)
        self.sizes.append((kind, len(values)))
        return self._forward(kind, values)


@pytest.fixture
def new_embedder(siglip_folder: Path) -> Iterator[Callable[..., Embedder]]:
    opened: list[Embedder] = []

    def make(**limits: int) -> Embedder:
        siglip = load_siglip(open_snapshot(siglip_folder))
        opened.append(Embedder(siglip, limits=EmbedderLimits(**limits), times=FullBatches))
        return opened[-1]

    yield make
    for embedder in opened:
        embedder.close()


@pytest.fixture
def ready(new_embedder: Callable[..., Embedder]) -> Callable[..., Embedder]:
    """Makes embedders that have warmed up."""

    def make(**limits: int) -> Embedder:
        embedder = new_embedder(**limits)
        asyncio.run(embedder.embed_texts(["first"]))
        return embedder

    return make


def test_embeddings_are_the_models_own(
    new_embedder: Callable[..., Embedder], siglip_folder: Path, drawings: list[np.ndarray]
) -> None:
    embedder = new_embedder()
    model = SiglipModel.from_pretrained(siglip_folder, dtype=torch.float32).eval()
    tokenizer = SiglipTokenizer.from_pretrained(siglip_folder)
    ids = tokenizer(TEXTS, padding="max_length", max_length=64, truncation=True, return_tensors="pt").input_ids
    pixels = SiglipImageProcessorPil.from_pretrained(siglip_folder)(
        images=drawings, return_tensors="pt"
    ).pixel_values
    with torch.inference_mode():
        expected = model(input_ids=ids, pixel_values=pixels)

    async def both() -> tuple[list[np.ndarray], list[np.ndarray]]:
        arrays = [embedder.images.pixel_values(rgb) for rgb in drawings]
        texts, images = await asyncio.gather(embedder.embed_texts(TEXTS), embedder.embed_images(arrays))
        return texts, images

    texts, images = asyncio.run(both())

    assert np.allclose(np.stack(texts), expected.text_embeds.numpy(), atol=1e-6)
    assert np.allclose(np.stack(images), expected.image_embeds.numpy(), atol=1e-6)
    assert embedder.logit_scale == pytest.approx(model.logit_scale.item())
    assert embedder.logit_bias == pytest.approx(model.logit_bias.item())


def test_vector_does_not_depend_on_what_stands_beside_it() -> None:
    siglip = load_siglip(open_snapshot(phantom.weights_dir("medsiglip")), dtype="float32")
    rng = np.random.default_rng(0)
    side = siglip.images.side_px
    images = [rng.uniform(-1, 1, (3, side, side)).astype(np.float32) for _ in range(7)]
    texts = list(siglip.text.encode([f"a nodule, number {number}" for number in range(7)]))

    for tower, values in ((vectors.of_images, images), (vectors.of_texts, texts)):
        alone = torch.cat([tower(siglip, [value]) for value in values])  # type: ignore[operator]
        for size in range(2, 8):
            beside = tower(siglip, values[:size])  # type: ignore[operator]
            assert (beside - alone[:size]).abs().max() <= 1e-5


def test_what_waits_together_runs_together(ready: Callable[..., Embedder]) -> None:
    embedder = ready(max_batch=4)

    asyncio.run(embedder.embed_texts([f"text {i}" for i in range(10)]))

    stats = embedder.stats()
    assert (stats.batches, stats.embedded, stats.pending, stats.pending_bytes) == (4, 11, 0, 0)
    assert stats.mean_batch == 11 / 4


def test_batch_takes_what_came_while_the_one_before_ran(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ready()
    gate = Gate(embedder, monkeypatch)

    async def one_then_three() -> None:
        first = asyncio.create_task(embedder.embed_texts(["a"]))
        await asyncio.to_thread(gate.held.wait, 10)
        rest = [asyncio.create_task(embedder.embed_texts([text])) for text in "bcd"]
        while embedder.stats().pending < 4:
            await asyncio.sleep(0.001)
        gate.open.set()
        await asyncio.gather(first, *rest)

    asyncio.run(one_then_three())

    assert gate.sizes == [("text", 1), ("text", 3)]


def test_rates_are_measured_before_anyone_asks(ready: Callable[..., Embedder]) -> None:
    stats = ready().stats()

    assert stats.images_per_s > 0
    assert stats.texts_per_s > 0


def test_texts_are_tokenised_apart_from_the_device_thread(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ready()
    codec, threads = embedder._siglip.text, []
    encode = codec.encode

    def watched(texts: Sequence[str]) -> torch.Tensor:
        threads.append((threading.current_thread().name, len(texts)))
        return encode(texts)

    monkeypatch.setattr(codec, "encode", watched)
    asyncio.run(embedder.embed_texts(["a"] * 20))

    assert [count for _, count in threads] == [16, 4]
    assert all(name.startswith("medport-tokenizer") for name, _ in threads)


def test_more_than_may_ever_wait_is_refused(new_embedder: Callable[..., Embedder]) -> None:
    embedder = new_embedder(max_pending=3)

    with pytest.raises(InputError):
        asyncio.run(embedder.embed_texts(["a"] * 4))
    assert len(asyncio.run(embedder.embed_texts(["a"] * 3))) == 3


def test_what_finds_no_room_is_refused_with_a_time(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ready(max_pending=3)
    gate = Gate(embedder, monkeypatch)

    async def three_then_one() -> QuotaExceeded:
        three = asyncio.create_task(embedder.embed_texts(["a"] * 3))
        await asyncio.to_thread(gate.held.wait, 10)
        with pytest.raises(QuotaExceeded) as refused:
            await embedder.embed_texts(["b"])
        gate.open.set()
        await three
        return refused.value

    refused = asyncio.run(three_then_one())

    assert refused.retry_after_s is not None
    assert refused.retry_after_s >= 1
    assert embedder.stats().refused == 1


def test_caller_who_leaves_is_not_worked_for(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ready()
    gate = Gate(embedder, monkeypatch)

    async def one_stays_one_leaves() -> None:
        stays = asyncio.create_task(embedder.embed_texts(["a"]))
        await asyncio.to_thread(gate.held.wait, 10)
        leaves = asyncio.create_task(embedder.embed_texts(["b"] * 5))
        while embedder.stats().pending < 6:
            await asyncio.sleep(0.001)
        leaves.cancel()
        await asyncio.gather(leaves, return_exceptions=True)
        gate.open.set()
        await stays
        await embedder.embed_texts(["c"])

    asyncio.run(one_stays_one_leaves())

    assert gate.sizes == [("text", 1), ("text", 1)]
    assert embedder.stats().pending == 0


def test_passed_deadline_is_a_timeout(ready: Callable[..., Embedder]) -> None:
    embedder = ready()

    with pytest.raises(Timeout):
        asyncio.run(embedder.embed_texts(["a"], deadline=time.monotonic() - 1))
    assert embedder.stats().expired == 1


def test_batch_that_memory_does_not_hold_runs_in_parts(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = ready(max_batch=8)
    forward, sizes = embedder._forward, []

    def narrow(kind: Any, values: Sequence[object]) -> np.ndarray:
        sizes.append(len(values))
        if len(values) > 3:
            raise torch.OutOfMemoryError("CANARY")
        return forward(kind, values)

    monkeypatch.setattr(embedder, "_forward", narrow)
    first = asyncio.run(embedder.embed_texts([f"text {number}" for number in range(8)]))
    second = asyncio.run(embedder.embed_texts([f"text {number}" for number in range(8)]))

    assert np.allclose(first, second, atol=1e-5)
    assert sizes == [8, 4, 2, 2, 4, 2, 2, 2, 2, 2, 2]
    assert (embedder.stats().pending, embedder.stats().embedded) == (0, 17)
    assert "CANARY" not in caplog.text


def test_item_that_memory_does_not_hold_is_an_error(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch
) -> None:
    embedder = ready()

    def full(kind: object, values: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(embedder, "_forward", full)

    with pytest.raises(ServerError):
        asyncio.run(embedder.embed_texts(["a"]))
    assert embedder.stats().pending == 0


def test_batch_that_fails_is_an_error_and_the_next_one_works(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = ready()

    def broken(kind: object, values: object) -> None:
        raise RuntimeError("CANARY")

    with monkeypatch.context() as patch:
        patch.setattr(embedder, "_forward", broken)
        with pytest.raises(ServerError):
            asyncio.run(embedder.embed_texts(["a", "b"]))

    assert len(asyncio.run(embedder.embed_texts(["a"]))) == 1
    assert "CANARY" not in caplog.text


def test_embedder_whose_first_run_fails_still_answers(
    siglip_folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*given: object) -> None:
        raise RuntimeError("CANARY")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(Embedder, "_forward", broken)
        embedder = Embedder(load_siglip(open_snapshot(siglip_folder)))
        with pytest.raises(ServerError):
            asyncio.run(embedder.embed_texts(["a"]))

    assert len(asyncio.run(embedder.embed_texts(["a"]))) == 1
    assert "the first run failed: RuntimeError" in caplog.text
    assert "CANARY" not in caplog.text
    embedder.close()


def test_closed_embedder_refuses(new_embedder: Callable[..., Embedder]) -> None:
    embedder = new_embedder()
    embedder.close()

    with pytest.raises(NotReady):
        asyncio.run(embedder.embed_texts(["a"]))
    assert not embedder.healthy


@pytest.mark.parametrize(("drain_s", "answered"), [(10.0, 6), (0.0, 1)])
def test_closing_works_off_what_waits_for_as_long_as_it_was_told(
    ready: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch, drain_s: float, answered: int
) -> None:
    embedder = ready(max_batch=2)
    gate = Gate(embedder, monkeypatch)

    async def one_runs_and_five_wait() -> list[object]:
        tasks = [asyncio.create_task(embedder.embed_texts(["a"]))]
        await asyncio.to_thread(gate.held.wait, 10)
        tasks += [asyncio.create_task(embedder.embed_texts(["a"])) for _ in range(5)]
        while embedder.stats().pending < 6:
            await asyncio.sleep(0.001)
        closing = asyncio.create_task(asyncio.to_thread(embedder.close, drain_s))
        while embedder.healthy or (not drain_s and embedder.stats().pending > 1):
            await asyncio.sleep(0.001)
        gate.open.set()
        results: list[object] = await asyncio.gather(*tasks, return_exceptions=True)
        await closing
        return results

    results = asyncio.run(one_runs_and_five_wait())

    assert sum(isinstance(each, list) for each in results) == answered
    assert sum(isinstance(each, NotReady) for each in results) == 6 - answered
