"""The fast path against transformers' own forward: cutting, caching and batching do not change its numbers."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.engine import image_blocks
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.reference import Reference
from medport_local.engine.sequence import GenerationRequest, Sampling
from medport_local.engine.vision import Vision
from medport_local.snapshot import open_snapshot

CLOSE = 1e-5
"""Of a logit, in float32; they range over tens."""


@pytest.fixture(scope="module")
def gemma(gemma_folder: Path) -> Gemma:
    return load_gemma(open_snapshot(gemma_folder))


class Prompt:
    """A prompt, its images, and what transformers makes of it."""

    def __init__(self, gemma: Gemma, texts: Sequence[int], seed: int, answer: int = 6) -> None:
        """``texts``: how many text tokens stand before, between and after the images."""
        draw = np.random.default_rng(seed)
        soft = [gemma.image_token_id] * gemma.image_tokens
        parts = [draw.integers(110, 400, count).tolist() for count in texts]
        tokens = [2, *parts[0], *itertools.chain.from_iterable([*soft, *part] for part in parts[1:])]
        images = tuple(draw.uniform(-1, 1, (3, 28, 28)).astype(np.float32) for _ in parts[1:])
        self.request = GenerationRequest(tokens=tuple(tokens), images=images, sampling=Sampling(max_tokens=answer))
        self.blocks = image_blocks(self.request.tokens, gemma.image_token_id)
        self.answer = draw.integers(110, 400, answer - 1).tolist()
        reference = Reference(gemma, self.request)
        self.expected = torch.stack([reference.prefill(), *(reference.decode(token) for token in self.answer)])

    def edges(self, wanted: Sequence[int]) -> list[int]:
        """The legal ones among the wanted edges, and the end."""
        length = len(self.request.tokens)
        inside = {place for start, end in self.blocks for place in range(start + 1, end)}
        return [*sorted({edge for edge in wanted if 0 < edge < length} - inside), length]


class Fast:
    """The fast path, by hand."""

    def __init__(self, gemma: Gemma, *, slots: int = 8, window: int | None = None) -> None:
        self.decoder = Decoder.of(gemma)
        shape = self.decoder.shape
        self.cache = KvCache(
            shape, slots=slots, tokens=4096, window=window or shape.window,
            dtype=self.decoder.dtype, device=self.decoder.device,
        )  # fmt: skip
        self.vision = Vision(gemma.model.model)

    @torch.inference_mode()
    def features(self, image: np.ndarray) -> torch.Tensor:
        unfinished = self.vision.begin(image)
        while (done := self.vision.advance(unfinished, 0.0)) is None:
            pass
        return done

    @torch.inference_mode()
    def prefill(self, prompt: Prompt, lease: Lease, edges: Sequence[int], start: int = 0) -> torch.Tensor:
        for end in edges:
            ids = torch.tensor(prompt.request.tokens[start:end])
            x = self.decoder.embed(ids.clamp_max(400))
            for (s, e), image in zip(prompt.blocks, prompt.request.images, strict=True):
                if start <= s and e <= end:
                    x[s - start : e - start] = self.features(image)
            chunk = self.cache.chunk(lease, start, end, prompt.blocks)
            hidden = self.decoder.forward(x, torch.arange(start, end), chunk)
            start = end
        return self.decoder.logits(hidden[-1:])[0]

    @torch.inference_mode()
    def step(self, tokens: Sequence[int], leases: Sequence[Lease], positions: Sequence[int]) -> torch.Tensor:
        hidden = self.decoder.forward(
            self.decoder.embed(torch.tensor(tokens)), torch.tensor(positions), self.cache.step(leases, positions)
        )
        return self.decoder.logits(hidden)

    def logits(self, prompt: Prompt, lease: Lease, edges: Sequence[int]) -> torch.Tensor:
        """Teacher-forced over the prompt's answer."""
        rows = [self.prefill(prompt, lease, edges)]
        for i, token in enumerate(prompt.answer):
            rows.append(self.step([token], [lease], [len(prompt.request.tokens) + i])[0])
        return torch.stack(rows)


CASES = {
    "text": [20],
    "text longer than the window": [90],
    "image first": [0, 10],
    "image last": [12, 0],
    "three images": [3, 2, 1, 30],
    "images beyond the window": [40, 40, 40],
}


@pytest.mark.parametrize("texts", CASES.values(), ids=CASES)
@pytest.mark.parametrize("every", [1000, 33, 7, 1])
def test_any_chunks_give_transformers_logits(gemma: Gemma, texts: list[int], every: int) -> None:
    prompt = Prompt(gemma, texts, seed=len(texts))

    made = Fast(gemma).logits(prompt, Lease(3, 640, 256), prompt.edges(range(every, 400, every)))

    assert (made - prompt.expected).abs().max() <= CLOSE


