"""A chunk in segments gives what a chunk under a mask gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medport_local.engine.blocks import Lease
from medport_local.engine.decoder import Shape
from medport_local.engine.kvcache import KvCache, MaskedChunk
from medport_local.engine.segments import Segment, SegmentedChunk, segments, usable

SHAPE = Shape(sliding=(True, False), heads=4, kv_heads=2, head_dim=16, window=24, scale=0.25)


def cache_of(seed: int, window: int = SHAPE.window) -> KvCache:
    cache = KvCache(SHAPE, slots=3, tokens=512, window=window, dtype=torch.float32, device=torch.device("cpu"))
    draw = torch.Generator().manual_seed(seed)
    cache._rings.normal_(generator=draw)
    cache._arena.normal_(generator=draw)
    return cache


@settings(max_examples=60, deadline=None)
@given(
    # Text tokens before, between and after images of so many tokens; then where the chunk is cut.
    texts=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    image=st.integers(1, 30),
    cut=st.integers(0, 3),
    seed=st.integers(0, 5),
)
def test_segments_give_what_masks_give(texts: list[int], image: int, cut: int, seed: int) -> None:
    blocks, at = [], texts[0] + 1
    for text in texts[1:]:
        blocks.append((at, at + image))
        at += image + text + 1
    edges = [0, *(end for _, end in blocks)]
    start, end = edges[min(cut, len(edges) - 1)], at + 1
    lease = Lease(1, 64, 448)
    draw = torch.Generator().manual_seed(seed)
    q = torch.randn(end - start, 4, 16, generator=draw)
    k, v = torch.randn(2, end - start, 2, 16, generator=draw)
    one, other = cache_of(seed), cache_of(seed)

    for layer in range(2):
        made = SegmentedChunk(one, lease, start, end, blocks)(layer, q, k, v)
        expected = MaskedChunk(other, lease, start, end, blocks)(layer, q, k, v)
        assert (made - expected).abs().max() <= 1e-5

    assert torch.equal(one._rings, other._rings)
    assert torch.equal(one._arena, other._arena)


def test_segments_of_a_chunk_between_images() -> None:
    blocks = [(3, 7), (10, 14), (14, 18), (30, 34)]

    made = segments(7, 25, blocks)

    assert made == [Segment(0, 3, True), Segment(3, 7, False), Segment(7, 11, False), Segment(11, 18, True)]


def test_edge_inside_an_image_is_refused() -> None:
    with pytest.raises(AssertionError, match="inside an image block"):
        segments(0, 5, [(3, 7)])


def test_masks_stay_where_there_is_no_card() -> None:
    assert not usable(SHAPE, torch.bfloat16, torch.device("cpu"))
