"""Laws of the wire: streams survive any cut, thinking is split alike, errors travel there and back."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport import errors
from medport.tasks.chat import Splitter, split
from medport.wire import sse, vertex

TEXTS = st.text(st.sampled_from("ab 氣胸\n"), max_size=12)


@given(st.lists(st.binary(max_size=20).filter(lambda b: b"\r" not in b and b), max_size=5), st.data())
def test_events_come_back_whatever_the_cuts(datas: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(map(sse.encode, datas))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
    parts = [stream[a:b] for a, b in zip([0, *cuts], [*cuts, len(stream)], strict=True)]
    decoder = sse.Decoder()

    assert [event for part in parts for event in decoder.feed(part)] == datas


@given(TEXTS, TEXTS, st.sampled_from(["answer", "thought", "cut"]), st.data())
def test_a_stream_splits_thinking_as_the_whole_does(
    thought: str, answer: str, kind: str, data: st.DataObject
) -> None:
    whole = {
        "answer": answer,
        "thought": f"<unused94>thought\n{thought}<unused95>{answer}",
        "cut": f"<unused94>thought\n{thought}",
    }[kind]
    cuts = sorted(data.draw(st.lists(st.integers(0, len(whole)), max_size=6)))
    splitter = Splitter()

    deltas = [d for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True) for d in splitter.feed(whole[a:b])]
    deltas += splitter.close()

    thinking, text = split(whole)
    assert "".join(d.text for d in deltas).strip() == text
    assert "".join(d.thinking for d in deltas).strip() == (thinking or "")


def test_a_thought_that_was_cut_stays_a_thought() -> None:
    assert split("<unused94>thought\nit may be") == ("it may be", "")


@pytest.mark.parametrize("row", errors.TABLE, ids=lambda row: row.error.__name__)
def test_an_error_is_the_same_class_after_the_wire(row: errors.Row) -> None:
    import orjson

    sent = row.error("what is wrong", field="images[0]", remedy="mend it")

    back = vertex.error_from(row.http, orjson.dumps(vertex.error_body(sent)))

    assert type(back) is row.error
    assert (back.message, back.field, back.remedy) == (sent.message, sent.field, sent.remedy)


@given(st.binary(min_size=32, max_size=32))
def test_a_digest_fits_into_a_label_and_comes_back(digest: bytes) -> None:
    label = vertex.to_label(digest.hex())

    assert len(label) <= 63
    assert vertex.from_label(label) == digest.hex()


def test_a_foreign_message_is_shown_without_what_it_quotes() -> None:
    message = "'chest pain, J. Doe' is not of type 'object'\n\nOn instance['messages']: J. Doe"

    assert "Doe" not in vertex.scrubbed(message)
