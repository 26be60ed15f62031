"""Token ids → text."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GemmaTokenizer

from medport_local.engine.codecs import TextCodec
from medport_local.engine.detokenizer import Detokenizer


@pytest.fixture(scope="module")
def codec(gemma_folder: Path) -> TextCodec:
    return TextCodec(GemmaTokenizer.from_pretrained(gemma_folder))


def stream(pieces: list[bytes], ids: list[int], stop: tuple[str, ...] = ()) -> list[str]:
    detokenizer = Detokenizer(pieces, stop)
    texts = []
    for token in ids:
        texts.append(detokenizer.feed(token))
        if detokenizer.stopped:
            return texts
    return [*texts, detokenizer.flush()]


@settings(deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_stream_equals_the_decoded_whole(codec: TextCodec, text: str) -> None:
    ids = codec.encode(text)

    assert "".join(stream(codec.pieces(), ids)) == codec.decode(ids)


def test_characters_are_never_cut(codec: TextCodec) -> None:
    ids = codec.encode("\U0001fa7b痛")  # four and three byte pieces

    texts = stream(codec.pieces(), ids)

    assert [text for text in texts if text] == ["\U0001fa7b", "痛"]


def test_half_a_character_at_the_end_becomes_a_replacement(codec: TextCodec) -> None:
    assert "".join(stream(codec.pieces(), codec.encode("痛")[:2])) == "\ufffd"


def test_thinking_tokens_stay_and_control_tokens_go(codec: TextCodec) -> None:
    ids = codec.encode("<unused94>thought\nx<unused95>y<end_of_turn><pad>")

    assert "".join(stream(codec.pieces(), ids)) == "<unused94>thought\nx<unused95>y"


@given(
    text=st.text("abc", max_size=30),
    stop=st.lists(st.text("abc", min_size=1, max_size=4), min_size=1, max_size=3),
)
def test_stop_string_ends_the_text_however_it_is_cut(text: str, stop: list[str]) -> None:
    pieces = [b"a", b"b", b"c"]
    texts = stream(pieces, ["abc".index(c) for c in text], tuple(stop))

    found = [place for word in stop if (place := text.find(word)) >= 0]
    # The earliest to be complete ends the text, so nothing before it can have been a stop string.
    complete = [place + len(word) for word in stop if (place := text.find(word)) >= 0]
    if not found:
        assert "".join(texts) == text
    else:
        ended = text[: min(complete)]
        assert "".join(texts) == ended[: min(p for w in stop if (p := ended.find(w)) >= 0)]


def test_what_could_become_a_stop_string_is_held_back() -> None:
    detokenizer = Detokenizer([b"x", b"E", b"N", b"D"], ("END",))

    assert [detokenizer.feed(token) for token in (0, 1, 2, 0, 1, 2, 3)] == ["x", "", "", "ENx", "", "", ""]
    assert detokenizer.stopped
    assert detokenizer.flush() == ""


def test_stop_string_can_stay_at_the_end() -> None:
    detokenizer = Detokenizer([b"x", b"E", b"N", b"D", b"Dy"], ("END",), include_stop=True)

    assert [detokenizer.feed(token) for token in (0, 1, 2, 4)] == ["x", "", "", "END"]
    assert detokenizer.stopped


def test_stop_string_counts_only_once_it_may() -> None:
    detokenizer = Detokenizer([b"a", b"b"], ("ab",))

    texts = [detokenizer.feed(0, armed=False), detokenizer.feed(1, armed=False), detokenizer.feed(0, armed=False)]

    assert texts == ["", "ab", ""]
    assert detokenizer.feed(1) == ""
    assert detokenizer.stopped


def test_control_tokens_are_seen_if_asked_for(codec: TextCodec) -> None:
    ids = codec.encode("x<unused95>y<end_of_turn><pad>")
    detokenizer = Detokenizer(codec.pieces(), special=codec.special_pieces())

    assert "".join(detokenizer.feed(i) for i in ids) == "x<unused95>y<end_of_turn><pad>"
    assert Detokenizer(codec.pieces()).piece(ids[-1]) == b""
