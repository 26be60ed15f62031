"""How near does the embedder come to the matrix products that MedSigLIP consists of?

A model of MedSigLIP's shape (so400m, patches of 14 pixels, 448 pixels a side, 64 tokens) with random weights, in
bfloat16 and in float32. "embedder" is the whole path, from pixels or text handed in to vectors. "transformers" is
the library's forward alone. "products" are those of all layers alone, at the same number of rows, with nothing
between them: by torch's ``linear`` and ``bmm`` (the limit, and the baseline), with packed weights where the
embedder packs them, and without attention's two. A ratio of 1.11 is 90 % of the limit. On a busy machine set
OMP_NUM_THREADS=1 and read the ratio of CPU times: two threads wait for each other's turn on the cores.
"""

from __future__ import annotations

import asyncio
import copy
import gc
import statistics
from collections.abc import Callable, Coroutine, Iterator
from contextlib import closing
from dataclasses import replace
from functools import partial
from typing import Any

import harness
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import SiglipConfig, SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medport_local import phantom
from medport_local.engine import vectors
from medport_local.engine.codecs import ImageCodec
from medport_local.engine.embedder import Embedder
from medport_local.engine.loading import DtypeRule, Siglip, load_siglip
from medport_local.engine.packing import PackedLinear, pack
from medport_local.snapshot import open_snapshot

SHAPE = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "num_attention_heads": 16}
SIDE_PX, PATCH_PX, LENGTH = 448, 14, 64
PATCHES = (SIDE_PX // PATCH_PX) ** 2
IMAGES, TEXTS = 1, 8
BASELINE = "products"
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def main() -> None:
    given = harness.arguments(__doc__, rounds=5)
    table: list[harness.Row] = []
    notes: list[str] = []
    for dtype in ("bfloat16", "float32"):
        for what, samples in _measured(dtype, given.rounds):
            table += harness.rows(what, samples, BASELINE)
            notes += _shares(what, samples)
        gc.collect()
    harness.report(__doc__, table, given.json, notes=notes)


def _measured(dtype: DtypeRule, rounds: int) -> Iterator[tuple[str, dict[str, list[harness.Sample]]]]:
    plain = random_siglip(getattr(torch, dtype))
    layer = plain.model.vision_model.encoder.layers[0]
    packs = pack(copy.deepcopy(layer))
    # What is packed can no longer serve as the plain one.
    served = replace(plain, model=copy.deepcopy(plain.model)) if packs else plain
    rng = np.random.default_rng(0)
    images = [rng.normal(0, 0.5, (3, SIDE_PX, SIDE_PX)).astype(np.float32) for _ in range(IMAGES)]
    texts = [f"three short lines, number {i}" for i in range(TEXTS)]
    ids = list(plain.text.encode(texts))
    with closing(Embedder(served, dtype=dtype)) as embedder:
        for kind, count, tokens, forward, embed in (
            (
                "image",
                IMAGES,
                PATCHES,
                partial(vectors.of_images, plain, images),
                partial(embedder.embed_images, images),
            ),
            ("texts", TEXTS, LENGTH, partial(vectors.of_texts, plain, ids), partial(embedder.embed_texts, texts)),
        ):
            cases: dict[str, Callable[[], object]] = {
                BASELINE: Products(layer, count, tokens),
                "products, without attention": Products(layer, count, tokens, attention=False),
                "transformers": forward,
                "embedder": partial(_wait, embed),
            }
            if packs:
                cases["packed products"] = Products(layer, count, tokens, packed=True)
                cases["packed, without attention"] = Products(layer, count, tokens, packed=True, attention=False)
            yield f"{count} {kind}, {dtype}", harness.alternate(cases, rounds, warm_up=1)


def _wait(embed: Callable[[], Coroutine[Any, Any, object]]) -> object:
    return asyncio.run(embed())


def _shares(what: str, samples: dict[str, list[harness.Sample]]) -> list[str]:
    """The embedder's rate, and its share of each other speed, by the clock and by CPU time."""
    mine = samples["embedder"]
    rate = int(what.split()[0]) / statistics.median(sample.wall_s for sample in mine)
    notes = [f"{what}: the embedder does {rate:.3g} per second, {torch.get_num_threads()} threads"]
    for name, other in samples.items():
        pairs = list(zip(mine, other, strict=True))
        wall = statistics.median(theirs.wall_s / ours.wall_s for ours, theirs in pairs)
        cpu = statistics.median(theirs.cpu_s / ours.cpu_s for ours, theirs in pairs)
        if name != "embedder":
            notes.append(f"{what}: {wall:.0%} of the speed of {name}, {cpu:.0%} by CPU time")
    return notes


class Products:
    """All layers' matrix products for ``count`` items of ``tokens`` rows each, by one layer's weights."""

    def __init__(
        self, layer: Any, count: int, tokens: int, *, packed: bool = False, attention: bool = True
    ) -> None:
        linears = [
            *(getattr(layer.self_attn, name) for name in ("q_proj", "k_proj", "v_proj", "out_proj")),
            layer.mlp.fc1,
            layer.mlp.fc2,
        ]
        weight = linears[0].weight
        make: Callable[..., Tensor] = partial(torch.randn, dtype=weight.dtype, device=weight.device)
        self._inputs = [make(count, tokens, linear.in_features) for linear in linears]
        self._linears: list[Callable[[Tensor], Tensor]] = [
            PackedLinear(linear) if packed else partial(F.linear, weight=linear.weight, bias=linear.bias)
            for linear in linears
        ]
        heads, size = count * SHAPE["num_attention_heads"], SHAPE["hidden_size"] // SHAPE["num_attention_heads"]
        self._heads = make(heads, tokens, size) if attention else None
        self._weights = make(heads, tokens, tokens)

    @torch.inference_mode()
    def __call__(self) -> None:
        for _ in range(SHAPE["num_hidden_layers"]):
            for linear, x in zip(self._linears, self._inputs, strict=True):
                linear(x)
            if self._heads is not None:
                torch.bmm(self._heads, self._heads.transpose(1, 2))
                torch.bmm(self._weights, self._heads)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()


def random_siglip(dtype: torch.dtype) -> Siglip:
    """MedSigLIP's shape, random weights, and the phantom's tokenizer."""
    vision = {**SHAPE, "image_size": SIDE_PX, "patch_size": PATCH_PX}
    text = {
        **SHAPE,
        "vocab_size": 32_000,
        "max_position_embeddings": LENGTH,
        "projection_size": SHAPE["hidden_size"],
        **dict.fromkeys(("pad_token_id", "bos_token_id", "eos_token_id"), 1),
    }
    with torch.device("meta"):
        model = SiglipModel._from_config(
            SiglipConfig(text_config=text, vision_config=vision), attn_implementation="sdpa", dtype=dtype
        )
    model = model.to_empty(device=DEVICE).eval().requires_grad_(False)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.fill_(1.0) if "norm" in name and name.endswith("weight") else weight.normal_(0, 0.02)
        for name, buffer in model.named_buffers():
            assert name.endswith("position_ids")
            buffer.copy_(torch.arange(buffer.shape[-1]).expand(buffer.shape))
    processor = SiglipImageProcessorPil(size={"height": SIDE_PX, "width": SIDE_PX})
    return Siglip(
        model=model,
        text=load_siglip(open_snapshot(phantom.weights_dir("medsiglip"))).text,
        images=ImageCodec(processor),
        logit_scale=0.0,
        logit_bias=0.0,
        device=DEVICE,
    )
