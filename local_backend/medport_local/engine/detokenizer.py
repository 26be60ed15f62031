"""Token ids → text as it becomes certain: no cut characters, nothing of a stop string. No torch."""

from __future__ import annotations

import codecs
from collections.abc import Mapping, Sequence

from medport_local.engine.stops import Stops


class Detokenizer:
    """The text of one sequence, token by token.

    Text is given out as soon as it is certain. What waits is less than one character, and less than the longest
    stop string, so a token costs the same early and late in an answer. Characters are Unicode's code points: those
    of an emoji that joiners hold together come one by one. Bytes that are no UTF-8 become U+FFFD.

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
        self._stops = Stops(stop)
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
        found = self._stops.find(fresh, armed=armed)
        held, text = len(self._held), self._held + fresh
        if found is not None:
            self.stopped, self._held = True, ""
            start, end = found
            return text[: held + (end if self._include_stop else start)]
        certain = len(text) - self._stops.begun
        self._held = text[certain:]
        return text[:certain]
