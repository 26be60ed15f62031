"""Token ids → text as it becomes certain: no cut characters, nothing of a stop string. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence


class Detokenizer:
    """The text of one sequence, token by token.

    Args:
        pieces: what each token id adds, as bytes (``TextCodec.pieces``).
        stop: the texts at which to stop; they are left out of the result.
        include_stop: keep the one that is met.
        special: what control tokens add, if they are to be seen (``TextCodec.special_pieces``).
    """

    def __init__(
        self,
        pieces: Sequence[bytes],
        stop: Sequence[str] = (),
        *,
        include_stop: bool = False,
        special: Mapping[int, bytes] | None = None,
    ) -> None:
        self._pieces = pieces
        self._stop = tuple(stop)
        self._include_stop = include_stop
        self._special = special or {}
        # It keeps back the bytes of a character that is not complete yet.
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def piece(self, token: int) -> bytes:
        """What ``token`` adds, by itself."""
        if token in self._special:
            return self._special[token]
        return self._pieces[token] if token < len(self._pieces) else b""

    def feed(self, token: int, *, armed: bool = True) -> str:
        """What ``token`` makes certain. Once ``stopped`` is set there is no more.

        Args:
            armed: whether a stop string that ends in this token counts.
        """
        return self._release(self._utf8.decode(self.piece(token)), armed)

    def flush(self) -> str:
        """The rest, when no token follows: half a character becomes U+FFFD, half a stop string is text."""
        if self.stopped:
            return ""
        text = self._release(self._utf8.decode(b"", final=True), True)
        rest, self._held = ("", "") if self.stopped else (self._held, "")
        return text + rest

    def _release(self, fresh: str, armed: bool) -> str:
        if self.stopped:
            return ""
        text = self._held + fresh
        found = [(place, len(word)) for word in self._stop if armed and (place := text.find(word)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            place, length = min(found)
            return text[: place + length] if self._include_stop else text[:place]
        keep = max((_overlap(text, word) for word in self._stop), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]


def _overlap(text: str, word: str) -> int:
    """The length of the longest end of ``text`` that begins ``word``."""
    for length in range(min(len(text), len(word) - 1), 0, -1):
        if text.endswith(word[:length]):
            return length
    return 0
