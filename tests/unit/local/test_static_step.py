"""The step that can be recorded gives what the step that looks at its rows gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medport_local import phantom
from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import LINEARS, Decoder, lie_together
from medport_local.engine.kvcache import KvCache
from medport_local.engine.loading import Gemma, load_gemma
from medport_local.engine.static_step import Inputs, StaticStep, bucket, read_tokens
from medport_local.snapshot import open_snapshot

CLOSE = 1e-5
"""Of a logit, in float32; they range over tens."""
SLOTS, RUN = 6, 512


@pytest.fixture(scope="module")
def gemma() -> Gemma:
    return load_gemma(open_snapshot(phantom.weights_dir("medgemma")))


@pytest.fixture(scope="module")
def decoder(gemma: Gemma) -> Decoder:
    # In float64: in float32 the order of sums alone moves a logit of ten by up to the bound.
    gemma.model.double()
    return Decoder.of(gemma)


def cache_of(decoder: Decoder, seed: int) -> KvCache:
    cache = KvCache(
        decoder.shape, slots=SLOTS, tokens=SLOTS * RUN, window=decoder.shape.window,
        dtype=decoder.dtype, device=decoder.device,
    )  # fmt: skip
    draw = torch.Generator().manual_seed(seed)
    cache._rings.normal_(generator=draw)
    cache._arena.normal_(generator=draw)
    return cache


@settings(max_examples=25, deadline=None)
@given(
    # In any order of slots: the recorded step does not sort its rows.
    rows=st.lists(
        st.tuples(st.integers(0, SLOTS - 1), st.sampled_from([0, 1, 126, 127, 128, 129, 300, RUN - 1])),
        min_size=1, max_size=SLOTS, unique_by=lambda row: row[0],
    ),
    spare=st.integers(0, 3),
    seed=st.integers(0, 3),
)  # fmt: skip
@torch.inference_mode()
def test_static_step_is_the_plain_step(
    decoder: Decoder, rows: list[tuple[int, int]], spare: int, seed: int
) -> None:
    # The last run ends where the arena ends.
    leases = [Lease(slot, (SLOTS - 1 - slot) * RUN, RUN) for slot, _ in rows]
    positions = [position for _, position in rows]
    tokens = [110 + 7 * slot for slot, _ in rows]
    inputs = Inputs(len(rows) + spare, decoder.device)
    inputs.fill(tokens, positions, leases)
    one, other = cache_of(decoder, seed), cache_of(decoder, seed)

    made = StaticStep(decoder, one, inputs, read_tokens(positions))()

    order = sorted(range(len(rows)), key=lambda i: leases[i].slot)
    attend = other.step([leases[i] for i in order], [positions[i] for i in order])
    x = decoder.embed(torch.tensor([tokens[i] for i in order]))
    expected = decoder.logits(decoder.forward(x, torch.tensor([positions[i] for i in order]), attend))
    assert (made[order] - expected).abs().max() <= CLOSE
    assert (one._rings - other._rings).abs().max() <= CLOSE
    assert (one._arena - other._arena).abs().max() <= CLOSE


@torch.inference_mode()
def test_row_is_the_same_in_a_larger_bucket(decoder: Decoder) -> None:
    leases, positions = [Lease(4, RUN, RUN)], [200]
    found = []
    for rows, tokens in ((1, 256), (8, 512)):
        inputs = Inputs(rows, decoder.device)
        inputs.fill([120], positions, leases)
        found.append(StaticStep(decoder, cache_of(decoder, 1), inputs, tokens)()[:1])

    assert (found[0] - found[1]).abs().max() <= CLOSE


@torch.inference_mode()
def test_weights_side_by_side_are_the_same_products() -> None:
    gemma = load_gemma(open_snapshot(phantom.weights_dir("medgemma")))
    apart = Decoder.of(gemma).layers[2]
    h = torch.randn(3, gemma.model.config.text_config.hidden_size)
    expected = [*apart.qkv_of(h), *apart.gate_up_of(h)]
    module = gemma.model.model.language_model.layers[2]

    lie_together([getattr(module.self_attn, name) for name in LINEARS[:3]])
    lie_together([getattr(module.mlp, name) for name in LINEARS[4:6]])
    together = Decoder.of(gemma).layers[2]
    made = [*together.qkv_of(h), *together.gate_up_of(h)]

    assert together.gate_up is not None
    assert all((a - b).abs().max() <= CLOSE for a, b in zip(made, expected, strict=True))


@pytest.mark.parametrize(("count", "rows"), [(1, 1), (2, 2), (3, 4), (16, 16), (17, 32)])
def test_bucket_is_the_next_power_of_two(count: int, rows: int) -> None:
    assert bucket(count) == rows


def test_longest_row_decides_how_much_is_read() -> None:
    assert [read_tokens(each) for each in ([0], [255], [3, 256], [1023], [1024])] == [256, 256, 512, 1024, 2048]
