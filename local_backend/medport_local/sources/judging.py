"""What is refused before weights are fetched: by the settings, and by the first bytes of each file of weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from medport_local import safetensors_header
from medport_local.model_identity import INT8_SUFFIX, Family, check_identity, holds_int8, identify, kind_of
from medport_local.safetensors_header import INDEX, LENGTH_BYTES, MAX_INDEX_BYTES
from medport_local.snapshot import MANIFEST, read_config
from medport_local.snapshot_file import refuse
from medport_local.sources.source import Offer
from medport_local.sources.wanted import WEIGHTS

MAX_HEADER_BYTES = 16 * 2**20
"""Of a file of weights. It is held whole, and parsed takes some 30 times that; a thousand tensors take 0.1 MB."""
MAX_CONFIG_BYTES = 4 * 2**20
"""Of a ``*config.json``: as ``open_snapshot`` has it, which would refuse a larger one when all has come."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judged:
    """What the settings of an offered model say."""

    model_id: str
    family: Family
    int8: bool
    spare: tuple[str, ...]
    """Offered weights that the index does not name; nothing would read them."""


def judge(offer: Offer, texts: Mapping[str, bytes]) -> Judged:
    """Say what an offer is by its settings.

    Args:
        texts: every ``*config.json``, and the index where there is one.

    Raises:
        VerificationError: the settings can make code run, are of a model that is not loaded or of another than the
            offer's name says, or name weights that are not there.
    """
    config = read_config(texts)
    kind = kind_of(config)
    int8 = holds_int8(config, kind)
    given = offer.manifest
    if given is not None and given.family != kind.family:
        refuse(MANIFEST, f"says {given.family}, but config.json describes a {kind.family}")
    shards = safetensors_header.shards_of(offer.files, texts.get(INDEX))
    model_id = given.repo_id if given else offer.model_id
    if model_id is None:
        place = Path("/", offer.requested.rstrip("/").rpartition("/")[2])
        model_id = identify(config, kind, place) + (INT8_SUFFIX if int8 else "")
    check_identity(model_id, config, int8=int8)
    return Judged(
        model_id=model_id,
        family=kind.family,
        int8=int8,
        spare=tuple(name for name in offer.files if name.endswith(WEIGHTS) and name not in shards),
    )


def is_judged(name: str) -> bool:
    """Whether ``judge`` looks into a file of this name."""
    return name == INDEX or name.endswith("config.json")


def check_size(name: str, size_bytes: int | None) -> None:
    """Refuse a file that ``judge`` looks into and that is larger than a snapshot may have it.

    Args:
        size_bytes: ``None`` if it is not known yet.

    Raises:
        VerificationError: it is.
    """
    limit = MAX_INDEX_BYTES if name == INDEX else MAX_CONFIG_BYTES
    if size_bytes is not None and size_bytes > limit and is_judged(name):
        refuse(name, f"is larger than {limit / 2**20:.0f} MiB")


def headed(pieces: Iterator[bytes], name: str, size_bytes: int, *, int8: bool) -> Iterator[bytes]:
    """The same bytes, the first of them only once they have proved to be the header of a safetensors file.

    Args:
        pieces: a file from its first byte on.
        size_bytes: of the whole file.
        int8: whether the settings say that weights are int8.

    Raises:
        VerificationError: they are not, as with a pickle under that name, or the header is longer than 16 MiB.
    """
    begun: bytearray | None = bytearray()
    header_bytes = -1
    for piece in pieces:
        if begun is None:
            yield piece
            continue
        begun += piece
        if header_bytes < 0 and len(begun) >= LENGTH_BYTES:
            header_bytes = safetensors_header.header_bytes(bytes(begun[:LENGTH_BYTES]), size_bytes, shard=name)
            if header_bytes > MAX_HEADER_BYTES:
                refuse(name, f"its header is longer than {MAX_HEADER_BYTES / 2**20:.0f} MiB")
        end = LENGTH_BYTES + header_bytes
        if header_bytes >= 0 and len(begun) >= end:
            safetensors_header.parse(bytes(begun[LENGTH_BYTES:end]), size_bytes - end, shard=name, int8=int8)
            yield bytes(begun)
            begun = None
    if begun:
        yield bytes(begun)  # shorter than it says it is, which is for who counts to refuse
