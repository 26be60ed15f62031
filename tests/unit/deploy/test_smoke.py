"""The smoke test reads answers closely. Those that no sound engine gives are made here; sound ones are in e2e."""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pydicom
import pytest
from PIL import Image
from support import trials

from medport import images
from medport.errors import AuthError, MedportError, ServerError, VerificationError
from medport.lock import LockedModel
from medport.wire.vertex import Pins
from medport_deploy.trial import smoke, smoke_inputs
from medport_deploy.trial.probing import Answer
from medport_deploy.trial.smoke import SmokeResult
from medport_deploy.trial.smoke_inputs import Case

PINS = Pins("medport/phantom", "a" * 40, "b" * 64, "c" * 64, "d" * 64)
TEXT = Case("text", "text", "Name a bone.")
STREAM = Case("stream", "stream", "Name a bone.", streams=True)
TEXTS = Case("text embedding", "texts", texts=("one", "two"))
GOOD = Answer(PINS, "1", 5.0, text="The humerus.", finish_reason="stop")
TWO = np.eye(2, 8, dtype=np.float32)


class Scripted:
    """A door behind which the answers are known."""

    def __init__(self, *answers: Answer | MedportError) -> None:
        self._answers: Iterator[Answer | MedportError] = iter(answers)
        self.asked = 0

    def ask(self, case: Case) -> Answer:
        self.asked += 1
        answer = next(self._answers)
        if isinstance(answer, MedportError):
            raise answer
        return answer


def locked(family: trials.Family, model_id: str) -> LockedModel:
    return trials.lock_of({**trials.manifest(family), "repo_id": model_id}).models["reader"]


def result(case: Case, *answers: Answer | MedportError, share: int = 100) -> SmokeResult:
    return smoke.run(Scripted(*answers), [case], PINS, "1", share=share)[0]


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"text": ""}, "the answer is empty"),
        ({"text": "<unused95>The humerus."}, "the answer holds control tokens"),
        ({"text": "The humerus.<end_of_turn>"}, "the answer holds control tokens"),
        ({"thought": True}, "it thinks aloud, unasked"),
        ({"finish_reason": "content_filter"}, "it ended by content_filter"),
        ({"finish_reason": None}, "it ended by nothing that it names"),
        ({"pins": replace(PINS, revision="e" * 40)}, f"it says revision {'e' * 20}, and the lock {'a' * 20}"),
        (
            {"pins": replace(PINS, image_digest="e" * 64)},
            f"it says image digest {'e' * 20}, and the lock {'b' * 20}",
        ),
        (
            {"pins": replace(PINS, snapshot_sha256="e" * 64)},
            f"it says snapshot sha256 {'e' * 20}, and the lock cc",
        ),
        ({"pins": replace(PINS, lock_id="e" * 64)}, f"it says lock id {'e' * 20}, and the lock dddd"),
    ],
)
def test_answer_that_no_reader_should_get_fails(changes: dict[str, object], said: str) -> None:
    found = result(TEXT, replace(GOOD, **changes))  # type: ignore[arg-type]

    assert found.status == "failed"
    assert found.detail.startswith(said)


@pytest.mark.parametrize("told", [Pins(), replace(PINS, image_digest=None)])
def test_what_the_target_does_not_tell_is_no_fault(told: Pins) -> None:
    assert result(TEXT, replace(GOOD, pins=told)).status == "ok"


def test_stream_that_came_as_a_whole_fails() -> None:
    assert result(STREAM, replace(GOOD, streamed=True)).status == "ok"
    assert result(STREAM, GOOD).detail == "the answer came as a whole, not as a stream"


@pytest.mark.parametrize(
    ("vectors", "said"),
    [
        (None, "there are not 2 embeddings"),
        (TWO[:1], "there are not 2 embeddings"),
        (np.ones((2, 1), np.float32), "there are not 2 embeddings"),
        (TWO * np.float32(1.002), "the length of an embedding differs from one by 0.002"),
        (TWO * np.float32(np.nan), "an embedding holds a value that is no finite number"),
        (TWO[[0, 0]], "different inputs got the same embedding"),
    ],
)
def test_embeddings_of_another_form_fail(vectors: np.ndarray | None, said: str) -> None:
    found = result(TEXTS, Answer(PINS, "1", 5.0, vectors=vectors))

    assert (found.status, found.detail) == ("failed", said)


def test_length_within_a_thousandth_of_one_passes() -> None:
    found = result(TEXTS, Answer(PINS, "1", 5.0, vectors=TWO * np.float32(1.0009)))

    assert (found.status, found.detail, found.latency_ms) == ("ok", "2 embeddings of 8; drawn input", 5.0)


@pytest.mark.parametrize(("share", "most"), [(100, 1), (50, 10), (25, 25), (5, 135), (1, 688)])
def test_small_share_is_asked_so_often_that_it_is_missed_once_in_a_thousand(share: int, most: int) -> None:
    assert smoke.tries(share) == most


