import numpy as np
import pytest

from medport_local.phantom.dialogues import IMAGE, THINK_CLOSE, THINK_OPEN, Dialogue, DialogueMaker
from medport_local.phantom.draw import sample
from medport_local.phantom.questions import THINK
from medport_local.phantom.view import Gallery


@pytest.fixture(scope="module")
def maker() -> DialogueMaker:
    rng = np.random.default_rng(0)
    attributes = [sample(rng) for _ in range(400)]
    boxes = [None if each.finding == "normal" else (1, 2, 3, 4) for each in attributes]
    return DialogueMaker(Gallery(np.zeros((400, 1, 1), np.uint8), attributes, boxes), rng)


def images_asked_for(dialogue: Dialogue) -> int:
    return sum(turn.question.count(IMAGE) for turn in dialogue.turns)


def test_every_image_has_one_place(maker: DialogueMaker) -> None:
    for _ in range(300):
        for dialogue in (maker.single(), maker.comparison(), maker.slices()):
            assert images_asked_for(dialogue) == len(dialogue.images)


def test_a_thinking_answer_comes_if_and_only_if_the_system_text_asks(maker: DialogueMaker) -> None:
    asked = 0
    for _ in range(600):
        dialogue = maker.single()
        thinks = THINK.strip() in dialogue.system
        asked += thinks
        assert thinks == (THINK_OPEN in dialogue.turns[0].answer) == (THINK_CLOSE in dialogue.turns[0].answer)
    assert asked > 50


def test_half_of_the_yes_no_answers_are_yes(maker: DialogueMaker) -> None:
    answers = [turn.answer for _ in range(3000) for turn in maker.single().turns]

    yes = sum(answer in {"Yes.", "有。", "正常。"} for answer in answers)
    no = sum(answer in {"No.", "沒有。", "不正常。"} for answer in answers)

    assert 0.45 < yes / (yes + no) < 0.55


def test_comparisons_cover_the_four_verdicts(maker: DialogueMaker) -> None:
    verdicts = {maker.comparison().turns[0].answer.rstrip(".。").split()[-1] for _ in range(200)}

    assert {"New", "Resolved", "Unchanged", "Changed"} <= verdicts


def test_slices_are_numbered_after_their_images(maker: DialogueMaker) -> None:
    question = maker.slices().turns[0].question

    assert f"{IMAGE}SLICE 1{IMAGE}SLICE 2" in question
