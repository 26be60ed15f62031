"""Model Garden's deployment: one call makes a model, an endpoint and a deployment, or nothing at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from tests.support.control_calls import Caller
from tests.support.planes import PROJECT, Json, Standing, standing

from medport.errors import AlreadyExists, InputError, NotFound, PreconditionFailed, VerificationError
from medport_local.control import records
from medport_local.control.garden import Garden

COMMIT, SHA = "a" * 40, "c" * 64
GATED = "publishers/google/models/medgemma@medgemma-4b-it"
DEPLOY = f"/v1beta1/{PROJECT.parent}:deploy"
EULA = f"/v1beta1/projects/{PROJECT.id}/modelGardenEula"


@dataclass(frozen=True)
class Snapshot:
    model_id: str
    revision: str | None = COMMIT
    snapshot_sha256: str = SHA


HERE = (Snapshot("google/medgemma-4b-it"), Snapshot("medport/medgemma-phantom", "b" * 40, "d" * 64))


@contextmanager
def gardened(directory: Path, *here: Snapshot) -> Iterator[Standing]:
    """A plane whose garden knows some snapshots."""
    with standing(directory) as made:
        plane = made.plane
        garden = Garden(PROJECT, made.database, plane._operations, plane.deployments, available=lambda: here)
        made.call = Caller((*garden.rows(), *plane.rows()), PROJECT.parent)
        yield made


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Standing]:
    with gardened(tmp_path, *HERE) as made:
        yield made


def deploy(plane: Standing, **body: Any) -> Json:
    return plane.call.done(plane.call("POST", DEPLOY, body))


def phantom(plane: Standing, **body: Any) -> Json:
    return deploy(plane, huggingFaceModelId="medport/medgemma-phantom", **body)


def kept(plane: Standing) -> tuple[list[str], list[str]]:
    """Names of all endpoints and models."""
    endpoints = plane.call("GET", "endpoints").get("endpoints", [])
    models = plane.call("GET", "models").get("models", [])
    return [each["name"] for each in endpoints], [each["name"] for each in models]


def environment(model: Json) -> dict[str, str]:
    return {each["name"]: each["value"] for each in model["containerSpec"]["env"]}


class TestWhatIsMade:
    def test_the_operation_answers_the_model_and_the_endpoint_that_were_made(self, plane: Standing) -> None:
        operation = phantom(plane)

        response = operation["response"]
        assert operation["name"].startswith(f"{PROJECT.parent}/operations/")
        assert operation["metadata"]["@type"].endswith("aiplatform.v1beta1.DeployOperationMetadata")
        assert operation["metadata"]["projectNumber"] == PROJECT.number
        assert response["@type"].endswith("aiplatform.v1beta1.DeployResponse")
        assert response["publisherModel"] == "publishers/hf-medport/models/medgemma-phantom"
        assert kept(plane) == ([response["endpoint"]], [response["model"]])

    def test_the_operation_is_unknown_to_who_may_not_know_of_the_endpoint(self, plane: Standing) -> None:
        operation = phantom(plane, endpointConfig={"endpointUserId": "hers"})

        def mine(endpoint: str) -> bool:
            return endpoint == "mine"

        for method, verb in (("GET", ""), ("POST", ":wait"), ("POST", ":cancel"), ("DELETE", "")):
            with pytest.raises(NotFound):
                plane.call(method, f"/v1/{operation['name']}{verb}", may=mine)
        assert "hers" not in str(plane.call("GET", "operations", may=mine))
        assert plane.call("GET", f"/v1/{operation['name']}", may=lambda endpoint: endpoint == "hers") == operation

    def test_the_endpoint_is_dedicated_and_takes_all_traffic(self, plane: Standing) -> None:
        response = phantom(plane)["response"]

        endpoint = plane.call("GET", f"/v1/{response['endpoint']}")
        (deployed,) = endpoint["deployedModels"]
        assert endpoint["dedicatedEndpointEnabled"] is True
        assert endpoint["name"].rpartition("/")[2].startswith("mg-endpoint-")
        assert endpoint["trafficSplit"] == {deployed["id"]: 100}
        assert (deployed["model"], deployed["modelVersionId"]) == (response["model"], "1")
        assert plane.enter(endpoint["name"].rpartition("/")[2]) == deployed["id"]

    def test_the_model_says_which_bytes_it_means(self, plane: Standing) -> None:
        model = plane.call("GET", f"/v1/{phantom(plane)['response']['model']}")

        assert environment(model) == {
            "MODEL_ID": "medport/medgemma-phantom",
            "MEDPORT_SNAPSHOT_SHA256": "d" * 64,
        }
        assert model["baseModelSource"]["modelGardenSource"]["publicModelName"] == (
            "publishers/medport/models/medgemma-phantom"
        )

    def test_names_and_ids_are_the_callers_where_it_gives_them(self, plane: Standing) -> None:
        response = phantom(
            plane,
            modelConfig={"modelDisplayName": "the model", "modelUserId": "garden-model"},
            endpointConfig={"endpointDisplayName": "the endpoint", "endpointUserId": "garden"},
        )["response"]

        assert response["endpoint"] == f"{PROJECT.parent}/endpoints/garden"
        assert response["model"] == f"{PROJECT.parent}/models/garden-model"
        assert plane.call("GET", "endpoints/garden")["displayName"] == "the endpoint"
        assert plane.call("GET", "models/garden-model")["displayName"] == "the model"

    def test_an_endpoint_is_shared_if_the_caller_wants_no_dedicated_one(self, plane: Standing) -> None:
        response = phantom(plane, endpointConfig={"dedicatedEndpointDisabled": True})["response"]

        assert "dedicatedEndpointDns" not in plane.call("GET", f"/v1/{response['endpoint']}")

    def test_an_endpoint_with_private_service_connect_is_not_dedicated(self, plane: Standing) -> None:
        private = {"enablePrivateServiceConnect": True, "projectAllowlist": ["p"]}

        response = phantom(plane, endpointConfig={"privateServiceConnectConfig": private})["response"]

        endpoint = plane.call("GET", f"/v1/{response['endpoint']}")
        assert endpoint["privateServiceConnectConfig"] == private
        assert "dedicatedEndpointDns" not in endpoint

    def test_the_machine_is_the_published_one_unless_the_caller_names_another(self, plane: Standing) -> None:
        accepted = {"acceptEula": True}
        named = {"dedicatedResources": {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1}}

        first = deploy(plane, publisherModelName=GATED, modelConfig=accepted)["response"]
        second = deploy(plane, publisherModelName=GATED, modelConfig=accepted, deployConfig=named)["response"]
        third = deploy(
            plane,
            publisherModelName=GATED,
            modelConfig=accepted,
            deployConfig={"dedicatedResources": {"spot": True}},
        )["response"]

        resources = [
            plane.call("GET", f"/v1/{each['endpoint']}")["deployedModels"][0]["dedicatedResources"]
            for each in (first, second, third)
        ]
        assert [each["machineSpec"]["machineType"] for each in resources] == [
            "g2-standard-24",
            "n1-standard-4",
            "g2-standard-24",
        ]
        assert resources[2]["spot"] is True

    def test_the_callers_container_keeps_its_pin_and_gets_the_models_id(self, plane: Standing) -> None:
        container = {
            "imageUri": "registry.example/serve:1",
            "predictRoute": "/predict",
            "env": [{"name": "MEDPORT_REVISION", "value": "b" * 40}],
        }

        response = phantom(plane, modelConfig={"containerSpec": container})["response"]

        model = plane.call("GET", f"/v1/{response['model']}")
        assert model["containerSpec"]["imageUri"] == "registry.example/serve:1"
        assert environment(model) == {"MEDPORT_REVISION": "b" * 40, "MODEL_ID": "medport/medgemma-phantom"}

    def test_v1_answers_its_own_types(self, plane: Standing) -> None:
        body = {"publisherModelName": "medport/medgemma-phantom"}

        operation = plane.call.done(plane.call("POST", f"/v1/{PROJECT.parent}:deploy", body))

        assert operation["response"]["@type"].endswith("aiplatform.v1.DeployResponse")

    def test_fast_tryout_and_labels_are_kept_with_the_deployed_model(self, plane: Standing) -> None:
        response = phantom(plane, deployConfig={"fastTryoutEnabled": True, "systemLabels": {"k": "v"}})["response"]

        (deployed,) = plane.call("GET", f"/v1/{response['endpoint']}")["deployedModels"]
        assert deployed["fasterDeploymentConfig"] == {"fastTryoutEnabled": True}
        assert deployed["systemLabels"] == {"k": "v"}

    def test_weights_of_the_callers_own_are_served_from_the_place_that_it_names(self, plane: Standing) -> None:
        pinned = {"imageUri": "registry.example/s:1", "env": [{"name": "MEDPORT_SNAPSHOT_SHA256", "value": SHA}]}

        response = deploy(
            plane, customModel={"gcsUri": "gs://site/tuned/final/"}, modelConfig={"containerSpec": pinned}
        )["response"]

        model = plane.call("GET", f"/v1/{response['model']}")
        assert "publisherModel" not in response
        assert model["artifactUri"] == "gs://site/tuned/final/"
        assert model["displayName"] == "final-mg-one-click-deploy"


class TestFailures:
    def test_a_deployment_that_fails_leaves_neither_endpoint_nor_model(self, plane: Standing) -> None:
        plane.host.failures["*"] = VerificationError("model.safetensors: other bytes than the manifest says")

        operation = phantom(plane)

        assert operation["error"]["code"] == 9
        assert kept(plane) == ([], [])
        assert plane.host.keys() == []

    def test_while_it_is_deployed_endpoint_and_model_can_be_seen_and_not_deleted(self, plane: Standing) -> None:
        plane.host.hold()
        begun = plane.call("POST", DEPLOY, {"huggingFaceModelId": "medport/medgemma-phantom"})
        plane.host.starting.acquire()

        (endpoint,), (model,) = kept(plane)

        with pytest.raises(PreconditionFailed, match="being-deployed"):
            plane.call("DELETE", f"/v1/{endpoint}")
        with pytest.raises(PreconditionFailed):
            plane.call("DELETE", f"/v1/{model}")
        plane.host.let_go()
        assert "error" not in plane.call.done(begun)

    def test_a_deployment_that_is_cancelled_leaves_nothing(self, plane: Standing) -> None:
        plane.host.hold()
        begun = plane.call("POST", DEPLOY, {"huggingFaceModelId": "medport/medgemma-phantom"})
        plane.host.starting.acquire()

        plane.call("POST", f"/v1/{begun['name']}:cancel")

        assert plane.call.done(begun)["error"]["code"] == 1
        assert kept(plane) == ([], [])

    def test_a_version_that_somebody_uploads_meanwhile_is_not_taken_back(self, plane: Standing) -> None:
        plane.host.hold()
        body = {"huggingFaceModelId": "medport/medgemma-phantom", "modelConfig": {"modelUserId": "mine"}}
        begun = plane.call("POST", DEPLOY, body)
        plane.host.starting.acquire()
        plane.model("mine")

        plane.call("POST", f"/v1/{begun['name']}:cancel")
        plane.call.done(begun)

        assert kept(plane) == ([], [f"{PROJECT.parent}/models/mine"])

    @pytest.mark.parametrize("taken", ["endpoint", "model"])
    def test_an_id_that_is_taken_is_refused_and_nothing_is_made(self, plane: Standing, taken: str) -> None:
        plane.endpoint("taken")
        plane.model("taken")
        before = kept(plane)
        config = {
            "endpoint": {"endpointConfig": {"endpointUserId": "taken"}},
            "model": {"modelConfig": {"modelUserId": "taken"}},
        }[taken]

        with pytest.raises(AlreadyExists, match=f"{taken}_id"):
            phantom(plane, **config)

        assert kept(plane) == before

    def test_a_model_that_is_not_here_is_refused_with_how_to_bring_it(self, plane: Standing) -> None:
        with pytest.raises(PreconditionFailed, match="medport snapshot pull google/medgemma-27b-it@COMMIT"):
            deploy(
                plane,
                publisherModelName="publishers/google/models/medgemma@medgemma-27b-it",
                modelConfig={"acceptEula": True},
            )

        assert kept(plane) == ([], [])

    def test_a_model_that_nobody_publishes_is_not_found(self, plane: Standing) -> None:
        with pytest.raises(NotFound, match="publisher_model_name"):
            deploy(plane, publisherModelName="publishers/google/models/gemini@2")

    def test_weights_that_this_server_does_not_read_are_refused_with_what_to_do(self, plane: Standing) -> None:
        with pytest.raises(PreconditionFailed, match="medport snapshot pull URI"):
            deploy(plane, customModel={"gcsUri": "gs://site/tuned/final"})

    @pytest.mark.parametrize(
        ("body", "said"),
        [
            ({}, "exactly one of publisherModelName"),
            ({"publisherModelName": GATED, "huggingFaceModelId": "google/medgemma-4b-it"}, "exactly one of"),
            ({"publisherModelName": GATED, "modelConfig": {"acceptEula": "yes"}}, "model_config.accept_eula"),
            (
                {"publisherModelName": GATED, "model_config": {"eula": True}},
                "Unknown name \"eula\" at 'model_config'",
            ),
            ({"publisherModelName": GATED, "modelConfig": {}, "model_config": {}}, "given twice"),
            (
                {
                    "publisherModelName": GATED,
                    "endpointConfig": {"dedicatedEndpointEnabled": True, "dedicatedEndpointDisabled": True},
                },
                "both enabled and disabled",
            ),
        ],
    )
    def test_a_body_that_cannot_be_meant_is_refused(self, plane: Standing, body: Json, said: str) -> None:
        with pytest.raises(InputError) as raised:
            deploy(plane, **body)

        assert said in str(raised.value)

    def test_of_several_snapshots_one_must_be_named(self, tmp_path: Path) -> None:
        two = (Snapshot("site/tuned", "1" * 40, "1" * 64), Snapshot("site/tuned", "2" * 40, "2" * 64))
        published = tuple(Snapshot("google/medsiglip-448", each.revision, each.snapshot_sha256) for each in two)
        with gardened(tmp_path / "two", *two, *published) as plane:
            with pytest.raises(PreconditionFailed, match="2 snapshots of google/medsiglip-448"):
                deploy(
                    plane,
                    publisherModelName="publishers/google/models/medsiglip@medsiglip-448",
                    modelConfig={"acceptEula": True},
                )

            response = deploy(plane, publisherModelName=f"publishers/site/models/tuned@{'2' * 40}")["response"]

            assert (
                environment(plane.call("GET", f"/v1/{response['model']}"))["MEDPORT_SNAPSHOT_SHA256"] == "2" * 64
            )


class TestEula:
    def check(self, plane: Standing, model: str = GATED) -> Json:
        return plane.call("POST", f"{EULA}:check", {"publisherModel": model})

    def test_terms_are_not_accepted_until_somebody_does(self, plane: Standing) -> None:
        before = self.check(plane)
        accepted = plane.call("POST", f"{EULA}:accept", {"publisherModel": GATED})
        after = self.check(plane)

        assert before == {
            "projectNumber": PROJECT.number,
            "publisherModel": GATED,
            "publisherModelEulaAcked": False,
        }
        assert accepted == after == {**before, "publisherModelEulaAcked": True}

    def test_a_gated_model_is_not_deployed_before(self, plane: Standing) -> None:
        with pytest.raises(PreconditionFailed) as raised:
            deploy(plane, publisherModelName=GATED)

        assert "Health AI Developer Foundations Terms of Use" in str(raised.value)
        assert "modelGardenEula:accept" in str(raised.value)
        assert kept(plane) == ([], [])

    @pytest.mark.parametrize("accepted", [GATED, "publishers/google/models/medgemma-4b-it", f"{GATED}-dicom"])
    def test_an_acceptance_under_any_name_of_the_model_holds_for_all(self, plane: Standing, accepted: str) -> None:
        plane.call("POST", f"{EULA}:accept", {"publisherModel": accepted})

        assert "error" not in deploy(plane, publisherModelName=GATED)

    def test_an_acceptance_of_one_model_is_none_of_another(self, plane: Standing) -> None:
        plane.call("POST", f"{EULA}:accept", {"publisherModel": GATED})

        other = self.check(plane, "publishers/google/models/medgemma@medgemma-27b-it")

        assert other["publisherModelEulaAcked"] is False

    def test_an_acceptance_with_a_deployment_is_kept_although_that_fails(self, plane: Standing) -> None:
        plane.host.failures["*"] = VerificationError("other bytes")

        operation = deploy(plane, publisherModelName=GATED, modelConfig={"acceptEula": True})

        assert "error" in operation
        assert self.check(plane)["publisherModelEulaAcked"] is True

    def test_who_accepted_which_terms_and_when_is_kept_once(self, plane: Standing) -> None:
        for _ in range(2):
            plane.call("POST", f"{EULA}:accept", {"publisherModel": GATED})

        name = f"projects/{PROJECT.number}/modelGardenEula/google/medgemma-4b-it"
        with plane.database.reading() as tx:
            record = records.get(tx, name)
        assert record.version == 1
        assert record.body["terms"]["url"].startswith("https://developers.google.com/")
        assert record.body["acceptedBy"] == ""
        assert record.created

    def test_a_model_without_terms_needs_no_acceptance(self, plane: Standing) -> None:
        assert self.check(plane, "medport/medgemma-phantom")["publisherModelEulaAcked"] is True
        assert "error" not in phantom(plane)

    def test_a_model_that_there_is_not_has_no_terms_to_accept(self, plane: Standing) -> None:
        with pytest.raises(NotFound, match="publisher_model"):
            plane.call("POST", f"{EULA}:accept", {"publisherModel": "publishers/x/models/y"})


class TestSecrets:
    def test_a_hub_token_is_taken_and_neither_kept_nor_logged(
        self, plane: Standing, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        caplog.set_level("DEBUG")

        operation = phantom(
            plane, modelConfig={"huggingFaceAccessToken": "hf_CANARY", "huggingFaceCacheEnabled": True}
        )

        assert "response" in operation
        assert not [each for each in tmp_path.rglob("*") if each.is_file() and b"CANARY" in each.read_bytes()]
        assert "CANARY" not in caplog.text

    def test_a_hub_token_is_not_in_the_refusal_of_a_body_that_holds_it(self, plane: Standing) -> None:
        with pytest.raises(InputError) as raised:
            phantom(plane, modelConfig={"huggingFaceAccessToken": "hf_CANARY", "acceptEula": "hf_CANARY"})

        assert "CANARY" not in str(raised.value)
