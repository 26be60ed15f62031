"""Who owns which part of the keys' and values' memory. Plain integers; the tensors are the runner's.

Sliding-window layers keep one ring of ``window`` tokens per *slot*. Global layers share one arena of tokens, in
which each sequence owns one contiguous run, so that attention reads a view and no table of blocks. A run is
reserved in full when a sequence is admitted: what runs can finish, and nothing is ever taken back from it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """What one sequence owns until it leaves."""

    slot: int
    """Ring of the sliding-window layers; 0 to ``slots`` - 1."""
    start: int
    """First token of the run in the arena of the global layers; a multiple of ``block``."""
    tokens: int
    """Length of the run: what was asked for, rounded up to whole blocks."""


class Memory:
    """Slots and one arena, lent to sequences by their ids.

    First fit, from the low end: with tens of sequences a search through them costs less than any index of the
    holes would. Fragments join by themselves as neighbours leave; an empty arena is always one hole.

    Args:
        slots: Rings there are; at least 1.
        tokens: Size of the arena in tokens; what does not fill a block is not used.
        block: Runs begin and end at multiples of it, so that holes do not become too small for anyone.
    """

    def __init__(self, *, slots: int, tokens: int, block: int = 64) -> None:
        assert slots >= 1
        assert 1 <= block <= tokens
        self._slots = slots
        self._block = block
        self._capacity = tokens // block * block
        self._leases: dict[int, Lease] = {}

    @property
    def capacity(self) -> int:
        """Tokens in the arena, all of which one sequence could own."""
        return self._capacity

    @property
    def used_tokens(self) -> int:
        """Tokens of the arena that are lent."""
        return sum(lease.tokens for lease in self._leases.values())

    @property
    def free_tokens(self) -> int:
        """Tokens of the arena that are not lent, perhaps in several holes."""
        return self._capacity - self.used_tokens

    @property
    def held(self) -> int:
        """How many sequences own memory."""
        return len(self._leases)

    @property
    def largest_run(self) -> int:
        """Tokens in the largest hole: the most that a reservation can get, if a slot is free."""
        return max(end - start for start, end in self._holes())

    def ever_fits(self, tokens: int) -> bool:
        """Whether a run of so many tokens can be had once everyone has left."""
        return self._rounded(tokens) <= self._capacity

    def reserve(self, id: int, tokens: int) -> Lease | None:
        """Lend the lowest free slot and the first run that is long enough.

        Args:
            id: The sequence; it must own nothing yet.
            tokens: At least 1.

        Returns:
            ``None`` if there is no slot or no such run at present.
        """
        assert id not in self._leases
        assert tokens >= 1
        length = self._rounded(tokens)
        taken = {lease.slot for lease in self._leases.values()}
        slot = next((slot for slot in range(self._slots) if slot not in taken), None)
        start = next((start for start, end in self._holes() if end - start >= length), None)
        if slot is None or start is None:
            return None
        lease = self._leases[id] = Lease(slot, start, length)
        return lease

    def release(self, id: int) -> None:
        """Take back what a sequence owns; nothing happens if it owns nothing."""
        self._leases.pop(id, None)

    def lease(self, id: int) -> Lease:
        """What a sequence owns; it must own something."""
        return self._leases[id]

    def _rounded(self, tokens: int) -> int:
        return -(-tokens // self._block) * self._block

    def _holes(self) -> list[tuple[int, int]]:
        """Begin and end of each stretch that nobody owns, in order; the last, at the arena's end, may be empty."""
        holes, free_from = [], 0
        for lease in sorted(self._leases.values(), key=lambda lease: lease.start):
            if lease.start > free_from:
                holes.append((free_from, lease.start))
            free_from = lease.start + lease.tokens
        return [*holes, (free_from, self._capacity)]
