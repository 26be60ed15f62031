"""The shipped phantoms through our loader and engine, token for token against transformers."""

from __future__ import annotations

import asyncio

import numpy as np
import pytest
import torch
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from medport.wire.chat import ImagePart, ImageUrl, Message, TextPart
from medport_local.engine.engine import TorchEngine
from medport_local.engine.loading import load_gemma
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.phantom import weights_dir
from medport_local.phantom.draw import render, sample
from medport_local.snapshot import open_snapshot


@pytest.mark.parametrize(
    ("question", "images"), [("Describe this X-ray.", 1), ("有什么变化？", 2), ("Who are you?", 0)]
)
def test_phantom_answers_as_transformers_would(question: str, images: int) -> None:
    folder = weights_dir("medgemma")
    snapshot = open_snapshot(folder)
    gemma = load_gemma(snapshot)
    engine = TorchEngine(gemma, snapshot)
    rng = np.random.default_rng(11)
    pictures = [_rgb(rng) for _ in range(images)]
    processor = Gemma3Processor.from_pretrained(folder, backend="pil")
    model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
    content = [*({"type": "image", "image": each} for each in pictures), {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        tokenize=True, return_dict=True, return_tensors="pt", add_generation_prompt=True,
    )  # fmt: skip
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=48, do_sample=False)[0, inputs["input_ids"].shape[1] :]
    expected = gemma.text.decode(ids.tolist())

    parts = [*(ImagePart(image_url=ImageUrl(url="data:,")) for _ in pictures), TextPart(text=question)]
    assert gemma.images is not None
    asked = GenerationRequest(
        tokens=engine.prompts.build([Message(role="user", content=parts)]),
        images=tuple(gemma.images.pixel_values(each) for each in pictures),
        sampling=Sampling(max_tokens=48),
    )

    async def text() -> str:
        return "".join([event.text async for event in engine.submit(asked)])

    assert list(asked.tokens) == inputs["input_ids"][0].tolist()
    assert asyncio.run(text()) == expected
    engine.close()


def _rgb(rng: np.random.Generator) -> np.ndarray:
    pixels = render(sample(rng), rng).pixels
    return np.repeat(pixels[:, :, None], 3, axis=2) if pixels.ndim == 2 else pixels
