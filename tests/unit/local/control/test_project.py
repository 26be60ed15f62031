"""One project, one location: what a server takes as its own, and how it writes names."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import Forbidden, InputError, NotFound
from medport_local.control.project import Project

HOME = Project("radiology", "europe-west4", "123456789012")
PARENT = "projects/123456789012/locations/europe-west4"
IDS = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)


@given(IDS)
def test_a_number_that_is_made_has_twelve_digits_and_is_the_same_at_every_start(name: str) -> None:
    number = Project(name, "europe-west4").number

    assert re.fullmatch(r"[1-9]\d{11}", number)
    assert Project(name, "us-central1").number == number


def test_two_ids_have_two_numbers() -> None:
    assert Project("radiology", "europe-west4").number != Project("pathology", "europe-west4").number


@pytest.mark.parametrize("project", ["radiology", "123456789012"])
def test_names_with_the_id_or_the_number_are_one_name_with_the_number(project: str) -> None:
    name = f"projects/{project}/locations/europe-west4/models/mg@2"

    assert HOME.canonical(name, kind="models") == f"{PARENT}/models/mg@2"


@given(IDS, st.sampled_from(["models", "endpoints"]))
def test_writing_a_name_twice_is_writing_it_once(name: str, kind: str) -> None:
    once = HOME.canonical(name, kind=kind)

    assert once == f"{PARENT}/{kind}/{name}"
    assert HOME.canonical(once, kind=kind) == once


def test_a_name_inside_another_keeps_all_its_parts() -> None:
    name = "projects/radiology/locations/europe-west4/endpoints/e/operations/17"

    assert HOME.canonical(name) == f"{PARENT}/endpoints/e/operations/17"


@pytest.mark.parametrize(
    "name",
    ["", "a/b", "projects/radiology/locations/europe-west4", "projects/radiology/locations/europe-west4/models",
     "projects/radiology/locations/europe-west4/models/", "projects//locations/europe-west4/models/m",
     "publishers/google/models/medgemma/versions/1", "projects/radiology/regions/europe-west4/models/m",
     "/projects/radiology/locations/europe-west4/models/m"],
)  # fmt: skip
def test_what_is_no_name_is_refused_by_field_and_with_the_form(name: str) -> None:
    with pytest.raises(InputError, match=r"deployedModel\.model") as refused:
        HOME.canonical(name, kind="models", field="deployedModel.model")

    assert f"{PARENT}/models/ID" in (refused.value.remedy or "")


def test_the_name_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="models"):
        HOME.canonical(f"{PARENT}/endpoints/e", kind="models")


@pytest.mark.parametrize("project", ["pathology", "123456789013", "", "RADIOLOGY"])
def test_another_project_is_forbidden_and_told_which_there_is(project: str) -> None:
    with pytest.raises(Forbidden, match="radiology or 123456789012") as refused:
        HOME.check(project, "europe-west4")

    assert refused.value.field == "project"


def test_another_location_is_not_found_and_told_which_there_is() -> None:
    with pytest.raises(NotFound, match="europe-west4") as refused:
        HOME.check("radiology", "us-central1")

    assert refused.value.field == "location"


def test_a_hyphen_stands_for_any() -> None:
    HOME.check("-", "-")

    assert HOME.canonical("projects/-/locations/-/models/m") == f"{PARENT}/models/m"
