"""What Terraform's google provider sends for an endpoint and a Model Garden deployment, as plain HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from support.client_calls import call
from support.polling import wait_until

from .conftest import PROJECT, Site

Json = dict[str, Any]
LABELS = {"goog-terraform-provisioned": "true", "ward": "7"}
ENDPOINT: Json = {
    "displayName": "reading-room",
    "description": "chest",
    "labels": LABELS,
    "network": "projects/634708407569/global/networks/hospital",
    "encryptionSpec": {"kmsKeyName": f"projects/{PROJECT}/locations/europe-west4/keyRings/r/cryptoKeys/k"},
    "predictRequestResponseLoggingConfig": {"enabled": False, "samplingRate": 0.1},
}


class Provider:
    """The provider's client: ``vertex_ai_custom_endpoint`` is the server, with one of the versions."""

    def __init__(self, http: httpx.Client, site: Site, version: str) -> None:
        self.http = http
        self.base = f"/{version}"
        self.parent = f"projects/{PROJECT}/locations/{site.location}"

    def send(self, method: str, path: str, body: object = None) -> Json:
        separator = "&" if "?" in path else "?"
        answer = self.http.request(method, f"{self.base}/{path}{separator}alt=json", json=body)
        answer.raise_for_status()
        found: Json = answer.json()
        return found

    def waited(self, operation: Json) -> Json:
        """Poll as the provider does, by the operation's name; gives the response."""
        wait_until(lambda: self.send("GET", operation["name"])["done"], 60)
        done = self.send("GET", operation["name"])
        assert "error" not in done, done["error"]
        response: Json = done["response"]
        return response


@pytest.fixture(params=["v1", "v1beta1"])
def provider(request: pytest.FixtureRequest, http: httpx.Client, site: Site) -> Provider:
    return Provider(http, site, request.param)


@pytest.fixture
def created(provider: Provider) -> Iterator[str]:
    """An endpoint by a numeric id, as the provider makes it; its path."""
    path = f"{provider.parent}/endpoints/4711"
    provider.waited(provider.send("POST", f"{provider.parent}/endpoints?endpointId=4711", ENDPOINT))
    yield path
    if provider.http.get(f"{provider.base}/{path}").status_code == 200:
        provider.waited(provider.send("DELETE", path))


@call("google_vertex_ai_endpoint: create, then read")
def test_what_is_read_is_what_was_sent(provider: Provider, created: str) -> None:
    found = provider.send("GET", created)

    assert {key: found.get(key) for key in ENDPOINT} == {
        **ENDPOINT,
        "predictRequestResponseLoggingConfig": {"samplingRate": 0.1},
    }
    assert "trafficSplit" not in found
    assert found["name"].endswith("/endpoints/4711")


@call("google_vertex_ai_endpoint: update by PATCH ?updateMask=displayName%2Clabels")
def test_update_answers_the_endpoint_and_keeps_to_its_mask(provider: Provider, created: str) -> None:
    body = {**ENDPOINT, "displayName": "renamed", "description": "ignored", "labels": {**LABELS, "ward": "8"}}

    answered = provider.send("PATCH", f"{created}?updateMask=displayName%2Clabels", body)

    assert (answered["displayName"], answered["description"]) == ("renamed", "chest")
    assert answered["labels"] == {**LABELS, "ward": "8"}
    assert "metadata" not in answered


@call("google_vertex_ai_endpoint: update of a field that the body lacks")
def test_field_of_the_mask_that_the_body_lacks_is_cleared(provider: Provider, created: str) -> None:
    body = {key: value for key, value in ENDPOINT.items() if key != "description"}

    answered = provider.send("PATCH", f"{created}?updateMask=description", body)

    assert "description" not in answered


@call("google_vertex_ai_endpoint: destroy, then read", "refused", "404, which Terraform takes as gone")
def test_endpoint_that_is_destroyed_is_not_found(provider: Provider, created: str) -> None:
    provider.waited(provider.send("DELETE", created))

    again = provider.http.get(f"{provider.base}/{created}")
    assert (again.status_code, again.json()["error"]["status"]) == (404, "NOT_FOUND")


@call("google_vertex_ai_endpoint: create with an id that is used", "refused", "409 ALREADY_EXISTS")
def test_endpoint_of_another_is_not_taken_over(provider: Provider, created: str) -> None:
    again = provider.http.post(f"{provider.base}/{provider.parent}/endpoints?endpointId=4711", json=ENDPOINT)

    assert (again.status_code, again.json()["error"]["status"]) == (409, "ALREADY_EXISTS")


@call("POST endpoints with a field that is not there", "refused", "400 in Google's words")
def test_unknown_field_is_named(provider: Provider) -> None:
    answer = provider.http.post(f"{provider.base}/{provider.parent}/endpoints", json={**ENDPOINT, "colour": "red"})

    assert answer.status_code == 400
    assert 'Invalid JSON payload received. Unknown name "colour"' in answer.json()["error"]["message"]


@call("google_vertex_ai_endpoint_with_model_garden_deployment: create, scale, destroy")
def test_life_of_a_model_garden_deployment(provider: Provider) -> None:
    machine = {"machineType": "g2-standard-24", "acceleratorType": "NVIDIA_L4", "acceleratorCount": 2}
    body = {
        "huggingFaceModelId": "medport/medgemma-phantom",
        "modelConfig": {"acceptEula": True},
        "deployConfig": {"dedicatedResources": {"machineSpec": machine, "minReplicaCount": 1}},
    }
    resources = {"dedicatedResources": {"maxReplicaCount": 2}}

    made = provider.waited(provider.send("POST", f"{provider.parent}:deploy", body))["endpoint"]
    (deployed,) = provider.send("GET", made)["deployedModels"]
    provider.waited(
        provider.send(
            "POST",
            f"{made}:mutateDeployedModel",
            {
                "deployedModel": {"id": deployed["id"], **resources},
                "updateMask": "dedicatedResources.maxReplicaCount",
            },
        )
    )
    (scaled,) = provider.send("GET", made)["deployedModels"]
    provider.waited(provider.send("POST", f"{made}:undeployModel", {"deployedModelId": deployed["id"]}))
    provider.waited(provider.send("DELETE", made))

    assert len(made.split("/")) == 6
    assert deployed["dedicatedResources"]["machineSpec"] == machine
    assert scaled["dedicatedResources"]["maxReplicaCount"] == 2
    assert provider.http.get(f"{provider.base}/{made}").status_code == 404
