"""Golden answers are kept in a form that tells other answers from the noise of the same ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from medport.errors import ConfigError
from medport.wire.vertex import Pins
from medport_deploy.trial import golden
from medport_deploy.trial.golden import Golden
from medport_deploy.trial.probing import Answer

LOCK = "5" * 64


def answer(text: str | None = None, vectors: np.ndarray | None = None) -> Golden:
    return Golden.of(Answer(Pins(), "1", 1.0, text=text, vectors=vectors))


def unit(*angles: float) -> np.ndarray:
    """Vectors of 64 numbers, turned by so many radians."""
    row = np.zeros((len(angles), 64), np.float32)
    row[:, 0], row[:, 1] = np.cos(angles), np.sin(angles)
    return row


def test_other_text_differs_and_the_same_does_not() -> None:
    one = answer("The arm has a humerus.")

    assert not one.differs(answer("The arm has a humerus."))
    assert one.differs(answer("The arm has a humerus!"))


@pytest.mark.parametrize(("cosine", "differs"), [(0.9995, False), (0.9985, True)])
def test_embeddings_of_two_fleets_are_the_same_from_a_cosine_of_0_999(cosine: float, differs: bool) -> None:
    one, other = answer(vectors=unit(0, 0)), answer(vectors=unit(0, np.arccos(cosine)))

    assert one.differs(other) is differs


@pytest.mark.parametrize(("cosine", "contradicts"), [(0.99995, False), (0.9995, True)])
def test_embeddings_of_the_same_bytes_are_held_to_0_9999(cosine: float, contradicts: bool) -> None:
    one, other = answer(vectors=unit(0)), answer(vectors=unit(np.arccos(cosine)))

    assert one.contradicts(other) is contradicts


def test_form_that_is_kept_does_not_move_an_embedding() -> None:
    vectors = np.random.default_rng(0).normal(size=(2, 1152)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)

    kept = answer(vectors=vectors)

    assert not kept.contradicts(kept)
    assert kept.contradicts(answer(vectors=vectors[::-1]))
    assert len(kept.model_dump_json()) < 6_500


def test_late_token_of_a_text_may_turn_and_an_early_one_may_not() -> None:
    begun = "x" * 40
    kept = answer(f"{begun} a")

    assert not kept.contradicts(answer(f"{begun} b"))
    assert kept.contradicts(answer(f"y{begun}"))


@pytest.mark.parametrize(
    "other",
    [answer("text"), answer(vectors=unit(0, 0)), answer(vectors=np.full((1, 64), np.nan, np.float32)), Golden()],
)
def test_another_kind_or_form_of_answer_is_another_answer(other: Golden) -> None:
    one = answer(vectors=unit(0))

    assert one.differs(other)
    assert one.contradicts(other)


def test_contradictions_name_the_questions() -> None:
    kept = {"a": answer("one"), "b": answer("two"), "c": answer("three")}

    assert golden.contradictions(kept, {"a": answer("one"), "b": answer("other")}) == ["b"]


def test_answers_are_read_as_they_were_kept_each_model_for_itself(tmp_path: Path) -> None:
    texts, vectors = {"q": answer("one")}, {"q": answer(vectors=unit(0, 1))}

    golden.keep(tmp_path / "state", LOCK, "reader", texts)
    golden.keep(tmp_path / "state", LOCK, "embedder", vectors)

    assert golden.load(tmp_path / "state", LOCK, "reader") == texts
    assert golden.load(tmp_path / "state", LOCK, "embedder") == vectors
    assert golden.load(tmp_path / "state", LOCK, "other") is None
    assert golden.load(tmp_path / "state", "6" * 64, "reader") is None


def test_answers_are_for_their_owner_alone(tmp_path: Path) -> None:
    golden.keep(tmp_path / "state", LOCK, "reader", {"q": answer("one")})

    file = tmp_path / "state" / "golden" / f"{LOCK}.json"
    assert file.stat().st_mode & 0o777 == 0o600
    assert file.parent.stat().st_mode & 0o777 == 0o700
    assert [each.name for each in file.parent.iterdir()] == [file.name]


@pytest.mark.parametrize(
    "content", [b"", b"[]", b'{"version": 2}', b'{"models": {"reader": {"q": {"text": "x"}}}}']
)
def test_file_of_something_else_is_refused_with_what_to_do(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "golden").mkdir()
    (tmp_path / "golden" / f"{LOCK}.json").write_bytes(content)

    with pytest.raises(ConfigError, match=r"holds no golden answers \(remove it from golden/"):
        golden.load(tmp_path, LOCK, "reader")


def test_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "golden").write_text("a file")

    with pytest.raises(ConfigError, match="cannot be"):
        golden.keep(tmp_path, LOCK, "reader", {})
