"""The first bytes of a file of weights, before the others are let through."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import VerificationError
from medport_local.sources.judging import MAX_HEADER_BYTES, headed

_HEADER = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
FILE = len(_HEADER).to_bytes(8, "little") + _HEADER + bytes(8)


@given(st.lists(st.integers(0, len(FILE)), max_size=20))
def test_bytes_come_through_as_they_are_however_they_are_cut(cuts: list[int]) -> None:
    places = [0, *sorted(cuts), len(FILE)]
    pieces = [FILE[begin:end] for begin, end in itertools.pairwise(places)]

    assert b"".join(headed(iter(pieces), "model.safetensors", len(FILE), int8=False)) == FILE


def test_header_longer_than_16_mib_is_refused_before_it_has_come() -> None:
    taken = []

    def pieces() -> Iterator[bytes]:
        yield (MAX_HEADER_BYTES + 1).to_bytes(8, "little")
        while True:
            taken.append(1)
            yield b" " * 65536

    with pytest.raises(VerificationError, match=r"model\.safetensors.*longer than 16 MiB"):
        list(headed(pieces(), "model.safetensors", 2**30, int8=False))

    assert taken == []
