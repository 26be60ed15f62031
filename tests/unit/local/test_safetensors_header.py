"""Headers that lie, and headers that the reference parser takes."""

from __future__ import annotations

import json
from typing import Any

import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save

from medport.errors import VerificationError
from medport_local.safetensors_header import INDEX, check_together, header_bytes, parse, shards_of


def tensor(dtype: Any = "F32", shape: Any = (2,), start: Any = 0, end: Any = 8) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def read(table: object, data_bytes: int) -> tuple[Any, ...]:
    return parse(json.dumps(table).encode(), data_bytes, shard="x.safetensors")


shapes = st.lists(st.integers(0, 3), max_size=3)
dtypes = st.sampled_from([torch.float32, torch.bfloat16, torch.float16])


@given(st.dictionaries(st.text(min_size=1, max_size=8), st.tuples(shapes, dtypes), max_size=5))
def test_what_the_library_writes_is_read_as_it_was_written(made: dict[str, Any]) -> None:
    made.pop("__metadata__", None)
    tensors = {name: torch.zeros(shape, dtype=dtype) for name, (shape, dtype) in made.items()}
    data = save(tensors, metadata={"format": "pt"})
    length = header_bytes(data[:8], len(data), shard="x")

    found = parse(data[8 : 8 + length], len(data) - 8 - length, shard="x")

    assert {each.name: each.shape for each in found} == {name: tuple(t.shape) for name, t in tensors.items()}
    assert sum(each.end - each.start for each in found) == sum(t.nbytes for t in tensors.values())


numbers = st.integers(-1, 9) | st.just(2**64)
entries = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "BF16", "F16", "I8", "Q9", ""]),
        "shape": st.lists(numbers, max_size=2),
        "data_offsets": st.lists(numbers, min_size=1, max_size=3),
    }
)
near = st.sampled_from(
    [
        tensor(),
        tensor(shape=(1,), end=4),
        tensor(shape=(1,), start=4),
        tensor("F16", (4,)),
        tensor("F16", (2,), 4, 8),
    ]
)


@given(st.dictionaries(st.sampled_from("abc"), near | entries, max_size=3), st.sampled_from([0, 4, 8, 12]))
def test_what_the_library_refuses_is_refused(table: dict[str, Any], data_bytes: int) -> None:
    header = json.dumps(table).encode()
    header += b" " * (-len(header) % 8)
    try:
        safetensors.deserialize(len(header).to_bytes(8, "little") + header + bytes(data_bytes))
    except safetensors.SafetensorError:
        with pytest.raises(VerificationError):
            parse(header, data_bytes, shard="x")


@pytest.mark.parametrize(
    ("table", "data_bytes", "fault"),
    [
        ({"a": tensor(), "b": tensor(start=4, end=12)}, 12, "b overlaps another"),
        ({"a": tensor(), "b": tensor()}, 8, "overlaps another"),
        ({"a": tensor(), "b": tensor(start=12, end=20)}, 20, "b lies behind a gap"),
        ({"a": tensor()}, 7, "take 8 bytes, and the file holds 7"),
        ({"a": tensor()}, 9, "take 8 bytes, and the file holds 9"),
        ({"a": tensor(shape=(3,))}, 8, "shape that does not fit its bytes"),
        ({"a": tensor(shape=(2**40, 2**40))}, 8, "shape that does not fit its bytes"),
        ({"a": tensor(start=8, end=0)}, 8, "shape that does not fit its bytes"),
        ({"a": tensor(shape=(-1, -2))}, 8, "no lists of counts"),
        ({"a": tensor(shape=(True, 2))}, 8, "no lists of counts"),
        ({"a": tensor(shape=(2.0,))}, 8, "no lists of counts"),
        ({"a": tensor(start=-8, end=0)}, 8, "no lists of counts"),
        ({"a": tensor(shape=[1] * 9)}, 4, "no lists of counts"),
        ({"a": tensor("I64", (1,))}, 8, "I64, which is not loaded"),
        ({"a": tensor("F8_E4M3", (8,))}, 8, "F8_E4M3, which is not loaded"),
        ({"a": tensor(["F32"])}, 8, "which is not loaded"),
        ({"a": tensor() | {"extra": 1}}, 8, "not described by"),
        ({"a": 3}, 8, "not described by"),
        ({"__metadata__": {"format": 1}}, 0, "__metadata__"),
        ([1], 0, "not a JSON object"),
    ],
)
def test_header_that_lies_is_refused(table: object, data_bytes: int, fault: str) -> None:
    with pytest.raises(VerificationError, match=fault):
        read(table, data_bytes)


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": %(t)b, "a": %(t)b}',
        b'{"a": {"dtype": "F32", "dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}',
    ],
)
def test_key_that_stands_twice_is_refused(header: bytes) -> None:
    with pytest.raises(VerificationError, match="twice"):
        parse(header % {b"t": json.dumps(tensor()).encode()}, 8, shard="x")


@pytest.mark.parametrize(
    "header", [b"\xff\xfe{\x00}\x00", b"[" * 100_000, b"", b'{"a": ' + b"9" * 5000 + b"}", b"nul"]
)
def test_header_that_is_no_json_is_refused(header: bytes) -> None:
    with pytest.raises(VerificationError, match="not a JSON object"):
        parse(header, 0, shard="x")


@pytest.mark.parametrize(("length", "size"), [(93, 100), (2**63, 100), (101 * 2**20, 2**40)])
def test_header_that_cannot_be_so_long_is_refused(length: int, size: int) -> None:
    with pytest.raises(VerificationError, match="longer than the file"):
        header_bytes(length.to_bytes(8, "little"), size, shard="x")


@pytest.mark.parametrize("start", [b"", b"\x01\x00"])
def test_file_of_a_few_bytes_is_refused(start: bytes) -> None:
    with pytest.raises(VerificationError, match="longer than the file"):
        header_bytes(start, len(start), shard="x")


def test_index_that_puts_a_tensor_elsewhere_is_refused() -> None:
    layouts = {"1.safetensors": read({"a": tensor()}, 8), "2.safetensors": read({"b": tensor()}, 8)}
    right = {"a": "1.safetensors", "b": "2.safetensors"}
    check_together(layouts, json.dumps({"weight_map": right}).encode())

    for wrong in (
        {"a": "2.safetensors", "b": "1.safetensors"},
        {"a": "1.safetensors"},
        right | {"c": "1.safetensors"},
    ):
        with pytest.raises(VerificationError, match="does not say where the tensor"):
            check_together(layouts, json.dumps({"weight_map": wrong}).encode())


@pytest.mark.parametrize("index", [b"{}", b"[]", b'{"weight_map": {}}', b'{"weight_map": {"a": 1}}', b"\xff"])
def test_index_without_a_map_is_refused(index: bytes) -> None:
    with pytest.raises(VerificationError) as fault:
        shards_of(["model.safetensors"], index)

    assert fault.value.field == INDEX


def test_weights_under_another_name_need_an_index() -> None:
    with pytest.raises(VerificationError, match=r"model\.safetensors.*missing"):
        shards_of(["weights.safetensors"], None)
