"""Recorded decode steps give what the plain step gives. Needs a card: MEDPORT_TEST_DEVICE=cuda."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from medport_local.engine import fused
from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Decoder
from medport_local.engine.graphs import Graphs
from medport_local.engine.kvcache import KvCache, MaskedChunk
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.segments import SegmentedChunk
from medport_local.snapshot import Snapshot

from .conftest import DEVICE

pytestmark = pytest.mark.skipif(not DEVICE.startswith("cuda"), reason="needs a card, by MEDPORT_TEST_DEVICE=cuda")

SLOTS, RUN = 8, 512
KINDS = {"kernels": True, "torch": False}
ROWS = {
    "one": [(3, 200)],
    "three, out of order": [(5, 0), (0, 127), (2, 128)],
    "all": [(slot, slot * 70) for slot in range(SLOTS)],
}


def cache_of(decoder: Decoder, seed: int = 0) -> KvCache:
    cache = KvCache(
        decoder.shape, slots=SLOTS, tokens=SLOTS * RUN, window=decoder.shape.window,
        dtype=decoder.dtype, device=decoder.device,
    )  # fmt: skip
    torch.manual_seed(seed)
    cache._rings.normal_()
    cache._arena.normal_()
    return cache


def graphs_of(decoder: Decoder, cache: KvCache, kernels: bool) -> Graphs:
    graphs = Graphs(decoder, cache, most_rows=SLOTS)
    graphs._fused = graphs._fused and kernels
    return graphs


def leases_of(rows: Sequence[tuple[int, int]]) -> list[Lease]:
    return [Lease(slot, (SLOTS - 1 - slot) * RUN, RUN) for slot, _ in rows]


def plain(
    decoder: Decoder, cache: KvCache, rows: Sequence[tuple[int, int]], tokens: Sequence[int]
) -> torch.Tensor:
    parts = []
    for row, lease, token in zip(rows, leases_of(rows), tokens, strict=True):
        x = decoder.embed(torch.tensor([token], device=decoder.device))
        position = torch.tensor([row[1]], device=decoder.device)
        parts.append(decoder.logits(decoder.forward(x, position, cache.step([lease], [row[1]]))))
    return torch.cat(parts)


@pytest.mark.parametrize("kernels", KINDS.values(), ids=KINDS)
@pytest.mark.parametrize("rows", ROWS.values(), ids=ROWS)
@torch.inference_mode()
def test_replayed_steps_are_plain_steps(
    phantom_gemma: tuple[Gemma, Snapshot], rows: list[tuple[int, int]], kernels: bool
) -> None:
    decoder = Decoder.of(phantom_gemma[0])
    one, other = cache_of(decoder), cache_of(decoder)
    graphs = graphs_of(decoder, one, kernels)

    for step in range(4):
        at = [(slot, position + step) for slot, position in rows]
        tokens = [110 + 3 * slot + step for slot, _ in rows]
        made = graphs.run(tokens, [position for _, position in at], leases_of(at))
        expected = plain(decoder, other, at, tokens)

        assert made is not None
        assert (made - expected).abs().max() <= 1e-4

    assert graphs.fused is kernels
    assert (one._rings - other._rings).abs().max() <= 1e-5
    assert (one._arena - other._arena).abs().max() <= 1e-5


@pytest.mark.parametrize("kernels", KINDS.values(), ids=KINDS)
@torch.inference_mode()
def test_bfloat16_steps_are_plain_steps_to_its_rounding(
    phantom_gemma: tuple[Gemma, Snapshot], kernels: bool
) -> None:
    gemma = load_gemma(phantom_gemma[1], device=DEVICE, dtype="bfloat16")
    decoder = Decoder.of(gemma)
    rows = ROWS["all"]
    one, other = cache_of(decoder), cache_of(decoder)
    tokens = [110 + 3 * slot for slot, _ in rows]

    made = graphs_of(decoder, one, kernels).run(tokens, [position for _, position in rows], leases_of(rows))

    expected = plain(decoder, other, rows, tokens)
    assert made is not None
    assert (made - expected).norm() <= 0.02 * expected.norm()


@torch.inference_mode()
def test_logits_outlive_the_next_replay(phantom_gemma: tuple[Gemma, Snapshot]) -> None:
    decoder = Decoder.of(phantom_gemma[0])
    graphs = graphs_of(decoder, cache_of(decoder), kernels=True)
    first = graphs.run([120], [30], [Lease(0, 0, RUN)])
    assert first is not None
    before = first.clone()

    graphs.run([140], [31], [Lease(0, 0, RUN)])

    assert torch.equal(first, before)


@torch.inference_mode()
def test_steps_that_nobody_waits_for_keep_their_own_inputs(phantom_gemma: tuple[Gemma, Snapshot]) -> None:
    decoder = Decoder.of(phantom_gemma[0])
    one, other = cache_of(decoder), cache_of(decoder)
    graphs = graphs_of(decoder, one, kernels=True)
    graphs.warm()  # writes to the first slot
    steps = [([110 + i], [30 + i], leases_of([(3, 30)])) for i in range(40)]
    # The card is busy for a while, so that all steps are given to it before it begins the first.
    busy = torch.randn(8192, 8192, device=DEVICE)
    for _ in range(20):
        busy = busy @ busy

    made = [graphs.run(*step) for step in steps]

    for row, (tokens, positions, _) in zip(made, steps, strict=True):
        expected = plain(decoder, other, [(3, positions[0])], tokens)
        assert row is not None
        assert (row - expected).abs().max() <= 1e-4


@torch.inference_mode()
def test_warming_records_what_any_context_uses(phantom_gemma: tuple[Gemma, Snapshot]) -> None:
    decoder = Decoder.of(phantom_gemma[0])
    graphs = graphs_of(decoder, cache_of(decoder), kernels=True)
    graphs.warm()
    before = len(graphs._recordings)

    graphs.run([120], [400], [Lease(0, 0, RUN)])
    graphs.run([120, 130, 140], [1, 2, 3], [Lease(slot, slot * RUN, RUN) for slot in range(3)])

    assert len(graphs._recordings) == before


@torch.inference_mode()
def test_step_that_cannot_be_recorded_is_left_to_the_plain_one(
    phantom_gemma: tuple[Gemma, Snapshot], monkeypatch: pytest.MonkeyPatch
) -> None:
    decoder = Decoder.of(phantom_gemma[0])
    graphs = graphs_of(decoder, cache_of(decoder), kernels=True)

    def fails(self: object) -> None:
        raise RuntimeError("no")

    monkeypatch.setattr("medport_local.engine.fused.FusedStep.__call__", fails)
    monkeypatch.setattr("medport_local.engine.graphs.StaticStep.__call__", fails)

    assert graphs.run([120], [30], [Lease(0, 0, RUN)]) is None
    assert graphs.run([120], [30], [Lease(0, 0, RUN)]) is None


@pytest.mark.parametrize("blocks", [[], [(20, 36), (60, 76)]], ids=["text", "images"])
@torch.inference_mode()
def test_fused_chunk_is_the_plain_chunk(
    phantom_gemma: tuple[Gemma, Snapshot], blocks: list[tuple[int, int]]
) -> None:
    decoder = Decoder.of(phantom_gemma[0])
    one, other = cache_of(decoder), cache_of(decoder)
    lease = Lease(3, RUN, RUN)
    ids = torch.arange(110, 410, device=decoder.device)
    for start, end in ((0, 200), (200, 300)):
        x = decoder.embed(ids[start:end])
        positions = torch.arange(start, end, device=decoder.device)
        made = fused.forward(decoder, x, positions, one.chunk(lease, start, end, blocks))
        expected = decoder.forward(x, positions, other.chunk(lease, start, end, blocks))

        assert (made - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("blocks", [[], [(20, 36), (60, 76)]], ids=["text", "images"])
@torch.inference_mode()
def test_chunk_in_segments_is_the_masked_chunk_on_the_card(
    phantom_gemma: tuple[Gemma, Snapshot], blocks: list[tuple[int, int]]
) -> None:
    shape = Decoder.of(phantom_gemma[0]).shape
    caches = [
        KvCache(
            shape, slots=2, tokens=1024, window=shape.window, dtype=torch.bfloat16, device=torch.device(DEVICE)
        )
        for _ in range(2)
    ]
    lease = Lease(1, RUN, RUN)
    for start, end in ((0, 200), (200, 300)):
        q = torch.randn(end - start, shape.heads, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
        k, v = torch.randn(2, end - start, shape.kv_heads, shape.head_dim, dtype=torch.bfloat16, device=DEVICE)
        for layer in range(len(shape.sliding)):
            made = SegmentedChunk(caches[0], lease, start, end, blocks)(layer, q, k, v)
            expected = MaskedChunk(caches[1], lease, start, end, blocks)(layer, q, k, v)

            assert (made - expected).norm() <= 0.01 * expected.norm()
