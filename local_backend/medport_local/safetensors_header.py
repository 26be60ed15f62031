"""What a safetensors file says about itself, checked before a byte of it is taken for a number.

The format: 8 bytes with the header's length, the header in JSON, then the tensors' bytes. Everything that the
reference parser refuses is refused here, and a few things more (https://github.com/huggingface/safetensors,
"Format"): a name that stands twice, a weight in two files, an index that does not say what the files say.
"""

from __future__ import annotations

import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from medport_local.snapshot_file import refuse

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
LENGTH_BYTES = 8
MAX_INDEX_BYTES = 64 * 2**20

_ITEM_BYTES: Mapping[str, int] = {"F32": 4, "BF16": 2, "F16": 2}
"""The kinds of numbers that a published MedGemma or MedSigLIP holds; integers and 8-bit floats need a scale."""
_WITH_INT8: Mapping[str, int] = {**_ITEM_BYTES, "I8": 1}
_MAX_HEADER_BYTES = 100 * 2**20
_MAX_DIMENSIONS = 8


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor's place in a file."""

    name: str
    dtype: str
    """``F32``, ``BF16`` or ``F16``; ``I8`` in a snapshot of int8 weights."""
    shape: tuple[int, ...]
    start: int
    """Of its bytes, counted from the end of the header."""
    end: int


def header_bytes(length: bytes, size_bytes: int, *, shard: str) -> int:
    """The header's length by the file's first 8 bytes.

    Raises:
        VerificationError: it is longer than the file or than 100 MiB.
    """
    count = int.from_bytes(length, "little")
    if len(length) < LENGTH_BYTES or count > min(_MAX_HEADER_BYTES, size_bytes - LENGTH_BYTES):
        refuse(shard, "is not a safetensors file: its header is longer than the file or than 100 MiB")
    return count


def parse(header: bytes, data_bytes: int, *, shard: str, int8: bool = False) -> tuple[StoredTensor, ...]:
    """The tensors of a file in the order of their bytes.

    Args:
        header: the JSON, without its length.
        data_bytes: what the file holds after the header.
        shard: the file's name, for errors.
        int8: whether the configuration says that weights are int8, with their scales beside them.

    Raises:
        VerificationError: the header is no JSON object, names a tensor twice, a kind of number that is not
            loaded, or a shape that does not fit its bytes; or the tensors overlap, leave gaps, or do not end with
            the file.
    """
    table = _object(header, shard)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        refuse(shard, "its __metadata__ is not a table of texts")
    sizes = _WITH_INT8 if int8 else _ITEM_BYTES
    found = sorted((_tensor(name, entry, shard, sizes) for name, entry in table.items()), key=_place)
    reached = 0
    for tensor in found:
        if tensor.start != reached:
            fault = "overlaps another" if tensor.start < reached else "lies behind a gap"
            refuse(shard, f"the tensor {tensor.name:.100} {fault}")
        reached = tensor.end
    if reached != data_bytes:
        refuse(shard, f"its tensors take {reached} bytes, and the file holds {data_bytes}")
    return tuple(found)


def shards_of(names: Collection[str], index: bytes | None) -> tuple[str, ...]:
    """Which of a snapshot's files hold its weights: those that the index names, or the only one.

    Raises:
        VerificationError: there are none, the index names one that is not there, or it is not clear which.
    """
    if index is None:
        if SINGLE not in names:
            refuse(SINGLE, "is missing; only safetensors weights are loaded")
        return (SINGLE,)
    shards = sorted(set(_weight_map(index).values()))
    for shard in shards:
        if shard not in names or not shard.endswith(".safetensors"):
            refuse(INDEX, f"names a shard that is not there: {shard:.100}")
    if SINGLE in names and SINGLE not in shards:
        refuse(INDEX, f"does not name {SINGLE}, which is there", "remove the one that is not meant")
    return tuple(shards)


def check_together(layouts: Mapping[str, Collection[StoredTensor]], index: bytes | None) -> None:
    """Refuse a tensor that stands in two shards, and an index that does not say where the tensors are.

    Args:
        layouts: the tensors of each shard, by its name.
    """
    where: dict[str, str] = {}
    for shard, tensors in layouts.items():
        for tensor in tensors:
            other = where.setdefault(tensor.name, shard)
            if other != shard:
                refuse(shard, f"the tensor {tensor.name:.100} is also in {other}")
    if index is None:
        return
    named = _weight_map(index)
    for name in sorted(named.keys() | where.keys()):
        if named.get(name) != where.get(name):
            refuse(INDEX, f"does not say where the tensor {name:.100} is")


def _object(data: bytes, name: str) -> dict[str, Any]:
    try:
        # Decoded here: json would guess at other encodings.
        found = json.loads(data.decode("utf-8"), object_pairs_hook=_unique)
    except _Twice as twice:
        refuse(name, f"names {twice.args[0]:.100} twice")
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        refuse(name, "its header is not a JSON object" if name != INDEX else "is not a JSON object")
    return found


class _Twice(Exception):
    pass


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise _Twice(key)
        found[key] = value
    return found


def _tensor(name: str, entry: object, shard: str, sizes: Mapping[str, int]) -> StoredTensor:
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        refuse(shard, f"the tensor {name:.100} is not described by dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in sizes:
        refuse(
            shard,
            f"the tensor {name:.100} is of {dtype!s:.20}, which is not loaded",
            f"give weights in {', '.join(sizes)}",
        )
    if not _counts(shape) or len(shape) > _MAX_DIMENSIONS or not _counts(offsets) or len(offsets) != 2:
        refuse(shard, f"the tensor {name:.100} has a shape or offsets that are no lists of counts")
    start, end = offsets
    if math.prod(shape) * sizes[dtype] != end - start:
        refuse(shard, f"the tensor {name:.100} has a shape that does not fit its bytes")
    return StoredTensor(name, dtype, tuple(shape), start, end)


def _counts(value: object) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each < 2**63 for each in value)


def _place(tensor: StoredTensor) -> tuple[int, int]:
    return (tensor.start, tensor.end)


def _weight_map(index: bytes) -> dict[str, str]:
    named = _object(index, INDEX).get("weight_map")
    if not isinstance(named, dict) or not named or not all(isinstance(shard, str) for shard in named.values()):
        refuse(INDEX, "has no weight_map from tensors to shards")
    return named
