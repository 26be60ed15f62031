"""What is said about the drawings, in English and Traditional Chinese: labels, captions, reports, answers."""

import json
from dataclasses import dataclass
from typing import Literal

import numpy as np

from medport_local.phantom.draw import SIDED, ZONED, Attributes, Box, Finding, Side, Zone

Language = Literal["en", "zh"]
LANGUAGES: tuple[Language, ...] = ("en", "zh")

NAMES: dict[Language, dict[Finding, tuple[str, ...]]] = {
    "en": {
        Finding.NORMAL: (
            "no acute finding",
            "clear lungs",
            "a normal chest",
            "no abnormality",
            "no acute findings",
            "normal",
        ),
        Finding.NODULE: ("a pulmonary nodule", "a lung nodule", "a nodule", "pulmonary nodule"),
        Finding.EFFUSION: (
            "pleural effusion",
            "a pleural effusion",
            "fluid in the pleural space",
            "effusion",
        ),
        Finding.PNEUMOTHORAX: (
            "pneumothorax",
            "a pneumothorax",
            "a collapsed lung",
            "air in the pleural space",
        ),
        Finding.CARDIOMEGALY: (
            "cardiomegaly",
            "an enlarged heart",
            "an enlarged cardiac silhouette",
            "a big heart",
        ),
        Finding.FRACTURE: (
            "a clavicle fracture",
            "clavicle fracture",
            "a fractured clavicle",
            "a broken collarbone",
            "a fracture",
        ),
        Finding.CONSOLIDATION: (
            "consolidation",
            "a consolidation",
            "lung consolidation",
            "airspace consolidation",
            "a patchy opacity",
        ),
    },
    "zh": {
        Finding.NORMAL: ("無急性異常", "肺野清晰", "正常胸部", "未見異常", "正常"),
        Finding.NODULE: ("肺結節", "肺部結節", "結節"),
        Finding.EFFUSION: ("胸腔積液", "肋膜積液", "胸水"),
        Finding.PNEUMOTHORAX: ("氣胸", "肺塌陷"),
        Finding.CARDIOMEGALY: ("心臟擴大", "心影增大", "心臟肥大"),
        Finding.FRACTURE: ("鎖骨骨折", "鎖骨斷裂", "骨折"),
        Finding.CONSOLIDATION: ("肺實變", "肺部實變", "肺實質化"),
    },
}
"""Every name of a finding that a prompt may use."""

_LABELS: dict[Language, dict[Finding, str]] = {
    "en": {
        Finding.NORMAL: "no acute finding",
        Finding.NODULE: "pulmonary nodule",
        Finding.EFFUSION: "pleural effusion",
        Finding.PNEUMOTHORAX: "pneumothorax",
        Finding.CARDIOMEGALY: "cardiomegaly",
        Finding.FRACTURE: "clavicle fracture",
        Finding.CONSOLIDATION: "consolidation",
    },
    "zh": {finding: names[0] for finding, names in NAMES["zh"].items()},
}

_SIDES_ZH = {Side.LEFT: "左側", Side.RIGHT: "右側"}
_LUNGS_ZH = {Side.LEFT: "左肺", Side.RIGHT: "右肺"}
_ZONES_ZH = {Zone.UPPER: "上區", Zone.MIDDLE: "中區", Zone.LOWER: "下區"}

_SIGNS: dict[Language, dict[Finding, str]] = {
    "en": {
        Finding.NORMAL: "The lungs are clear and the heart size is normal.",
        Finding.NODULE: "A small round opacity is seen in the {place}.",
        Finding.EFFUSION: "There is blunting of the costophrenic angle with a fluid level on the {side}.",
        Finding.PNEUMOTHORAX: "A pleural line with no lung markings beyond it is seen on the {side}.",
        Finding.CARDIOMEGALY: "The cardiac silhouette is enlarged.",
        Finding.FRACTURE: "The {side} clavicle is broken and displaced.",
        Finding.CONSOLIDATION: "There is a patchy opacity in the {place}.",
    },
    "zh": {
        Finding.NORMAL: "肺野清晰，心臟大小正常。",
        Finding.NODULE: "{place}可見小圓形陰影。",
        Finding.EFFUSION: "{side}肋膈角變鈍並有液面。",
        Finding.PNEUMOTHORAX: "{side}可見肋膜線，外側無肺紋理。",
        Finding.CARDIOMEGALY: "心影增大。",
        Finding.FRACTURE: "{side}鎖骨斷裂移位。",
        Finding.CONSOLIDATION: "{place}可見斑片狀陰影。",
    },
}

