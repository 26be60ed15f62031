"""MedSigLIP's reply without a Python object for each number: 64 embeddings are 73,728 of them.

Only a plain reply is read here, in which every item has its embedding. Whatever else comes is left to the
general parser, which takes twice as long and finds out what it is.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

LARGEST_KEPT_BYTES = 16 * 1024 * 1024
"""A parser keeps its buffers, which saves a quarter of the time; those of a huge reply are given back."""
_kept = threading.local()


@dataclass(frozen=True, slots=True)
class Vectors:
    """A plain reply, not yet checked: rows as they came, and the first item's scale and bias."""

    rows: npt.NDArray[np.float32]
    scale: object
    bias: object


def read(body: bytes) -> Vectors | None:
    """The vectors of a reply; ``None`` if it is not plain."""
    import simdjson

    # Taken out and put back: as long as anything of a reply is alive, its parser refuses the next one.
    parser, _kept.parser = getattr(_kept, "parser", None) or simdjson.Parser(), None
    try:
        vectors = _plain(parser.parse(body), lists=body.count(b"["))
    # AttributeError: no list where one should be; RuntimeError: an integer of more than 64 bits.
    except (ValueError, TypeError, LookupError, AttributeError, RuntimeError):
        return None
    if len(body) <= LARGEST_KEPT_BYTES:
        _kept.parser = parser
    return vectors


def _plain(reply: Any, lists: int) -> Vectors | None:
    predictions = reply["predictions"]
    # One list of all, and one in each: a list within an embedding would be unrolled by as_buffer.
    if "error" in reply or lists != 1 + len(predictions):
        return None
    rows = [np.frombuffer(p["embedding"].as_buffer(of_type="d"), np.float64) for p in predictions]
    first = predictions[0]
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which the caller refuses
        return Vectors(np.array(rows, np.float32), first["model_temperature"], first["model_bias"])
