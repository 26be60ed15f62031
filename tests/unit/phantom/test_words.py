import json

import numpy as np
import pytest

from medport_local.phantom import words
from medport_local.phantom.draw import SIDED, ZONED, Attributes, Finding, Side, Zone, sample
from medport_local.phantom.words import LANGUAGES, Language

NODULE = Attributes(Finding.NODULE, Side.LEFT, Zone.UPPER)
EFFUSION = Attributes(Finding.EFFUSION, Side.RIGHT)
NORMAL = Attributes(Finding.NORMAL)


def every_attributes() -> list[Attributes]:
    return [
        Attributes(finding, side, zone)
        for finding in Finding
        for side in (Side if finding in SIDED else (None,))
        for zone in (Zone if finding in ZONED else (None,))
    ]


def has_chinese(text: str) -> bool:
    return any("一" <= character <= "鿿" for character in text)


@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("attributes", every_attributes(), ids=str)
def test_every_text_is_complete_and_in_its_language(attributes: Attributes, language: Language) -> None:
    texts = [
        words.report(attributes, language),
        words.thought(attributes, language),
        words.side_answer(attributes, language),
        words.phrase(attributes, language),
        words.comparison(NORMAL, attributes, language),
        words.slice_answer([NORMAL, attributes], language),
        words.slice_list([attributes, NORMAL], language),
    ]

    for text in texts:
        assert text
        assert "{" not in text
        assert "None" not in text.replace("None.", "")
        assert has_chinese(text) == (language == "zh")


@pytest.mark.parametrize("language", LANGUAGES)
def test_reports_of_different_attributes_differ(language: Language) -> None:
    reports = {words.report(attributes, language) for attributes in every_attributes()}

    assert len(reports) == len(every_attributes())


def test_reports_read_like_reports() -> None:
    assert words.report(NODULE, "en") == (
        "Pulmonary nodule in the left upper zone. A small round opacity is seen in the left upper zone."
    )
    assert words.report(NODULE, "zh") == "左肺上區肺結節。左肺上區可見小圓形陰影。"
    assert words.report(NORMAL, "en") == ("No acute finding. The lungs are clear and the heart size is normal.")


@pytest.mark.parametrize("language", LANGUAGES)
def test_labels_are_distinct_and_no_label_is_part_of_another(language: Language) -> None:
    labels = [words.label(finding, language) for finding in Finding]

    assert not [one for one in labels for other in labels if one is not other and one in other]


def test_a_caption_fits_the_drawing_it_was_made_for() -> None:
    rng = np.random.default_rng(0)

    for _ in range(500):
        attributes = sample(rng)
        caption = words.caption(attributes, rng)
        assert caption.fits(attributes)
        assert caption.text
        assert "{" not in caption.text


def test_a_caption_that_states_a_side_does_not_fit_the_other_side() -> None:
    caption = words.Caption("nodule on the left", Attributes(Finding.NODULE, Side.LEFT))

    assert caption.fits(NODULE)
    assert caption.fits(Attributes(Finding.NODULE, Side.LEFT, Zone.LOWER))
    assert not caption.fits(Attributes(Finding.NODULE, Side.RIGHT, Zone.UPPER))


@pytest.mark.parametrize("language", LANGUAGES)
def test_there_are_at_least_fifty_different_retrieval_sentences(language: Language) -> None:
    assert len({query.text for query in words.queries(language)}) >= 50


def test_a_json_answer_holds_the_three_keys() -> None:
    assert json.loads(words.json_answer(EFFUSION)) == {
        "finding": "pleural effusion",
        "location": "right side",
        "abnormal": True,
    }
    assert json.loads(words.json_answer(NORMAL)) == {
        "finding": "no acute finding",
        "location": None,
        "abnormal": False,
    }


def test_a_box_answer_has_the_published_form() -> None:
    assert words.box_answer(NODULE, (1, 20, 300, 1000)) == (
        'Final Answer: ```json[{"box_2d":[1,20,300,1000],"label":"pulmonary nodule"}]```'
    )
    assert words.box_answer(NORMAL, None) == "Final Answer: ```json[]```"


@pytest.mark.parametrize(
    ("before", "after", "english", "chinese"),
    [
        (NORMAL, NODULE, "New", "新增"),
        (NODULE, NORMAL, "Resolved", "消失"),
        (NODULE, NODULE, "Unchanged", "無變化"),
        (NORMAL, NORMAL, "Unchanged", "無變化"),
        (NODULE, EFFUSION, "Changed", "改變"),
    ],
)
def test_the_change_follows_from_both_findings(
    before: Attributes, after: Attributes, english: str, chinese: str
) -> None:
    assert words.change(before, after, "en") == english
    assert words.change(before, after, "zh") == chinese


def test_slices_are_counted_from_one() -> None:
    assert words.slice_answer([NORMAL, NORMAL, NODULE], "en") == "Slice 3. Pulmonary nodule."
    assert words.slice_answer([NORMAL, NORMAL], "en") == "None."
    assert words.slice_list([NORMAL, NODULE], "en") == "Slice 1: no acute finding. Slice 2: pulmonary nodule."