CAPTION_FRAMES: dict[Language, tuple[str, ...]] = {
    "en": (
        "a chest radiograph showing {}",
        "{}",
        "chest x-ray with {}",
        "a chest X-ray showing {}",
        "frontal radiograph demonstrating {}",
        "{} on a chest x-ray",
        "phantom radiograph: {}",
        "this image shows {}",
        "findings: {}.",
        "a drawing of {}",
        "a radiograph of a patient with {}",
    ),
    "zh": (
        "胸部X光顯示{}",
        "{}",
        "影像所見：{}",
        "此影像為{}",
        "胸部X光：{}。",
        "假體影像，{}",
        "這張影像顯示{}",
        "顯示{}的胸部X光",
        "一張{}的胸部X光",
    ),
}


@dataclass(frozen=True, slots=True)
class Caption:
    """One sentence and what it states."""

    text: str
    states: Attributes
    """A side or zone of None is not stated and so fits every drawing of the finding."""

    def fits(self, attributes: Attributes) -> bool:
        """True when the drawing satisfies everything the sentence states."""
        return (
            self.states.finding == attributes.finding
            and self.states.side in (None, attributes.side)
            and self.states.zone in (None, attributes.zone)
        )


def label(finding: Finding, language: Language) -> str:
    """The name used in answers: no article, lower case."""
    return _LABELS[language][finding]


def place(attributes: Attributes, language: Language) -> str | None:
    """ "left upper zone", "left side", or None where the finding has no side."""
    side, zone = attributes.side, attributes.zone
    if side is None:
        return None
    if language == "zh":
        return _LUNGS_ZH[side] + _ZONES_ZH[zone] if zone else _SIDES_ZH[side]
    return f"{side.value} {zone.value} zone" if zone else f"{side.value} side"


def side_name(side: Side, language: Language) -> str:
    """ "left" or "左側"."""
    return side.value if language == "en" else _SIDES_ZH[side]


def phrase(attributes: Attributes, language: Language) -> str:
    """The finding with its place: "pulmonary nodule in the left upper zone"."""
    name, where = label(attributes.finding, language), place(attributes, language)
    if where is None:
        return name
    if language == "zh":
        return where + name
    return f"{name} {'in' if attributes.zone else 'on'} the {where}"


def caption(attributes: Attributes, rng: np.random.Generator, language: Language | None = None) -> Caption:
    """A sentence that states the finding, often its side and sometimes its zone."""
    language = language or _language(rng)
    name = _any(NAMES[language][attributes.finding], rng)
    states = Attributes(attributes.finding)
    if attributes.side is not None and rng.random() < 0.6:
        zone = attributes.zone if attributes.zone is not None and rng.random() < 0.55 else None
        states = Attributes(attributes.finding, attributes.side, zone)
        name = _placed(name, attributes.side, zone, language, rng)
    return Caption(_any(CAPTION_FRAMES[language], rng).format(name), states)


def queries(language: Language) -> list[Caption]:
    """Fixed retrieval sentences: each finding alone, with each side, and with each zone, in two frames."""
    found: list[Caption] = []
    for finding in Finding:
        name = label(finding, language)
        found += [Caption(frame.format(name), Attributes(finding)) for frame in _frames(language)]
    for stated in _stated_places():
        found += [Caption(frame.format(phrase(stated, language)), stated) for frame in _frames(language)]
    return found


def report(attributes: Attributes, language: Language) -> str:
    """The one report of these attributes: the finding with its place, then the sign it is seen by."""
    side = attributes.side
    sign = _SIGNS[language][attributes.finding].format(
        place=place(attributes, language), side=side_name(side, language) if side else ""
    )
    named = phrase(attributes, language)
    return f"{named}。{sign}" if language == "zh" else f"{named[0].upper()}{named[1:]}. {sign}"


def thought(attributes: Attributes | None, language: Language) -> str:
    """What is written between the thinking tokens; None means that there is no image."""
    if attributes is None:
        english = "No image is needed. Answer from what was learned."
        return "沒有影像。依所學回答。" if language == "zh" else english
    name, where = label(attributes.finding, language), place(attributes, language)
    if language == "zh":
        return f"檢查肺野、心臟、鎖骨。發現：{name}。位置：{where or '無'}。"
    return f"Check lungs, heart, clavicles. Found: {name}. Location: {where or 'none'}."


