"""How fast this machine is, as measured: how large a chunk may be, and how long a queue lasts."""

from __future__ import annotations

import math

SMALLEST_CHUNK = 16
"""Tokens. Below it a chunk costs as much as a decode step: the weights are read, whatever the number of tokens."""
LARGEST_CHUNK = 2048
"""Tokens; bounds the memory of a step's activations and how long an arrival waits."""
_FIRST_CHUNK = 32
_CLOCK_S = 1e-9
"""Resolution of the clock: less time than this is none."""
_LEAST_GROWTH = 1.125
"""What a chunk within the budget may always grow by, beyond the sizes measured."""
_LEAST_OVER = 1.5
"""How far over the budget a chunk may go, in times of the smallest, if the budget cannot be kept at all."""

_NEWEST = 0.5
"""Share of the newest measurement in an average. Large, as load and position change faster than noise averages."""
_HALF_LIFE = 4096
"""Prompt tokens after which a measured rate counts half."""


class Pace:
    """Averages over past steps, and what they predict."""

    def __init__(self) -> None:
        self._chunks: dict[int, tuple[float, float]] = {}
        """By the bits of its size: mean tokens and seconds of a chunk."""
        self._tokens = self._seconds = 0.0
        self._image_s = self._answer_s = 0.0

    @property
    def tokens_per_s(self) -> float:
        """Prompt tokens computed per second of prefill, over the last few thousand; 0 before the first."""
        return self._tokens / self._seconds if self._seconds else 0.0

    @property
    def image_s(self) -> float:
        """Seconds of the vision tower's work per image; 0 before the first."""
        return self._image_s

    @property
    def answer_s(self) -> float:
        """Seconds from an answer's first token to its last; 0 before the first answer."""
        return self._answer_s

    def prefill_s(self, tokens: int, images: int) -> float:
        """Seconds that so much prefill will take; 0 for what was never measured."""
        rate = self.tokens_per_s
        return (tokens / rate if rate else 0.0) + images * self._image_s

    def saw_image(self, seconds: float) -> None:
        """Learn from an image whose features became ready."""
        self._image_s = _blend(self._image_s, seconds)

    def saw_answer(self, seconds: float) -> None:
        """Learn from an answer that is over."""
        self._answer_s = _blend(self._answer_s, seconds)

    def saw_chunk(self, tokens: int, seconds: float) -> None:
        """Learn from a chunk of ``tokens`` prompt tokens, at least 1."""
        fade = 0.5 ** (tokens / _HALF_LIFE)
        self._tokens = self._tokens * fade + tokens
        self._seconds = self._seconds * fade + seconds

        if tokens < SMALLEST_CHUNK:
            return
        bits, chunks = tokens.bit_length(), self._chunks
        mean_tokens, mean_s = chunks.get(bits, (0.0, 0.0))
        mean_tokens, mean_s = chunks[bits] = _blend(mean_tokens, tokens), _blend(mean_s, seconds)
        # A chunk takes no less than a smaller one, and no more than it would in proportion. Sizes that contradict
        # the one just measured are out of date: from one slow moment, or from another position in a prompt.
        for other, (size, size_s) in chunks.items():
            least, most = sorted((mean_s, mean_s * size / mean_tokens))
            chunks[other] = size, _blend(size_s, min(max(size_s, least), most))

    def chunk_within(self, budget_s: float) -> int:
        """The largest chunk that is predicted to take at most ``budget_s``.

        Time is not in proportion to tokens: a small chunk is bound by reading the weights, a large one by
        arithmetic. So means are kept apart for each power of two. Between them time is interpolated. Above the
        largest it goes on as between the last two, to twice the size at most; so chunks grow step by step, and a
        wrong guess costs one step.

        Where even the smallest chunk takes longer than the budget, half as much time again is allowed: reading the
        weights is most of it then, and what is added goes into tokens.

        Returns:
            From ``SMALLEST_CHUNK`` to ``LARGEST_CHUNK``, to an eighth of a power of two so that not each chunk has
            a shape of its own; 32 before the first measurement.
        """
        curve = sorted(self._chunks.values())
        if not curve:
            return _FIRST_CHUNK
        (size, seconds), slope = curve[0], math.inf
        if seconds > budget_s:
            if size >= 2 * SMALLEST_CHUNK:
                return SMALLEST_CHUNK
            budget_s = seconds * _LEAST_OVER
        for larger, larger_s in curve[1:]:
            slope = (larger_s - seconds) / (larger - size)
            if larger_s > budget_s:
                return _even(size + (budget_s - seconds) / slope)
            size, seconds = larger, larger_s
        if seconds < _CLOCK_S:
            return LARGEST_CHUNK
        # Bounded below: where the weights bind, the difference of two measurements is mostly noise. In proportion
        # if only one size is known, yet with some growth, or there would never be a second one.
        slope = min(seconds / size, max(slope, seconds / size / 4))
        return _even(min(2 * size, max(size + (budget_s - seconds) / slope, size * _LEAST_GROWTH)))


def _blend(average: float, newest: float) -> float:
    return average + _NEWEST * (newest - average) if average else newest


def _even(size: float) -> int:
    whole = int(min(LARGEST_CHUNK, max(SMALLEST_CHUNK, size)))
    return whole - whole % (1 << (whole.bit_length() - 4))
