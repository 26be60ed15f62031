"""Token ids → text."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GemmaTokenizer

from medport_local.engine.codecs import TextCodec
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.stops import Stops


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


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(data), *(place % (len(data) + 1) for place in places)})
    return [data[start:end] for start, end in itertools.pairwise(edges)]


def whole_characters(data: bytes) -> str:
    """The longest beginning that is whole characters, of text that is cut anywhere."""
    for end in range(len(data), -1, -1):
        try:
            return data[:end].decode()
        except UnicodeDecodeError:
            continue
    raise AssertionError


characters = st.one_of(
    st.characters(exclude_categories=["Cs"]),
    st.sampled_from(["\u200d", "\U0001f469", "\U0001f52c", "\ufe0f", "\U0001f3fd", "肺", "é", "\u0301", "\x00"]),
)


@given(text=st.text(characters, max_size=30), places=st.lists(st.integers(0, 200), max_size=40))
def test_each_token_gives_all_characters_that_are_whole(text: str, places: list[int]) -> None:
    pieces = cut(text.encode(), places)
    detokenizer = Detokenizer(pieces)

    given_out = ""
    for token in range(len(pieces)):
        given_out += detokenizer.feed(token)
        assert given_out == whole_characters(b"".join(pieces[: token + 1]))
    assert detokenizer.flush() == ""


@given(data=st.binary(max_size=40), places=st.lists(st.integers(0, 200), max_size=40))
def test_bytes_that_are_no_text_come_out_the_same_however_they_are_cut(data: bytes, places: list[int]) -> None:
    pieces = cut(data, places)

    assert "".join(stream(pieces, list(range(len(pieces))))) == data.decode("utf-8", "replace")


def test_parts_of_a_joined_emoji_come_one_by_one() -> None:
    scientist = "\U0001f469\u200d\U0001f52c"
    pieces = [bytes([byte]) for byte in scientist.encode()]

    assert [text for text in stream(pieces, list(range(len(pieces)))) if text] == list(scientist)


def until_stopped(text: str, stop: list[str], include: bool, first: int = 0) -> tuple[str, bool]:
    """The definition: the stop string that is complete first, at ``first`` or later; of two, the longer."""
    for end in range(first + 1, len(text) + 1):
        met = [word for word in stop if text[:end].endswith(word)]
        if met:
            return text[: end if include else end - max(map(len, met))], True
    return text, False


@settings(max_examples=300)
@given(
    text=st.text("ab肺", max_size=40),
    stop=st.lists(st.text("ab肺", min_size=1, max_size=7), max_size=5),
    places=st.lists(st.integers(0, 200), max_size=40),
    include=st.booleans(),
    unarmed=st.integers(0, 5),
)
def test_stop_strings_do_not_depend_on_how_the_text_is_cut(
    text: str, stop: list[str], places: list[int], include: bool, unarmed: int
) -> None:
    pieces = cut(text.encode(), places)
    detokenizer = Detokenizer(pieces, stop, include_stop=include)
    before = whole_characters(b"".join(pieces[:unarmed]))
    expected, stops = until_stopped(text, stop, include, len(before))

    given_out = ""
    for token in range(len(pieces)):
        given_out += detokenizer.feed(token, armed=token >= unarmed)
        assert expected.startswith(given_out)
        so_far = whole_characters(b"".join(pieces[: token + 1]))
        longest = max((len(word) - 1 for word in stop), default=0)
        assert detokenizer.stopped or len(so_far) - len(given_out) <= longest
    stopped = detokenizer.stopped
    given_out += detokenizer.flush()

    assert (given_out, stopped) == (expected, stops)


@given(
    text=st.text("ab", max_size=40), stop=st.lists(st.text("ab", min_size=1, max_size=7), min_size=1, max_size=5)
)
def test_no_more_is_held_back_than_could_become_a_stop_string(text: str, stop: list[str]) -> None:
    stops = Stops(stop)

    found = stops.find(text)

    if found is None:
        ends = [k for word in stop for k in range(len(word)) if text.endswith(word[:k])]
        assert stops.begun == max(ends)


def test_cost_of_a_token_does_not_grow_with_the_answer_or_the_stop_strings() -> None:
    # A count of steps, not of seconds: each comparison of the search goes through the counting string.
    class Counted(str):
        looks = 0

        def __getitem__(self, key: object) -> str:
            Counted.looks += 1
            return str.__getitem__(self, key)  # type: ignore[index]

    words = [Counted("a" * length + "b") for length in range(240, 256)]
    stops = Stops(words)
    for word in stops._words:
        word.word = Counted(word.word)

    for _ in range(8192):
        assert stops.find("aaaa") is None

    per_character = Counted.looks / (8192 * 4 * len(words))
    assert per_character < 6
