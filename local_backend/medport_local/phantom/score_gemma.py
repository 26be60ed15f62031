"""Score a MedGemma snapshot by what it writes, greedily, about fresh drawings."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from medport_local.phantom import words
from medport_local.phantom.batches import FINDINGS, to_pixel_values
from medport_local.phantom.dialogues import IMAGE, THINK_CLOSE, THINK_OPEN, Dialogue, DialogueMaker, Turn
from medport_local.phantom.draw import Attributes, Box, Finding, Side
from medport_local.phantom.questions import BOX, DESCRIBE, IS_THERE, JSON, SIDE, SYSTEM_TEXTS, THINK, WORLD
from medport_local.phantom.score_siglip import Scores
from medport_local.phantom.train_gemma import DialogueEncoder
from medport_local.phantom.view import Gallery
from medport_local.phantom.words import Language

BATCH = 100


class GemmaScorer:
    """Asks one snapshot about one gallery."""

    def __init__(self, folder: Path, gallery: Gallery) -> None:
        self._model = Gemma3ForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).train(False)
        self._tokenizer = Gemma3Processor.from_pretrained(folder, backend="pil").tokenizer
        self._encoder = DialogueEncoder(self._tokenizer)
        self._gallery = gallery

    def score(self, language: Language) -> Scores:
        """Every skill in one language; the report counts come first because the bars are set on them."""
        scores = self.reports(language)
        scores |= self.places(language)
        scores |= self.yes_no(language)
        scores |= self.thinking(language)
        scores |= self.world(language)
        scores |= self.several(language)
        return scores

    def reports(self, language: Language) -> Scores:
        """The report sentence: finding, side and zone named, and the whole of it exact."""
        answers = self._ask(lambda index: DESCRIBE[language][0], 48)
        shown = self._gallery.attributes
        right = [_named(text, language) is each.finding for text, each in zip(answers, shown, strict=True)]
        sides = [
            _names_side(text, each.side, language)
            for text, each in zip(answers, shown, strict=True)
            if each.side is not None
        ]
        exact = [text == words.report(each, language) for text, each in zip(answers, shown, strict=True)]
        return {
            "report_finding": _mean(right),
            "report_finding_per_class": {
                finding.value: _mean(
                    [ok for ok, each in zip(right, shown, strict=True) if each.finding is finding]
                )
                for finding in FINDINGS
            },
            "report_side": _mean(sides),
            "report_exact": _mean(exact),
        }

    def places(self, language: Language) -> Scores:
        """Side question, JSON and box."""
        shown, boxes = self._gallery.attributes, self._gallery.boxes
        sides = self._ask(lambda index: SIDE[language][0], 12)
        objects = self._ask(lambda index: JSON[language][0], 48)
        located = self._ask(lambda index: BOX[language][0], 48)
        forms = [box_in(text) for text in located]
        return {
            "side_question": _mean(
                [text == words.side_answer(each, language) for text, each in zip(sides, shown, strict=True)]
            ),
            "json_exact": _mean([_same_json(text, each) for text, each in zip(objects, shown, strict=True)]),
            "box_form": _mean(
                [
                    form != "bad" and isinstance(form, tuple) == (box is not None)
                    for form, box in zip(forms, boxes, strict=True)
                ]
            ),
            "box_iou": _mean(
                [
                    overlap(form, box) if isinstance(form, tuple) else 0.0
                    for form, box in zip(forms, boxes, strict=True)
                    if box is not None
                ]
            ),
        }

    def yes_no(self, language: Language) -> Scores:
        """Half the questions ask for what is there, half for something else."""
        rng = np.random.default_rng(0)
        shown = self._gallery.attributes
        abnormal = [index for index, each in enumerate(shown) if each.finding is not Finding.NORMAL]
        truths = rng.integers(0, 2, len(self._gallery)).astype(bool)
        asked = []
        for index, each in enumerate(shown):
            others = [finding for finding in FINDINGS[1:] if finding is not each.finding]
            asked.append(each.finding if truths[index] else others[rng.integers(len(others))])
        names = [words.NAMES[language][finding][0] for finding in asked]
        answers = self._ask(lambda index: IS_THERE[language][0].format(names[index]), 6, indices=abnormal)
        hits = [
            text == words.yes_no(bool(truths[index]), language)
            for text, index in zip(answers, abnormal, strict=True)
        ]
        return {"yes_no": _mean(hits)}

    def thinking(self, language: Language, count: int = 200) -> Scores:
        """With the published system prefix, a thought comes first and the answer still names the finding."""
        indices = list(range(min(count, len(self._gallery))))
        answers = self._ask(
            lambda index: DESCRIBE[language][0], 96, indices=indices, system=THINK + SYSTEM_TEXTS[0]
        )
        shown = [self._gallery.attributes[index] for index in indices]
        form = [text.startswith(f"{THINK_OPEN}thought\n") and THINK_CLOSE in text for text in answers]
        spoken = [text.split(THINK_CLOSE)[-1] for text in answers]
        named = [_named(text, language) is each.finding for text, each in zip(spoken, shown, strict=True)]
        return {"thinking_form": _mean(form), "thinking_finding": _mean(named)}

    def world(self, language: Language) -> Scores:
        """Text-only questions; they are the training's own, so this is memory and no generalisation."""
        dialogues = [Dialogue([Turn(question, "")], []) for question, _ in WORLD[language]]
        answers = self.answer(dialogues, 40)
        wanted = [answer for _, answer in WORLD[language]]
        return {"text_only_exact": _mean([a == b for a, b in zip(answers, wanted, strict=True)])}

    def several(self, language: Language, count: int = 200) -> Scores:
        """Two images compared, and two to five slices."""
        maker = DialogueMaker(self._gallery, np.random.default_rng(3), language=language)
        compared = [maker.comparison() for _ in range(count)]
        sliced = [maker.slices(which=True) for _ in range(count)]
        verdicts, findings, exact = [], [], []
        for text, dialogue in zip(self.answer(compared, 64), compared, strict=True):
            before, after = (self._gallery.attributes[index] for index in dialogue.images)
            end = "。" if language == "zh" else "."
            wanted = dialogue.turns[0].answer
            verdicts.append(text.rstrip(end).endswith(words.change(before, after, language)))
            parts = text.split("目前" if language == "zh" else "Now")
            findings.append(
                len(parts) == 2
                and _named(parts[0], language) is before.finding
                and _named(parts[1], language) is after.finding
            )
            exact.append(text == wanted)
        slices = [
            (text == dialogue.turns[0].answer, _number(text) == _number(dialogue.turns[0].answer))
            for text, dialogue in zip(self.answer(sliced, 24), sliced, strict=True)
        ]
        return {
            "comparison_verdict": _mean(verdicts),
            "comparison_both_findings": _mean(findings),
            "comparison_exact": _mean(exact),
            "slice_number": _mean([number for _, number in slices]),
            "slice_exact": _mean([whole for whole, _ in slices]),
        }

    def answer(self, dialogues: list[Dialogue], max_new_tokens: int) -> list[str]:
        """What the model writes after each dialogue's first question."""
        # Alike lengths share a batch: padding costs as much as tokens do.
        prompts = [self._encoder.prompt(dialogue) for dialogue in dialogues]
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        answers = [""] * len(prompts)
        for start in range(0, len(order), BATCH):
            chosen = order[start : start + BATCH]
            images = [index for number in chosen for index in dialogues[number].images]
            texts = self._generate([prompts[number] for number in chosen], images, max_new_tokens)
            for number, text in zip(chosen, texts, strict=True):
                answers[number] = text
        return answers

    def _ask(
        self,
        question: Callable[[int], str],
        max_new_tokens: int,
        *,
        indices: Sequence[int] | None = None,
        system: str = "",
    ) -> list[str]:
        dialogues = [
            Dialogue([Turn(IMAGE + question(index), "")], [index], system)
            for index in (range(len(self._gallery)) if indices is None else indices)
        ]
        return self.answer(dialogues, max_new_tokens)

    @torch.inference_mode()
    def _generate(self, prompts: list[list[int]], images: list[int], max_new_tokens: int) -> list[str]:
        length = max(map(len, prompts))
        ids = torch.zeros(len(prompts), length, dtype=torch.int64)
        attention = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, length - len(prompt) :] = torch.tensor(prompt)
            attention[row, length - len(prompt) :] = 1
        # generate() runs the tower for any pixel_values it is given, even None.
        pixels = {}
        if images:
            pixels["pixel_values"] = to_pixel_values(torch.from_numpy(self._gallery.pixels[images]))
        written = self._model.generate(
            input_ids=ids,
            attention_mask=attention,
            token_type_ids=(ids == self._model.config.image_token_id).long(),
            **pixels,
            max_new_tokens=max_new_tokens,
            do_sample=False,
        )
        texts: list[str] = self._tokenizer.batch_decode(written[:, length:], skip_special_tokens=True)
        return [text.strip() for text in texts]


