"""Token ids → text, and logits → tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GemmaTokenizer

from medport_local.engine.codecs import TextCodec
from medport_local.engine.detokenizer import Detokenizer
from medport_local.engine.sampler import Sampler, distribution
from medport_local.engine.sequence import GenerationRequest, Sampling, Sequence


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


def row(number: int, **sampling: object) -> Sequence:
    request = GenerationRequest(tokens=(1,), sampling=Sampling(max_tokens=1, **sampling))  # type: ignore[arg-type]
    return Sequence(id=number, request=request, deliver=lambda event: None)


def test_top_k_and_top_p_keep_the_likeliest() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log()

    def kept(**sampling: object) -> list[int]:
        return distribution(logits, Sampling(max_tokens=1, temperature=1.0, **sampling))[1].tolist()  # type: ignore[arg-type]

    assert kept() == [0, 1, 2, 3]
    assert kept(top_k=2) == [0, 1]
    assert kept(top_p=0.79) == [0, 1]
    assert kept(top_p=0.81) == [0, 1, 2]
    assert kept(top_p=1e-9) == [0]


def test_draws_follow_the_distribution() -> None:
    sampler = Sampler()
    logits = torch.tensor([[0.7, 0.2, 0.1]]).log()
    drawn = row(1, temperature=1.0, seed=3)

    counts = torch.bincount(torch.tensor([sampler.pick(logits, [drawn])[0] for _ in range(2000)]), minlength=3)

    assert torch.allclose(counts / 2000, torch.tensor([0.7, 0.2, 0.1]), atol=0.04)


def test_row_draws_the_same_whatever_stands_beside_it() -> None:
    logits = torch.randn(3, 50, generator=torch.Generator().manual_seed(0))

    alone, crowded = Sampler(), Sampler()
    first = [alone.pick(logits[:1], [row(1, temperature=1.0, seed=9)])[0] for _ in range(9)]
    others = [row(2, temperature=1.0, seed=1), row(3)]
    second = [crowded.pick(logits, [row(1, temperature=1.0, seed=9), *others])[0] for _ in range(9)]

    assert first == second