def test_edge_inside_an_image_is_refused(gemma: Gemma) -> None:
    prompt = Prompt(gemma, [10, 10], seed=1)
    start, end = prompt.blocks[0]

    with pytest.raises(AssertionError, match="inside an image block"):
        Fast(gemma).prefill(prompt, Lease(0, 0, 256), [(start + end) // 2, len(prompt.request.tokens)])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    # Two images always have tokens between them: the marks of their end and beginning.
    texts=st.lists(st.integers(1, 50), min_size=1, max_size=4),
    edges=st.lists(st.integers(1, 220), max_size=6),
    seed=st.integers(0, 3),
)
def test_no_way_of_cutting_matters(gemma: Gemma, texts: list[int], edges: list[int], seed: int) -> None:
    prompt = Prompt(gemma, texts, seed, answer=3)

    made = Fast(gemma).logits(prompt, Lease(0, 64, 512), prompt.edges(edges))

    assert (made - prompt.expected).abs().max() <= CLOSE


@pytest.mark.parametrize("slots", [range(8), [0, 1, 2, 3, 4, 6, 7, 9], [0, 5, 11, 13, 17, 20, 29, 31]],
                         ids=["dense", "a hull", "scattered"])  # fmt: skip
def test_row_is_the_same_alone_and_among_others(gemma: Gemma, slots: Sequence[int]) -> None:
    texts = [[5], [31], [32], [33], [90], [3, 4], [20, 20, 20], [60, 1]]
    prompts = [Prompt(gemma, each, seed=i) for i, each in enumerate(texts)]
    fast = Fast(gemma, slots=32)
    leases = [Lease(slot, i * 256, 256) for i, slot in enumerate(slots)]

    rows = [[fast.prefill(p, lease, p.edges([]))] for p, lease in zip(prompts, leases, strict=True)]
    for i in range(len(prompts[0].answer)):
        positions = [len(p.request.tokens) + i for p in prompts]
        step = fast.step([p.answer[i] for p in prompts], leases, positions)
        for row, made in zip(rows, step, strict=True):
            row.append(made)

    for prompt, row in zip(prompts, rows, strict=True):
        assert (torch.stack(row) - prompt.expected).abs().max() <= CLOSE


def test_what_a_failed_sequence_left_does_not_reach_others(gemma: Gemma) -> None:
    prompts = [Prompt(gemma, [40], seed=2), Prompt(gemma, [6], seed=3)]
    fast = Fast(gemma, slots=3)
    leases = [Lease(0, 0, 256), Lease(2, 256, 256)]
    fast.cache._rings.fill_(float("nan"))
    fast.cache._arena.fill_(float("nan"))
    for lease in leases:
        fast.cache.scrub(lease)

    rows = [[fast.prefill(p, lease, p.edges([]))] for p, lease in zip(prompts, leases, strict=True)]
    for i in range(len(prompts[0].answer)):
        step = fast.step([p.answer[i] for p in prompts], leases, [len(p.request.tokens) + i for p in prompts])
        for row, made in zip(rows, step, strict=True):
            row.append(made)

    for prompt, row in zip(prompts, rows, strict=True):
        assert (torch.stack(row) - prompt.expected).abs().max() <= CLOSE


@pytest.mark.parametrize("texts", [[20], [90], [10, 10], [60, 30]])
def test_restored_beginning_goes_on_as_if_computed(gemma: Gemma, texts: list[int]) -> None:
    prompt = Prompt(gemma, texts, seed=4)
    fast = Fast(gemma)
    length = len(prompt.request.tokens)
    cut = prompt.blocks[-1][1] if prompt.blocks else length - 5
    first, second = Lease(0, 0, 512), Lease(5, 1024, 512)
    fast.prefill(prompt, first, [cut])
    kept = fast.cache.keep(first, cut)
    fast.prefill(Prompt(gemma, [100], seed=9), first, [101])  # its old place is used by another

    fast.cache.restore(second, kept, cut)
    made = fast.prefill(prompt, second, [length], start=cut)

    assert (made - prompt.expected[0]).abs().max() <= CLOSE
    assert kept.nbytes == kept.rings.nbytes + kept.run.nbytes


def test_shorter_beginning_can_be_read_from_a_longer_one_below_the_window(gemma: Gemma) -> None:
    prompt = Prompt(gemma, [24], seed=6)
    fast = Fast(gemma)
    first, second = Lease(0, 0, 512), Lease(1, 512, 512)
    fast.prefill(prompt, first, [25])
    kept = fast.cache.keep(first, 25)

    fast.cache.restore(second, kept, 11)
    made = fast.prefill(prompt, second, [25], start=11)

    assert (made - prompt.expected[0]).abs().max() <= CLOSE


def test_long_context_attends_in_parts(gemma: Gemma, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("medport_local.engine.kvcache._LONG", 40)
    monkeypatch.setattr("medport_local.engine.kvcache._QUERIES", 16)
    for texts in ([90], [50, 30]):
        prompt = Prompt(gemma, texts, seed=7)

        made = Fast(gemma).logits(prompt, Lease(0, 0, 512), prompt.edges([30]))

        assert (made - prompt.expected).abs().max() <= CLOSE


def test_tower_in_slices_is_the_whole_tower(gemma: Gemma) -> None:
    image = np.random.default_rng(0).uniform(-1, 1, (3, 28, 28)).astype(np.float32)
    fast = Fast(gemma)

    sliced = fast.features(image)

    with torch.inference_mode():
        whole = gemma.model.model.get_image_features(torch.from_numpy(image)[None]).pooler_output[0]
    assert torch.equal(sliced, whole)


def test_bfloat16_agrees_with_transformers_bfloat16(gemma_folder: Path) -> None:
    gemma = load_gemma(open_snapshot(gemma_folder), dtype="bfloat16")
    same = total = 0
    for seed in range(12):
        prompt = Prompt(gemma, [30, 40], seed, answer=12)
        made = Fast(gemma).logits(prompt, Lease(0, 0, 512), prompt.edges([20]))
        best = prompt.expected.max(dim=-1).values
        # A tie within bfloat16's step is no disagreement: either token is a right answer.
        chosen = prompt.expected.gather(1, made.argmax(-1, keepdim=True))[:, 0]
        same += int((chosen >= best - best.abs() * 2**-7).sum())
        total += len(made)

    assert same >= 0.99 * total
