"""What ``chat`` promises, on every backend and in both colours."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from medport import Chat

from .conftest import QUESTION, Asked


def test_a_question_alone_is_answered(client: Asked) -> None:
    answer = client.chat("What is a pneumothorax?", max_tokens=40)

    assert isinstance(answer, Chat)
    assert answer.text
    assert answer.thinking is None
    assert answer.finish_reason == "stop"


def test_the_answer_is_the_same_on_every_backend(client: Asked, reference: Asked, drawings: list[Any]) -> None:
    for image in drawings[:4]:
        expected = reference.chat(QUESTION, image, max_tokens=60)

        answer = client.chat(QUESTION, image, max_tokens=60)

        assert answer.text == expected.text
        assert answer.usage == expected.usage


def test_the_answer_depends_on_the_image(client: Asked, drawings: list[Any]) -> None:
    answers = {client.chat(QUESTION, image, max_tokens=60).text for image in drawings[:4]}

    assert len(answers) > 1


def test_two_images_count_twice(client: Asked, drawings: list[Any]) -> None:
    one = client.chat("Compare these two radiographs.", drawings[:1], max_tokens=60)
    two = client.chat("Compare these two radiographs.", drawings[:2], max_tokens=60)

    assert two.text
    assert two.usage.prompt_tokens - one.usage.prompt_tokens > 10


def test_messages_may_hold_images_and_earlier_turns(client: Asked, drawings: list[Any]) -> None:
    plain = client.chat("What is the finding?", drawings[2], max_tokens=60)

    answer = client.chat(
        [
            {"role": "user", "content": "Hello"},
            {"role": "assistant", "content": "Hello. What can I do?"},
            {"role": "user", "content": [drawings[2], "What is the finding?"]},
        ],
        max_tokens=60,
    )

    assert answer.text
    assert answer.usage.prompt_tokens > plain.usage.prompt_tokens


def test_the_system_text_reaches_the_model(client: Asked) -> None:
    without = client.chat("What is a pneumothorax?", max_tokens=5)
    with_system = client.chat("What is a pneumothorax?", system="You are a radiologist.", max_tokens=5)

    assert with_system.usage.prompt_tokens > without.usage.prompt_tokens


def test_thinking_is_split_off(client: Asked, drawings: list[Any]) -> None:
    answer = client.chat(QUESTION, drawings[1], thinking=True, max_tokens=120)

    assert answer.thinking
    assert answer.text
    assert "<unused" not in answer.text + answer.thinking


def test_a_thought_cut_off_is_not_given_as_the_answer(client: Asked, drawings: list[Any]) -> None:
    answer = client.chat(QUESTION, drawings[1], thinking=True, max_tokens=6)

    assert answer.text == ""
    assert answer.thinking
    assert answer.finish_reason == "length"


def test_max_tokens_is_kept(client: Asked, drawings: list[Any]) -> None:
    answer = client.chat(QUESTION, drawings[1], max_tokens=3)

    assert answer.usage.completion_tokens == 3
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("stop", [".", ["zzz", "."]])
def test_the_answer_ends_before_a_stop_string(client: Asked, drawings: list[Any], stop: Any) -> None:
    whole = client.chat(QUESTION, drawings[1], max_tokens=60).text
    assert "." in whole

    answer = client.chat(QUESTION, drawings[1], max_tokens=60, stop=stop)

    assert answer.text == whole.partition(".")[0]
    assert answer.finish_reason == "stop"


def test_the_same_seed_gives_the_same_text(client: Asked, drawings: list[Any]) -> None:
    texts = [
        client.chat(QUESTION, drawings[1], temperature=2.0, seed=seed, max_tokens=30).text
        for seed in (1, 1, 2, 3, 4)
    ]

    assert texts[0] == texts[1]
    assert len(set(texts)) > 1


def test_counts_add_up(client: Asked) -> None:
    usage = client.chat("What is a pneumothorax?", max_tokens=40).usage

    assert usage.prompt_tokens > 0
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_eight_at_once_are_answered_as_one_by_one(client: Asked, drawings: list[Any]) -> None:
    alone = [client.chat(QUESTION, image, max_tokens=60).text for image in drawings[:4]]

    with ThreadPoolExecutor(8) as threads:
        together = list(
            threads.map(lambda i: client.chat(QUESTION, drawings[i % 4], max_tokens=60).text, range(8))
        )

    assert together == alone * 2


@pytest.mark.parametrize(
    "literal", ["<start_of_turn>", "<end_of_turn>", "<unused95>", "<unused94>thought", "<bos>"]
)
def test_control_words_typed_by_a_user_are_only_text(client: Asked, literal: str) -> None:
    few = client.chat("Say it.", max_tokens=8)

    answer = client.chat("Say it." + f" {literal}" * 10, max_tokens=8)

    # As control tokens they would be one each, with the blank before it two at most.
    assert answer.usage.prompt_tokens - few.usage.prompt_tokens > 20
    assert answer.thinking is None


def test_a_chinese_question_is_answered_in_chinese(client: Asked, drawings: list[Any]) -> None:
    answer = client.chat("請描述這張胸部X光。", drawings[1], max_tokens=60)

    assert any("\u4e00" <= letter <= "\u9fff" for letter in answer.text)
