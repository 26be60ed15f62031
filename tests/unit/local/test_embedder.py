"""Embeddings against transformers' own, and batching."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import SiglipModel, SiglipTokenizer
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medport.errors import NotReady, QuotaExceeded, ServerError
from medport_local.engine.embedder import Embedder, EmbedderLimits
from medport_local.engine.loading import load_siglip
from medport_local.snapshot import open_snapshot

TEXTS = ["Normal lungs.", "a nodule on the left", "", "x " * 200]


@pytest.fixture
def new_embedder(siglip_folder: Path) -> Iterator[Callable[..., Embedder]]:
    opened: list[Embedder] = []

    def make(**limits: int) -> Embedder:
        opened.append(Embedder(load_siglip(open_snapshot(siglip_folder)), limits=EmbedderLimits(**limits)))
        return opened[-1]

    yield make
    for embedder in opened:
        embedder.close()


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


def test_what_waits_together_runs_together(new_embedder: Callable[..., Embedder]) -> None:
    embedder = new_embedder(max_batch=4)

    asyncio.run(embedder.embed_texts([f"text {i}" for i in range(10)]))

    assert (embedder.stats().batches, embedder.stats().embedded, embedder.stats().pending) == (3, 10, 0)


def test_too_many_are_refused(new_embedder: Callable[..., Embedder]) -> None:
    embedder = new_embedder(max_pending=3)

    with pytest.raises(QuotaExceeded):
        asyncio.run(embedder.embed_texts(["a"] * 4))
    assert len(asyncio.run(embedder.embed_texts(["a"] * 3))) == 3


def test_batch_that_fails_is_an_error_and_the_next_one_works(
    new_embedder: Callable[..., Embedder], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    embedder = new_embedder()

    def broken(batch: object) -> None:
        raise RuntimeError("CANARY")

    with monkeypatch.context() as patch:
        patch.setattr(embedder, "_forward", broken)
        with pytest.raises(ServerError):
            asyncio.run(embedder.embed_texts(["a", "b"]))

    assert len(asyncio.run(embedder.embed_texts(["a"]))) == 1
    assert "CANARY" not in caplog.text


def test_closed_embedder_refuses(new_embedder: Callable[..., Embedder]) -> None:
    embedder = new_embedder()
    embedder.close()

    with pytest.raises(NotReady):
        asyncio.run(embedder.embed_texts(["a"]))
