"""How the declared memory is laid out: rings and arena, and what fits into them. Plain integers."""

from __future__ import annotations

from dataclasses import dataclass

from medport.errors import ConfigError

_LEAST_CONTEXT = 1024
"""Tokens of the arena that come with each place: more places than that would only wait for each other."""
_BLOCK = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """Bytes and tokens of the keys and values of one engine."""

    slots: int
    """Sequences that can run at once."""
    tokens: int
    """Size of the arena of the global layers."""
    window: int
    """Tokens in a ring."""
    ring_bytes: int
    """Of one slot."""
    token_bytes: int
    """Of one token of the arena."""
    shared_bytes: int
    """For beginnings and image features that several requests use."""

    @property
    def kv_bytes(self) -> int:
        """Of rings and arena."""
        return self.slots * self.ring_bytes + self.tokens * self.token_bytes

    @property
    def total_bytes(self) -> int:
        """All that is declared."""
        return self.kv_bytes + self.shared_bytes

    def requests_of(self, tokens: int) -> int:
        """How many requests of so many tokens, answer included, can run at once."""
        return min(self.slots, self.tokens // (-(-tokens // _BLOCK) * _BLOCK))

    def used_bytes(self, *, slots: int, tokens: int) -> int:
        """Bytes of what is lent."""
        return slots * self.ring_bytes + tokens * self.token_bytes


def lay_out(
    *,
    kv_bytes: int,
    reuse_bytes: int,
    max_running: int,
    max_context: int,
    window: int,
    ring_token_bytes: int,
    token_bytes: int,
) -> Footprint:
    """Lay out ``kv_bytes``: as many slots as make sense, the rest for the arena, and no more than can be used.

    Args:
        reuse_bytes: what may outlive requests; without it one prompt's beginning can be shared by its answers.
        window: of the sliding layers.
        ring_token_bytes: of one token in the rings of all sliding layers.
        token_bytes: of one token in all global layers.

    Raises:
        ConfigError: not even one sequence fits. Names ``kv_bytes``.
    """
    window = min(window, max_context)
    ring = window * ring_token_bytes
    least = min(max_context, _LEAST_CONTEXT)
    least = -(-least // _BLOCK) * _BLOCK
    slots = min(max_running, kv_bytes // (ring + least * token_bytes)) if ring or token_bytes else max_running
    if slots < 1:
        raise ConfigError(
            f"{kv_bytes} bytes do not hold one request of {least} tokens",
            field="kv_bytes",
            remedy=f"give at least {ring + least * token_bytes}, or another model",
        )
    context = -(-max_context // _BLOCK) * _BLOCK
    tokens = slots * context
    if token_bytes:
        tokens = min(tokens, (kv_bytes - slots * ring) // token_bytes // _BLOCK * _BLOCK)
    one = ring + min(tokens, context) * token_bytes
    return Footprint(
        slots=slots,
        tokens=tokens,
        window=window,
        ring_bytes=ring,
        token_bytes=token_bytes,
        shared_bytes=reuse_bytes or min(one, kv_bytes // 4),
    )
