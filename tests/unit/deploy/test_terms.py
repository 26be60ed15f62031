"""Terms are accepted by a person, once, and again when they change."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest

from medport.errors import ConfigError, PolicyError
from medport_deploy.lock.terms import HAI_DEF, accepted, changed, known, of_lock, stated

NOW = datetime(2026, 11, 26, 12, tzinfo=timezone(timedelta(hours=2)))
LATER = NOW + timedelta(days=90)
TERMS = {"medgemma": HAI_DEF, "medsiglip": HAI_DEF}


def test_who_accepts_and_when_is_written_down_once_for_all_models() -> None:
    found = accepted(TERMS, ["hai-def"], previous={}, by="jo", now=NOW)

    assert list(found) == ["hai-def"]
    assert (found["hai-def"].accepted_by, found["hai-def"].accepted_at) == ("jo", "2026-11-26T10:00:00+00:00")
    assert found["hai-def"].sha256 == HAI_DEF.sha256


def test_gated_terms_are_never_accepted_by_default() -> None:
    with pytest.raises(
        PolicyError, match=r"terms of models\.medgemma are not accepted: Health AI .*write hai-def"
    ):
        accepted(TERMS, [], previous={}, by="jo", now=NOW)
    with pytest.raises(PolicyError, match=r"nobody accepts the terms hai-def .*--accepted-by NAME"):
        accepted(TERMS, ["hai-def"], previous={}, by="", now=NOW)


def test_what_was_accepted_stays_accepted_by_whom_and_when_it_was() -> None:
    before = accepted(TERMS, ["hai-def"], previous={}, by="jo", now=NOW)

    assert accepted(TERMS, ["hai-def"], previous=before, by="", now=LATER) == before


def test_terms_that_changed_are_asked_for_again_although_the_specification_names_them() -> None:
    before = accepted(TERMS, ["hai-def"], previous={}, by="jo", now=NOW)
    newer = {"medgemma": replace(HAI_DEF, version="2027-01")}

    assert changed(newer, before) == ["hai-def"]
    with pytest.raises(PolicyError, match=r"no longer those that jo accepted.*--accept hai-def"):
        accepted(newer, ["hai-def"], previous=before, by="al", now=LATER)
    again = accepted(newer, ["hai-def"], previous=before, again=["hai-def"], by="al", now=LATER)
    assert again["hai-def"].accepted_by == "al"


@pytest.mark.parametrize(
    ("accept", "again", "said"),
    [
        (["hai-def", "nonsense"], [], r"accept_terms: 'nonsense' is the id of no terms .*take it out"),
        (["hai-deff"], [], r"accept_terms: 'hai-deff' is .*did you mean hai-def\?"),
        (["hai-def"], ["hai_def"], r"--accept: 'hai_def' is .*did you mean hai-def\?"),
    ],
)
def test_id_of_no_terms_is_refused_with_the_nearest(accept: list[str], again: list[str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        accepted(TERMS, accept, previous={}, again=again, by="jo", now=NOW)


def test_terms_of_a_model_that_was_taken_out_may_stay_accepted() -> None:
    house = {"a": stated("House Rules", "https://example.org/r", gated=True, text_sha256="0" * 64)}
    before = accepted(house, ["house-rules"], previous={}, by="jo", now=NOW)

    found = accepted(TERMS, ["hai-def", "house-rules"], previous=before, by="jo", now=LATER)

    assert list(found) == ["hai-def"]
    assert accepted({}, ["hai-def"], previous={}, by="jo", now=NOW) == {}


def test_terms_taken_out_of_the_specification_are_no_longer_accepted() -> None:
    before = accepted(TERMS, ["hai-def"], previous={}, by="jo", now=NOW)

    with pytest.raises(PolicyError, match="are not accepted"):
        accepted(TERMS, [], previous=before, by="jo", now=LATER)


def test_terms_that_nobody_must_accept_are_recorded_only_if_somebody_does() -> None:
    free = {"a": stated("MIT", "https://example.org/mit", gated=False, text_sha256="0" * 64)}

    assert accepted(free, [], previous={}, by="jo", now=NOW) == {}
    assert accepted(free, ["mit"], previous={}, by="jo", now=NOW)["mit"].sha256 == "0" * 64


@pytest.mark.parametrize(
    ("model", "is_known"),
    [
        ("google/medgemma-4b-it", True), ("Google/MedGemma-27b-text-it", True), ("google/medsiglip-448", True),
        ("google/gemma-3-4b-it", False), ("clinic/medgemma-4b-it", False), ("google/medgemma", False),
    ],
)  # fmt: skip
def test_the_terms_of_published_models_are_known(model: str, is_known: bool) -> None:
    assert (known(model) is HAI_DEF) is is_known


def test_what_a_lock_states_comes_back_as_terms() -> None:
    said = {"name": "House Rules", "url": "https://example.org/r", "gated": True, "licence_sha256": "1" * 64}

    found = of_lock("clinic/ours", said)

    assert found == stated("House Rules", "https://example.org/r", gated=True, text_sha256="1" * 64)
    assert of_lock("clinic/ours", None) is None
    assert of_lock("clinic/ours", {"name": "not stated"}) is None
    assert of_lock("google/medsiglip-448", said) is HAI_DEF


def test_without_a_text_the_address_and_the_version_are_what_is_accepted() -> None:
    assert HAI_DEF.sha256 != replace(HAI_DEF, url="https://example.org").sha256
    assert replace(HAI_DEF, text_sha256="2" * 64).sha256 == "2" * 64
    assert NOW.astimezone(UTC) == NOW