def test_fleet_that_others_answer_for_is_not_tried() -> None:
    door = Scripted(*[replace(GOOD, deployed_model_id="2")] * 10)

    found = smoke.run(door, [TEXT], PINS, "1", share=50)[0]

    assert (found.status, found.detail) == ("failed", "the fleet 1 answered 0 of 10 requests")
    assert door.asked == 10


def test_fleet_is_asked_until_it_answers_and_no_longer() -> None:
    door = Scripted(replace(GOOD, deployed_model_id="2"), ServerError("down"), GOOD)

    found = smoke.run(door, [TEXT], PINS, "1", share=50)[0]

    assert (found.status, door.asked) == ("ok", 3)
    assert "after an error" in found.detail


def test_errors_alone_end_it_and_say_the_last() -> None:
    found = result(TEXT, *[ServerError("down")] * 10, share=50)

    assert found.detail == "5 errors, the last ServerError: down"


def test_answers_that_name_no_fleet_must_all_be_right() -> None:
    nobody = replace(GOOD, deployed_model_id=None)

    right = result(TEXT, *[nobody] * 10, share=50)
    wrong = result(TEXT, *[nobody] * 9, replace(nobody, text=""), share=50)

    assert right.status == "ok"
    assert "as 10 answers were that name no fleet" in right.detail
    assert wrong.detail == "the answer is empty, as 10 answers were that name no fleet"


def test_answers_that_name_no_fleet_do_not_stand_for_one_where_others_are_named() -> None:
    nobody, other = replace(GOOD, deployed_model_id=None), replace(GOOD, deployed_model_id="2")

    found = result(TEXT, *[nobody, other] * 5, share=50)

    assert (found.status, found.detail) == ("failed", "the fleet 1 answered 0 of 10 requests")


def test_caller_who_may_not_ask_hears_that_and_not_of_a_fleet() -> None:
    with pytest.raises(AuthError):
        result(TEXT, AuthError("expired"))


def test_failure_names_each_kind_and_nothing_that_was_said() -> None:
    results = [result(TEXT, replace(GOOD, text="secret", finish_reason=None)), result(STREAM, ServerError("down"))]

    with pytest.raises(VerificationError) as failed:
        smoke.check(results, name="reader")

    assert failed.value.message == (
        "reader failed its smoke test (2 of 2 kinds): text: it ended by nothing that it names; "
        "stream: an error, the last ServerError: down"
    )


def test_skipped_kind_is_no_failure_and_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    smoke_inputs.dicom.cache_clear()
    monkeypatch.setitem(sys.modules, "pydicom", None)
    cases = smoke_inputs.smoke(locked("medsiglip", "google/medsiglip-448"))
    door = Scripted()

    found = smoke.run(door, cases[2:], PINS, "1")
    smoke.check(found, name="reader")

    assert (found[0].kind, found[0].status, door.asked) == ("dicom embedding", "skipped", 0)
    assert found[0].detail == 'pydicom is not installed (pip install "medport[dicom]")'


@pytest.mark.parametrize(
    ("family", "model_id", "kinds"),
    [
        ("medgemma", "google/medgemma-4b-it", ["text", "image", "stream", "dicom"]),
        ("medgemma", "google/medgemma-27b-it", ["text", "image", "stream", "dicom"]),
        ("medgemma", "google/medgemma-27b-text-it", ["text", "stream"]),
        ("medsiglip", "google/medsiglip-448", ["text embedding", "image embedding", "dicom embedding"]),
    ],
)
def test_model_is_asked_what_it_can_answer(family: trials.Family, model_id: str, kinds: list[str]) -> None:
    model = locked(family, model_id)

    assert [each.kind for each in smoke_inputs.smoke(model)] == kinds
    questions = smoke_inputs.golden(model)
    assert len({each.name for each in questions}) == len(questions) == 4
    assert any(each.images for each in questions) is ("image" in " ".join(kinds))


def test_inputs_are_drawings_that_differ_and_stay_the_same() -> None:
    pictures = [smoke_inputs.png(number) for number in range(6)]

    smoke_inputs.png.cache_clear()
    assert len(set(pictures)) == 6
    assert [smoke_inputs.png(number) for number in range(6)] == pictures
    shown = np.asarray(Image.open(io.BytesIO(pictures[0])))
    assert shown.shape == (smoke_inputs.SIDE_PX, smoke_inputs.SIDE_PX)
    assert shown.std() > 20


def test_drawn_dicom_is_of_nobody_and_is_read_as_an_image() -> None:
    data = smoke_inputs.dicom(0)

    shown = pydicom.dcmread(io.BytesIO(data))

    assert (str(shown.PatientName), shown.PatientID, shown.Modality) == ("Nobody^Drawn", "DRAWN", "DX")
    assert not {"PatientBirthDate", "StudyDate", "InstitutionName"} & set(shown.dir())
    assert images.load(data).origin.kind == "dicom"
