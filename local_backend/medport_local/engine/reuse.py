"""Work that is done once: image features and the keys and values of prompt prefixes. Plain Python, no tensors.

What is kept is opaque here, an object and its size in bytes; the runner makes and reads it. One ``Budget`` can
bound features and prefixes together: the least recently used entry goes first, whichever cache it is in.

Nothing here locks: one thread, the one that owns the device, finds and puts. Counters may be read from any thread.
"""

from __future__ import annotations

import hashlib
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from medport_local.engine.byte_lru import Budget, ByteLru

__all__ = [
    "Blocks",
    "Budget",
    "ByteLru",
    "Key",
    "Prefix",
    "Prefixes",
    "Scope",
    "image_digest",
    "legal_edge",
    "prompt_key",
]

P = TypeVar("P")

_TOKEN_BYTES = 8

Key: TypeAlias = "npt.NDArray[np.int64]"
"""A prompt by its content, see ``prompt_key``."""

Blocks: TypeAlias = "Sequence[tuple[int, int]]"
"""Where the soft tokens of each image begin and end (one past), in order."""

Scope: TypeAlias = "tuple[str, str | None]"
"""Tenant and adapter. Keys and values depend on the adapter; that something is kept is the tenant's secret."""


def image_digest(pixels: npt.NDArray[np.float32]) -> bytes:
    """sha256 of a preprocessed image, float32 ``[3, size, size]``: 32 bytes that stand for these pixels."""
    return hashlib.sha256(np.ascontiguousarray(pixels, dtype=np.float32).data).digest()


def prompt_key(tokens: Sequence[int], image_blocks: Blocks, digests: Sequence[bytes]) -> Key:
    """A prompt's content, one number a token: equal keys mean equal tokens and equal pixels.

    All soft tokens have one id, so they are replaced: the numbers of a block are its image's digest, expanded by
    SHAKE256 to 63 bits a token. Five tokens hold as much of it as sha256 can tell apart.

    Args:
        tokens: ids, none of them negative.
        digests: sha256 of each image's preprocessed pixels, one for each block.

    Returns:
        int64 ``[tokens]``: ids as they are, and a negative number for each soft token.
    """
    key = np.array(tokens, dtype=np.int64).reshape(-1)
    assert key.size == 0 or key.min() >= 0
    for (start, end), digest in zip(image_blocks, digests, strict=True):
        stream = hashlib.shake_256(digest).digest(8 * (end - start))
        key[start:end] = np.frombuffer(stream, dtype="<i8") | np.int64(-(2**63))
    return key


@dataclass(frozen=True, slots=True, eq=False)
class Prefix(Generic[P]):
    """The first tokens of a prompt that was computed, and what came of them."""

    scope: Scope
    key: Key = field(repr=False)
    """int64 ``[length]``, a read-only copy."""
    payload: P = field(repr=False)
    first: int = field(repr=False)
    """The first token."""
    length: int
    """Tokens."""

    def common(self, key: Key, least: int) -> int:
        """How many tokens both begin with; 0 where it is not more than ``least``."""
        length = min(len(self.key), len(key))
        # To have more in common than ``least``, they must agree at that place too: most entries end here.
        if length <= least or self.key[least] != key[least]:
            return 0
        differs = self.key[:length] != key[:length]
        place = int(differs.argmax())
        return place if differs[place] else length


class Prefixes(Generic[P]):
    """Prompt prefixes whose keys and values can be used again, for the same tenant and adapter.

    Sliding-window layers keep the last ``window`` tokens in a ring. While a prefix is no longer than that, its
    ring holds all of it, and any shorter prefix can be read from it. The ring of a longer one has lost its
    beginning, so it serves only prompts that begin with the whole of it.

    Args:
        budget: bytes, or a budget shared with other caches. Zero keeps nothing.
        window: tokens that the ring of a sliding-window layer holds.
        max_idle_s: what nobody asked for in so many seconds is forgotten.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        budget: int | Budget,
        *,
        window: int,
        max_idle_s: float = 900.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert window >= 1
        self._window = window
        self._kept: ByteLru[tuple[Scope, bytes], Prefix[P]] = ByteLru(budget, max_idle_s=max_idle_s, clock=clock)
        self.hits = 0
        """Prompt tokens that were found."""
        self.misses = 0
        """Prompt tokens that were not."""

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def used_bytes(self) -> int:
        """The payloads' bytes."""
        return self._kept.used_bytes

    def find(self, scope: Scope, key: Key, image_blocks: Blocks) -> tuple[int, P] | None:
        """The longest prefix that a prompt can begin with: how many of its tokens, and the payload.

        The tokens themselves are compared. The length is never inside an image block, whose tokens attend to each
        other both ways. It is the whole prompt only where the stored prefix ends there too, so that the payload
        holds what the prompt's last token gives.

        Args:
            key: the whole prompt's ``prompt_key``.
            image_blocks: the whole prompt's.
        """
        self._kept.expire()
        if len(key) == 0:
            return None
        first, prompt = int(key[0]), key.tobytes()
        best = 0
        found: tuple[tuple[Scope, bytes], Prefix[P]] | None = None
        for place, prefix in self._kept.newest_first():
            if prefix.first != first or prefix.length <= best or prefix.scope != scope:
                continue
            if prefix.length > self._window:
                # Its ring has wrapped: all of it or nothing.
                usable = _whole(place[1], prompt, image_blocks)
            else:
                usable = _part(prefix, key, image_blocks, best)
            if usable > best:
                best, found = usable, (place, prefix)
        self.hits += best
        self.misses += len(key) - best
        if found is None:
            return None
        self._kept.touch(found[0])
        return best, found[1].payload

    def put(self, scope: Scope, key: Key, payload: P, nbytes: int) -> None:
        """Keep what a prefix gave, in place of what the same prefix had.

        Args:
            key: int64 ``[length]``, the prompt's key up to where the prefix ends; copied.
            nbytes: the payload's size. One that is larger than the bound is not kept.
        """
        assert len(key) > 0
        content = key.tobytes()
        copy: Key = np.frombuffer(content, dtype=np.int64)  # a view of the cache's own key: they are there once
        prefix = Prefix(scope, copy, payload, int(copy[0]), len(copy))
        self._kept.put((scope, content), prefix, nbytes)

    def drop(self, tenant: str) -> None:
        """Forget everything of one tenant, with whatever adapter."""
        for place in [place for place, prefix in self._kept.newest_first() if prefix.scope[0] == tenant]:
            self._kept.discard(place)

    def expire(self) -> None:
        """Forget what has been idle for too long."""
        self._kept.expire()

    def clear(self) -> None:
        """Forget everything. The counters stay."""
        self._kept.clear()


def legal_edge(limit: int, image_blocks: Blocks) -> int:
    """The last place not after ``limit`` where a prompt may be cut: not inside an image block."""
    after = bisect_left(image_blocks, limit, key=lambda block: block[0])
    if after and limit < image_blocks[after - 1][1]:
        return image_blocks[after - 1][0]
    return limit


def _whole(content: bytes, prompt: bytes, image_blocks: Blocks) -> int:
    """The length of a prefix, if the prompt begins with all of it; else 0."""
    length = len(content) // _TOKEN_BYTES
    return length if prompt.startswith(content) and legal_edge(length, image_blocks) == length else 0


def _part(prefix: Prefix[Any], key: Key, image_blocks: Blocks, best: int) -> int:
    """How many tokens of a prompt can be read from a prefix; 0, or no more than ``best``, if it is of no use."""
    common = prefix.common(key, best)
    if common == len(key) != prefix.length:
        common -= 1
    return legal_edge(common, image_blocks)