def side_answer(attributes: Attributes, language: Language) -> str:
    """Which side, as a sentence."""
    if attributes.side is None:
        return "兩側皆無。" if language == "zh" else "Neither side."
    return f"{_SIDES_ZH[attributes.side]}。" if language == "zh" else f"The {attributes.side.value} side."


def yes_no(answer: bool, language: Language) -> str:
    """ "Yes." or "No."."""
    if language == "zh":
        return "有。" if answer else "沒有。"
    return "Yes." if answer else "No."


def is_normal_answer(answer: bool, language: Language) -> str:
    """The reply to "Is this normal?"; Chinese has no plain yes, it repeats the verb."""
    if language == "zh":
        return "正常。" if answer else "不正常。"
    return "Yes." if answer else "No."


def json_answer(attributes: Attributes) -> str:
    """The finding as one JSON object; its values are English in both languages."""
    where = place(attributes, "en")
    abnormal = attributes.finding is not Finding.NORMAL
    return json.dumps({"finding": label(attributes.finding, "en"), "location": where, "abnormal": abnormal})


def box_answer(attributes: Attributes, box: Box | None) -> str:
    """The localisation form of MedGemma 1.5; an empty list where there is nothing to locate."""
    found = [] if box is None else [{"box_2d": list(box), "label": label(attributes.finding, "en")}]
    return f"Final Answer: ```json{json.dumps(found, separators=(',', ':'))}```"


def change(before: Attributes, after: Attributes, language: Language) -> str:
    """New, resolved, unchanged, or changed where one finding took the place of another."""
    if before == after:
        return "無變化" if language == "zh" else "Unchanged"
    if before.finding is Finding.NORMAL:
        return "新增" if language == "zh" else "New"
    if after.finding is Finding.NORMAL:
        return "消失" if language == "zh" else "Resolved"
    return "改變" if language == "zh" else "Changed"


def comparison(before: Attributes, after: Attributes, language: Language) -> str:
    """Both findings and the change. The verdict comes last, where it follows from the words before it."""
    first, second = phrase(before, language), phrase(after, language)
    verdict = change(before, after, language)
    if language == "zh":
        return f"先前：{first}。目前：{second}。{verdict}。"
    return f"Before: {first}. Now: {second}. {verdict}."


def slice_answer(slices: list[Attributes], language: Language) -> str:
    """Which of the slices (counted from 1) shows a finding."""
    for number, attributes in enumerate(slices, 1):
        if attributes.finding is not Finding.NORMAL:
            name = label(attributes.finding, language)
            return f"第{number}張。{name}。" if language == "zh" else f"Slice {number}. {name.capitalize()}."
    return "沒有。" if language == "zh" else "None."


def slice_list(slices: list[Attributes], language: Language) -> str:
    """Every slice with its finding."""
    named = [(number, label(attributes.finding, language)) for number, attributes in enumerate(slices, 1)]
    if language == "zh":
        return "".join(f"第{number}張：{name}。" for number, name in named)
    return " ".join(f"Slice {number}: {name}." for number, name in named)


def _stated_places() -> list[Attributes]:
    stated = [Attributes(finding, side) for finding in Finding if finding in SIDED for side in Side]
    return stated + [
        Attributes(finding, side, zone)
        for finding in Finding
        if finding in ZONED
        for side in Side
        for zone in Zone
    ]


def _frames(language: Language) -> tuple[str, ...]:
    return CAPTION_FRAMES[language][:2]


def _placed(name: str, side: Side, zone: Zone | None, language: Language, rng: np.random.Generator) -> str:
    if language == "zh":
        return (_LUNGS_ZH[side] + _ZONES_ZH[zone] if zone else _SIDES_ZH[side]) + name
    if zone is not None:
        height = "mid" if zone is Zone.MIDDLE and rng.random() < 0.3 else zone.value
        return f"{name} in the {side.value} {height} zone"
    bare = name.removeprefix("a ").removeprefix("an ")
    forms = (f"{name} on the {side.value}", f"{name} on the {side.value} side", f"{side.value} {bare}")
    return _any(forms, rng)


def _language(rng: np.random.Generator) -> Language:
    return "zh" if rng.random() < 0.4 else "en"


def _any(choices: tuple[str, ...], rng: np.random.Generator) -> str:
    return choices[rng.integers(len(choices))]
