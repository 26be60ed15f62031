"""The catalogue of Model Garden: which names mean which model, and what of it is here."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from google.cloud.aiplatform_v1beta1 import types

from medport.errors import NotFound
from medport_local.control import publishers
from medport_local.control.publishers import REVISION_LABEL, Catalogue
from medport_local.model_identity import KNOWN_MODELS

COMMIT, OTHER = "a" * 40, "b" * 40


@dataclass(frozen=True)
class Snapshot:
    model_id: str
    revision: str | None
    snapshot_sha256: str = "c" * 64


def catalogue(*snapshots: Snapshot) -> Catalogue:
    return Catalogue(lambda: snapshots)


@pytest.mark.parametrize(
    "name",
    [
        "publishers/google/models/medgemma@medgemma-4b-it",
        "publishers/Google/models/MedGemma@MedGemma-4B-it",
        "google/medgemma@medgemma-4b-it",
        "google/medgemma-4b-it",
        "publishers/google/models/medgemma-4b-it",
        "publishers/hf-google/models/medgemma-4b-it",
        "google/medgemma",
    ],
)
def test_all_names_of_a_published_model_mean_it(name: str) -> None:
    found = catalogue().find(name)

    assert (found.resource, found.model_id) == (
        "publishers/google/models/medgemma@medgemma-4b-it",
        "google/medgemma-4b-it",
    )


@pytest.mark.parametrize(
    "name",
    [
        "google/medgemma@medgemma-5b-it",
        "meta/llama",
        "medgemma",
        "",
        "publishers/google/models/",
        "a/b/c/d",
        "x@y/z",
    ],
)
def test_a_name_of_no_model_is_not_found_and_the_remedy_lists_those_there_are(name: str) -> None:
    with pytest.raises(NotFound) as raised:
        catalogue().find(name)

    assert "publishers/google/models/medsiglip@medsiglip-448" in str(raised.value)


def test_every_published_model_is_one_whose_terms_are_known() -> None:
    models = catalogue().models()

    assert {model.model_id for model in models} == {known.model_id for known in KNOWN_MODELS}
    assert all(model.gated is not None for model in models)


def test_a_snapshot_of_the_server_stands_under_its_own_name_and_commit() -> None:
    found = catalogue(Snapshot("medport/medgemma-phantom", COMMIT)).find("medport/medgemma-phantom")

    assert found.resource == f"publishers/medport/models/medgemma-phantom@{COMMIT}"
    assert found.gated is None


def test_of_a_published_model_it_is_told_which_snapshot_is_here() -> None:
    shown = catalogue(Snapshot("google/medgemma-4b-it", COMMIT)).find("google/medgemma-4b-it").shown("")

    options = shown["supportedActions"]["multiDeployVertex"]["multiDeployVertex"]
    assert {option["deployMetadata"]["labels"][REVISION_LABEL] for option in options} == {COMMIT}


def test_of_a_published_model_that_is_not_here_no_snapshot_is_told() -> None:
    shown = catalogue(Snapshot("google/medsiglip-448", COMMIT)).find("google/medgemma-4b-it").shown("")

    options = shown["supportedActions"]["multiDeployVertex"]["multiDeployVertex"]
    assert options
    assert not any("deployMetadata" in option for option in options)


def test_two_snapshots_of_one_model_have_two_names() -> None:
    names = [
        model.resource
        for model in catalogue(
            Snapshot("site/tuned", COMMIT, "1" * 64),
            Snapshot("site/tuned", OTHER, "2" * 64),
            Snapshot("site/tuned", None, "3" * 64),
            Snapshot("site/tuned", None, "4" * 64),
        ).models()
        if not model.published
    ]

    assert names == [f"publishers/site/models/tuned@{version}" for version in (COMMIT, OTHER, "3" * 64, "4" * 64)]


def test_a_name_with_spaces_becomes_one_that_a_path_can_hold() -> None:
    found = catalogue(Snapshot("google/medgemma-4b-it int8", COMMIT)).find("google/medgemma-4b-it-int8")

    assert found.model_id == "google/medgemma-4b-it int8"
    assert found.gated is not None
    assert found.gated.model_id == "google/medgemma-4b-it"


def test_the_image_is_the_one_that_the_operator_names_or_none() -> None:
    model = catalogue().find("google/medgemma-4b-it")

    assert "imageUri" not in model.spec("")
    assert model.spec("example.org/serve@sha256:0")["imageUri"] == "example.org/serve@sha256:0"


def test_the_dicom_variant_says_whose_dialect_it_speaks() -> None:
    spec = catalogue().find("google/medgemma@medgemma-4b-it-dicom").spec("")

    assert {each["name"]: each["value"] for each in spec["env"]} == {
        "MEDPORT_DIALECT": "dicom",
        "MODEL_ID": "google/medgemma-4b-it",
    }


@pytest.mark.parametrize("hub", [False, True])
def test_googles_client_reads_every_entry_field_by_field(hub: bool) -> None:
    for model in catalogue(Snapshot("medport/medgemma-phantom", COMMIT)).models():
        shown = model.shown("example.org/serve:1", hub=hub)

        read = types.PublisherModel.from_json(json.dumps(shown), ignore_unknown_fields=False)

        assert read.name == shown["name"]
        assert len(read.supported_actions.multi_deploy_vertex.multi_deploy_vertex) >= 1


def test_the_catalogue_names_no_registry() -> None:
    text = Path(publishers.__file__).with_name("publisher_models.json").read_text("utf-8")

    assert "imageUri" not in text
    assert ".dev" not in text
