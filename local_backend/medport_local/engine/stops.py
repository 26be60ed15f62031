"""Stop strings in a text that comes in pieces. Plain Python.

Knuth, Morris and Pratt's search, one for each string: a character costs the same however long the strings are and
however much of one has been seen, so no answer can be made slow by its stop strings.
"""

from __future__ import annotations

from collections.abc import Sequence


class Stops:
    """Where the first stop string ends. What the pieces are does not matter, only the text they make.

    Args:
        words: the stop strings, none of them empty.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self._words = [_Word(word) for word in dict.fromkeys(words)]

    @property
    def begun(self) -> int:
        """Characters at the end of the text so far that could be the beginning of a stop string."""
        return max((word.matched for word in self._words), default=0)

    def find(self, text: str, *, armed: bool = True) -> tuple[int, int] | None:
        """Go on by ``text``; look no further once one is found.

        Args:
            armed: whether a string that ends in ``text`` counts.

        Returns:
            Beginning and end of the stop string that is complete first, of those that end together the longest;
            counted from the beginning of ``text``, so the beginning may be negative. ``None`` if there is none.
        """
        found = [(end, end - len(word.word)) for word in self._words if (end := word.go_on(text, armed))]
        if not found:
            return None
        end, start = min(found)
        return start, end


class _Word:
    """How much of one stop string the text ends with."""

    __slots__ = ("_borders", "matched", "word")

    def __init__(self, word: str) -> None:
        assert word
        self.word = word
        self.matched = 0
        # For each beginning of the word, the length of its longest end that begins the word too; made when needed.
        self._borders = [0]

    def go_on(self, text: str, armed: bool) -> int:
        """Take ``text`` in; gives where in it the word is complete, 0 if it is not."""
        word, matched, place = self.word, self.matched, 0
        while place < len(text):
            if not matched:
                place = text.find(word[0], place)
                if place < 0:
                    break
                place += 1
                matched = 1
            else:
                while matched and word[matched] != text[place]:
                    matched = self._border(matched)
                matched += word[matched] == text[place]
                place += 1
            if matched == len(word):
                if armed:
                    return place
                matched = self._border(matched)
        self.matched = matched
        return 0

    def _border(self, length: int) -> int:
        borders, word = self._borders, self.word
        while len(borders) < length:
            border = borders[-1]
            while border and word[border] != word[len(borders)]:
                border = borders[border - 1]
            borders.append(border + (word[border] == word[len(borders)]))
        return borders[length - 1]