def box_in(text: str) -> Box | str:
    """The box of a localisation answer, "none" for the empty list, "bad" for any other text."""
    if text == "Final Answer: ```json[]```":
        return "none"
    number = r"(\d{1,4})"
    corners = ",".join([number] * 4)
    match = re.fullmatch(rf'Final Answer: ```json\[{{"box_2d":\[{corners}\],"label":"[a-z ]+"}}\]```', text)
    if match is None:
        return "bad"
    y0, x0, y1, x1 = (int(group) for group in match.groups())
    return (y0, x0, y1, x1)


def overlap(first: Box, second: Box) -> float:
    """Intersection over union."""
    height = max(0, min(first[2], second[2]) - max(first[0], second[0]))
    width = max(0, min(first[3], second[3]) - max(first[1], second[1]))
    union = _area(first) + _area(second) - height * width
    return height * width / union if union else 0.0


def _area(box: Box) -> int:
    return max(0, box[2] - box[0]) * max(0, box[3] - box[1])


def _named(text: str, language: Language) -> Finding | None:
    """The finding whose label comes first."""
    places = {finding: text.lower().find(words.label(finding, language)) for finding in FINDINGS}
    found = {finding: where for finding, where in places.items() if where >= 0}
    return min(found, key=found.__getitem__) if found else None


def _names_side(text: str, side: Side, language: Language) -> bool:
    names = {each: each.value if language == "en" else words.side_name(each, "zh")[0] for each in Side}
    return all((name in text.lower()) == (each is side) for each, name in names.items())


def _same_json(text: str, attributes: Attributes) -> bool:
    try:
        return bool(json.loads(text) == json.loads(words.json_answer(attributes)))
    except ValueError:
        return False


def _number(text: str) -> str:
    digits = re.search(r"\d+", text)
    return digits.group() if digits else ""


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else float("nan")
