"""What ``chat_stream`` promises, on every backend and in both colours."""

from __future__ import annotations

import time
from typing import Any

import pytest
from support.polling import wait_until

from medport import ConfigError
from medport_local.engine.engine import TorchEngine

from .conftest import QUESTION, Asked


@pytest.fixture
def slow_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each token takes 50 ms, as with a large model: an answer lasts long enough to be left."""
    step = TorchEngine._step

    def slow(self: TorchEngine, batch: Any) -> None:
        time.sleep(0.05)
        step(self, batch)

    monkeypatch.setattr(TorchEngine, "_step", slow)


def test_deltas_join_to_the_text_of_chat(client: Asked, drawings: list[Any]) -> None:
    whole = client.chat(QUESTION, drawings[1], max_tokens=60)

    with client.stream(QUESTION, drawings[1], max_tokens=60) as stream:
        texts = [delta.text for delta in stream]

    assert "".join(texts).strip() == whole.text
    assert len(texts) > 5
    assert stream.result.text == whole.text


def test_the_result_is_complete_at_the_end(client: Asked, drawings: list[Any]) -> None:
    whole = client.chat(QUESTION, drawings[1], max_tokens=60)

    with client.stream(QUESTION, drawings[1], max_tokens=60) as stream:
        for _ in stream:
            pass

    result = stream.result
    assert result.usage == whole.usage
    assert result.finish_reason == whole.finish_reason
    assert result.preliminary is True
    assert result.provenance.snapshot_sha256 == whole.provenance.snapshot_sha256
    assert result.provenance.deployed_model_id == whole.provenance.deployed_model_id


def test_there_is_no_result_before_the_end(client: Asked, drawings: list[Any]) -> None:
    with client.stream(QUESTION, drawings[1], max_tokens=60) as stream:
        next(iter(stream))

        with pytest.raises(ConfigError, match="not ended"):
            _ = stream.result


def test_thinking_comes_as_deltas_of_its_own(client: Asked, drawings: list[Any]) -> None:
    whole = client.chat(QUESTION, drawings[1], thinking=True, max_tokens=120)

    with client.stream(QUESTION, drawings[1], thinking=True, max_tokens=120) as stream:
        deltas = list(stream)

    assert "".join(d.thinking for d in deltas).strip() == whole.thinking
    assert "".join(d.text for d in deltas).strip() == whole.text
    assert stream.result.thinking == whole.thinking
    kinds = ["thinking" if d.thinking else "text" for d in deltas]
    assert kinds == sorted(kinds, reverse=True)


def test_a_stream_left_early_stops_the_work_on_the_server(
    client: Asked, drawings: list[Any], slow_steps: None
) -> None:
    before = client.counts("cancelled"), client.counts("finished")

    with client.stream(QUESTION, drawings[1], max_tokens=200) as stream:
        next(iter(stream))

    wait_until(lambda: client.counts("cancelled") == before[0] + 1)
    assert client.counts("running") == 0
    assert client.counts("held") == 0
    assert client.counts("finished") == before[1]


def test_a_stream_cut_at_max_tokens_says_length(client: Asked, drawings: list[Any]) -> None:
    with client.stream(QUESTION, drawings[1], max_tokens=3) as stream:
        list(stream)

    assert stream.result.finish_reason == "length"
    assert stream.result.usage.completion_tokens == 3


def test_another_call_works_after_a_stream_was_left(client: Asked, drawings: list[Any]) -> None:
    for _ in range(3):
        with client.stream(QUESTION, drawings[1], max_tokens=60) as stream:
            next(iter(stream))

    assert client.chat("What is a pneumothorax?", max_tokens=20).text


def test_a_caller_who_gives_up_stops_the_work_on_the_server(
    client: Asked, drawings: list[Any], slow_steps: None
) -> None:
    from medport import Timeout

    client.chat("What is a pneumothorax?", max_tokens=2)  # the endpoint is found
    before = client.counts("cancelled")

    with pytest.raises(Timeout):
        client.chat(QUESTION, drawings[1], max_tokens=200, timeout_s=0.5)

    wait_until(lambda: client.counts("cancelled") == before + 1)
    assert client.counts("held") == 0
