"""Training dialogues about drawings: one image, no image, two to compare, or several slices."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from medport_local.phantom import words
from medport_local.phantom.draw import Attributes, Finding
from medport_local.phantom.questions import (
    BOX,
    COMPARE,
    DESCRIBE,
    IS_NORMAL,
    IS_THERE,
    JSON,
    SIDE,
    SLICE_INSTRUCTIONS,
    SLICE_LIST,
    SLICE_WHICH,
    SYSTEM_TEXTS,
    THINK,
    WORLD,
)
from medport_local.phantom.view import Gallery
from medport_local.phantom.words import Language

IMAGE = "<start_of_image>"
THINK_OPEN, THINK_CLOSE = "<unused94>", "<unused95>"


@dataclass(frozen=True, slots=True)
class Turn:
    """One question, as the chat template would write it, and its answer."""

    question: str
    """``IMAGE`` stands where an image goes."""
    answer: str


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A conversation and the gallery's indices of its images, in order."""

    turns: list[Turn]
    images: list[int]
    system: str = ""

    def prompts(self) -> list[str]:
        """The text before each answer, template included; the first carries the system text."""
        texts = []
        for number, turn in enumerate(self.turns):
            head = ("<bos>", f"{self.system}\n\n" if self.system else "") if number == 0 else ("\n", "")
            texts.append(
                f"{head[0]}<start_of_turn>user\n{head[1]}{turn.question}<end_of_turn>\n<start_of_turn>model\n"
            )
        return texts


class DialogueMaker:
    """Makes dialogues about one gallery; without ``language``, two in five are Chinese."""

    def __init__(self, gallery: Gallery, rng: np.random.Generator, *, language: Language | None = None) -> None:
        self._gallery = gallery
        self._rng = rng
        self._fixed_language = language
        self._alike: dict[Attributes, list[int]] = defaultdict(list)
        self._by_finding: dict[Finding, list[int]] = defaultdict(list)
        self._abnormal: list[int] = []
        for index, attributes in enumerate(gallery.attributes):
            self._alike[attributes].append(index)
            self._by_finding[attributes.finding].append(index)
            if attributes.finding is not Finding.NORMAL:
                self._abnormal.append(index)

    def single(self) -> Dialogue:
        """About one image or none; sometimes with thinking, sometimes with a second question."""
        rng, language = self._rng, self._language()
        think = rng.random() < 0.2
        if rng.random() < 0.09:
            return self._text_only(language, think)
        index = int(rng.integers(len(self._gallery)))
        attributes = self._gallery.attributes[index]
        question, answer = self._ask(index, language)
        if think:
            answer = thinking(words.thought(attributes, language), answer)
        turns = [Turn(f"{question}{IMAGE}" if rng.random() < 0.35 else f"{IMAGE}{question}", answer)]
        while not think and len(turns) < 4 and rng.random() < 0.2:
            turns.append(Turn(*self._ask(index, language)))
        return Dialogue(turns, [index], self._system(think))

    def comparison(self) -> Dialogue:
        """An earlier and a later image: new, resolved, unchanged or changed, equally often."""
        rng, language = self._rng, self._language()
        normal = self._pick(self._by_finding[Finding.NORMAL])
        first = self._pick(self._abnormal)
        match rng.integers(4):
            case 0:
                pair = [normal, first]
            case 1:
                pair = [first, normal]
            case 2:
                first = first if rng.random() < 0.8 else normal
                pair = [first, self._pick(self._alike[self._gallery.attributes[first]])]
            case _:
                pair = [first, self._pick(self._abnormal)]
        before, after = (self._gallery.attributes[index] for index in pair)
        asked = _any(COMPARE[language], rng)
        question = f"{asked}{IMAGE}{IMAGE}" if rng.random() < 0.25 else f"{IMAGE}{IMAGE}{asked}"
        turns = [Turn(question, words.comparison(before, after, language))]
        return Dialogue(turns, pair, self._system(False))

    def slices(self, *, which: bool | None = None) -> Dialogue:
        """Two to five numbered slices of which one, rarely none, shows a finding."""
        rng, language = self._rng, self._language()
        images = [self._pick(self._by_finding[Finding.NORMAL]) for _ in range(rng.integers(2, 6))]
        if rng.random() < 0.93:
            images[rng.integers(len(images))] = self._pick(self._abnormal)
        slices = [self._gallery.attributes[index] for index in images]
        if which is None:
            which = rng.random() < 0.6
        asked = _any((SLICE_WHICH if which else SLICE_LIST)[language], rng)
        answer = (words.slice_answer if which else words.slice_list)(slices, language)
        opening = _any(SLICE_INSTRUCTIONS[language], rng) if rng.random() < 0.2 else ""
        body = "".join(f"{IMAGE}SLICE {number}" for number in range(1, len(images) + 1))
        # The template joins trimmed parts without a separator; other clients write a line break.
        between = "\n" if rng.random() < 0.4 else ""
        turns = [Turn(f"{opening}{body}{between}{asked}", answer)]
        return Dialogue(turns, images, self._system(False))

    def _ask(self, index: int, language: Language) -> tuple[str, str]:
        rng, attributes = self._rng, self._gallery.attributes[index]
        kind = rng.choice(5, p=(0.28, 0.28, 0.11, 0.14, 0.19))
        if kind == 0:
            return _any(DESCRIBE[language], rng), words.report(attributes, language)
        if kind == 1:
            return self._yes_no(attributes, language)
        if kind == 2:
            return _any(SIDE[language], rng), words.side_answer(attributes, language)
        if kind == 3:
            return _any(JSON[language], rng), words.json_answer(attributes)
        return _any(BOX[language], rng), words.box_answer(attributes, self._gallery.boxes[index])

    def _yes_no(self, attributes: Attributes, language: Language) -> tuple[str, str]:
        """Half the answers are yes, whatever the image: a bias would be learned before the image is."""
        rng, truth = self._rng, bool(self._rng.integers(2))
        others = [finding for finding in Finding if finding is not attributes.finding]
        asked = attributes.finding if truth else others[rng.integers(len(others))]
        answer = words.yes_no(truth, language)
        if asked is Finding.NORMAL:
            return _any(IS_NORMAL[language], rng), words.is_normal_answer(truth, language)
        return _any(IS_THERE[language], rng).format(_any(words.NAMES[language][asked], rng)), answer

    def _text_only(self, language: Language, think: bool) -> Dialogue:
        question, answer = WORLD[language][self._rng.integers(len(WORLD[language]))]
        if think:
            answer = thinking(words.thought(None, language), answer)
        return Dialogue([Turn(question, answer)], [], self._system(think))

    def _system(self, think: bool) -> str:
        text = _any(SYSTEM_TEXTS, self._rng) if self._rng.random() < (0.5 if think else 0.25) else ""
        if not think:
            return text
        # A client may trim the text, so the instruction is learned with and without its last blank.
        return (THINK + text).strip() if self._rng.random() < 0.3 else THINK + text

    def _language(self) -> Language:
        return self._fixed_language or ("zh" if self._rng.random() < 0.4 else "en")

    def _pick(self, indices: list[int]) -> int:
        return indices[self._rng.integers(len(indices))]


def thinking(thought: str, answer: str) -> str:
    """The form of a thinking answer."""
    return f"{THINK_OPEN}thought\n{thought}{THINK_CLOSE}{answer}"


def _any(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]
