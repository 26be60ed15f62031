"""Looking at Model Garden: one model, lists by filter and by page, recommendations."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import pytest

from medport.errors import InputError, NotFound
from medport_local.control.asks import Ask
from medport_local.control.project import Project
from medport_local.control.publisher_calls import PublisherCalls
from medport_local.control.publishers import Catalogue

COMMIT = "a" * 40


@dataclass(frozen=True)
class Snapshot:
    model_id: str
    revision: str | None = COMMIT
    snapshot_sha256: str = "c" * 64


@pytest.fixture
def calls() -> PublisherCalls:
    project = Project("radiology", "europe-west4")
    here = (Snapshot("medport/medgemma-phantom"), Snapshot("google/medgemma-4b-it"))
    return PublisherCalls(project, Catalogue(lambda: here, "example.org/serve:1"))


def listed(calls: PublisherCalls, publisher: str = "*", **query: str) -> list[str]:
    return names(asyncio.run(calls.list(Ask(api="v1beta1", path={"publisher": publisher}, query=query))))


def names(page: dict[str, Any]) -> list[str]:
    return ["@".join(filter(None, (each["name"], each.get("versionId")))) for each in page["publisherModels"]]


def get(calls: PublisherCalls, publisher: str, model: str, **query: str) -> dict[str, Any]:
    return asyncio.run(calls.get(Ask(api="v1", path={"publisher": publisher, "model": model}, query=query)))


class TestGet:
    def test_a_model_is_shown_with_the_ways_to_deploy_it(self, calls: PublisherCalls) -> None:
        shown = get(calls, "google", "medgemma@medgemma-4b-it")

        assert (shown["name"], shown["versionId"]) == ("publishers/google/models/medgemma", "medgemma-4b-it")
        first = shown["supportedActions"]["multiDeployVertex"]["multiDeployVertex"][0]
        assert first["containerSpec"]["imageUri"] == "example.org/serve:1"
        assert first["dedicatedResources"]["machineSpec"] == {
            "machineType": "g2-standard-24",
            "acceleratorType": "NVIDIA_L4",
            "acceleratorCount": 2,
        }

    def test_a_model_that_is_asked_for_by_its_name_on_the_hub_is_shown_by_it(self, calls: PublisherCalls) -> None:
        shown = get(calls, "google", "medgemma-4b-it", isHuggingFaceModel="true")

        assert names({"publisherModels": [shown]}) == ["publishers/hf-google/models/medgemma-4b-it"]

    def test_a_model_that_is_not_there_is_not_found(self, calls: PublisherCalls) -> None:
        with pytest.raises(NotFound, match="publishers/google/models/gemini"):
            get(calls, "google", "gemini")


class TestList:
    def test_without_all_versions_each_model_is_listed_once(self, calls: PublisherCalls) -> None:
        assert listed(calls) == [
            "publishers/google/models/medgemma@medgemma-4b-it",
            "publishers/google/models/medsiglip@medsiglip-448",
            f"publishers/medport/models/medgemma-phantom@{COMMIT}",
            f"publishers/google/models/medgemma-4b-it@{COMMIT}",
        ]

    def test_with_all_versions_all_are_listed(self, calls: PublisherCalls) -> None:
        found = listed(calls, listAllVersions="true")

        assert len(found) == 10
        assert "publishers/google/models/medgemma@medgemma-27b-text-it" in found

    def test_a_publishers_list_holds_only_its_own(self, calls: PublisherCalls) -> None:
        assert listed(calls, "medport") == [f"publishers/medport/models/medgemma-phantom@{COMMIT}"]

    def test_the_filter_of_googles_client_finds_a_word(self, calls: PublisherCalls) -> None:
        wanted = (
            'is_hf_wildcard(false) AND (model_user_id=~"(?i).*MedSigLIP.*" OR display_name=~"(?i).*MedSigLIP.*")'
        )

        assert listed(calls, filter=wanted, listAllVersions="true") == [
            "publishers/google/models/medsiglip@medsiglip-448"
        ]

    def test_the_models_of_the_hub_are_listed_once_each_by_their_names_there(self, calls: PublisherCalls) -> None:
        wanted = "is_hf_wildcard(true) AND labels.VERIFIED_DEPLOYMENT_CONFIG=VERIFIED_DEPLOYMENT_SUCCEED"

        found = listed(calls, filter=wanted, listAllVersions="true")

        assert found == [
            "publishers/hf-google/models/medgemma-4b-it",
            "publishers/hf-google/models/medgemma-1.5-4b-it",
            "publishers/hf-google/models/medgemma-27b-it",
            "publishers/hf-google/models/medgemma-27b-text-it",
            "publishers/hf-google/models/medsiglip-448",
            "publishers/hf-medport/models/medgemma-phantom",
        ]

    @pytest.mark.parametrize(
        "wanted",
        ["labels.x=y", 'model_user_id=~"(a+)+$"', "is_hf_wildcard(maybe)", 'model_user_id="x" OR foo', "AND"],
    )
    def test_a_filter_that_is_not_understood_is_refused(self, calls: PublisherCalls, wanted: str) -> None:
        with pytest.raises(InputError, match="filter"):
            listed(calls, filter=wanted)

    def test_pages_together_hold_every_model_once(self, calls: PublisherCalls) -> None:
        found: list[str] = []
        token = ""
        for _ in range(10):
            query = {"pageSize": "3", "pageToken": token, "listAllVersions": "true"}
            page = asyncio.run(calls.list(Ask(api="v1beta1", path={"publisher": "-"}, query=query)))
            assert len(page["publisherModels"]) <= 3
            found += names(page)
            token = page.get("nextPageToken", "")
            if not token:
                break

        assert found == listed(calls, listAllVersions="true")

    @pytest.mark.parametrize(
        "query", [{"pageSize": "-1"}, {"pageSize": "x"}, {"pageToken": "!"}, {"pageToken": "-3"}]
    )
    def test_a_page_that_cannot_be_is_refused(self, calls: PublisherCalls, query: dict[str, str]) -> None:
        with pytest.raises(InputError, match="page_"):
            listed(calls, **query)


class TestRecommend:
    def recommend(self, calls: PublisherCalls, body: dict[str, Any]) -> dict[str, Any]:
        return asyncio.run(calls.recommend(Ask(api="v1beta1", body=body)))

    def test_machines_are_those_of_the_model_that_the_path_names(self, calls: PublisherCalls) -> None:
        said = self.recommend(calls, {"gcsUri": "gs://site/tuned/medgemma-27b-text-it/final"})

        assert said["baseModel"] == "publishers/google/models/medgemma@medgemma-27b-text-it"
        assert [each["spec"] for each in said["recommendations"]] == said["specs"]
        assert said["recommendations"][0]["region"] == "europe-west4"
        assert said["specs"][0]["machineSpec"]["machineType"] == "g2-standard-48"

    def test_the_longest_name_in_the_path_is_the_one_that_is_meant(self, calls: PublisherCalls) -> None:
        said = self.recommend(calls, {"gcs_uri": "gs://site/medgemma-4b-it-dicom/x"})

        assert said["baseModel"].endswith("@medgemma-4b-it-dicom")

    def test_for_weights_of_unknown_origin_every_machine_is_named_once(self, calls: PublisherCalls) -> None:
        said = self.recommend(calls, {"gcsUri": "gs://tuning-job-output/node-0/checkpoints/final"})

        machines = [each["machineSpec"]["machineType"] for each in said["specs"]]
        assert "baseModel" not in said
        assert len(machines) == len(set(machines))
        assert {"g2-standard-24", "g2-standard-48", "n1-standard-8"} <= set(machines)

    def test_an_unknown_field_is_named(self, calls: PublisherCalls) -> None:
        with pytest.raises(InputError, match='Unknown name "gcsUrl"'):
            self.recommend(calls, {"gcsUri": "gs://x", "gcsUrl": "gs://x"})
