"""Faults on purpose, on a control plane that listens: ordered by an operator, met by callers, taken back."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support.local_server import local_server
from support.running import LoopThread

from medport_local.app import Settings
from medport_local.settings import ControlPlane

FAULTS = "/medport/v1/faults"
PARENT = "/v1/projects/local/locations/europe-west4"
GARDEN = f"{PARENT}:deploy"
PHANTOM = {"huggingFaceModelId": "medport/medsiglip-phantom"}


@pytest.fixture
def http(loop_thread: LoopThread, tmp_path: Path) -> Iterator[httpx.Client]:
    plane = ControlPlane(directory=tmp_path / "state", allow_faults=True)
    with local_server(loop_thread, Settings(control_plane=plane)) as server, server.client() as client:
        yield client


def done(http: httpx.Client, operation: dict[str, Any]) -> dict[str, Any]:
    until = time.monotonic() + 30
    while not operation["done"]:
        assert time.monotonic() < until, "the operation does not end"
        operation = http.get(f"/ui/{operation['name']}").json()
    return operation


def order(http: httpx.Client, /, **rule: Any) -> str:
    answer = http.post(FAULTS, json=rule)
    assert answer.status_code == 200, answer.text
    return str(answer.json()["id"])


def test_a_server_without_the_flag_has_no_faults(loop_thread: LoopThread, tmp_path: Path) -> None:
    plane = ControlPlane(directory=tmp_path / "state")
    with local_server(loop_thread, Settings(control_plane=plane)) as server, server.client() as client:
        answers = [client.get(FAULTS), client.post(FAULTS, json={"http": {"status": 500}}), client.delete(FAULTS)]

    assert {answer.status_code for answer in answers} == {404}


def test_a_call_meets_a_fault_until_it_is_taken_back(http: httpx.Client) -> None:
    made = order(http, match={"verb": "aiplatform.endpoints.list"}, http={"status": 503, "message": "Later."})

    met = http.get(f"{PARENT}/endpoints")
    other = http.get(f"{PARENT}/models")
    hits = http.get(FAULTS).json()["faults"][0]["hits"]
    http.delete(f"{FAULTS}/{made}")
    after = http.get(f"{PARENT}/endpoints")

    assert (met.status_code, met.json()["error"]["message"]) == (503, "Later.")
    assert (other.status_code, after.status_code, hits) == (200, 200, 1)


@pytest.mark.parametrize(("failure", "code"), [("quota", 8), ("capacity", 14), ("failing_container", 9)])
def test_a_deployment_ends_with_the_fault_and_leaves_nothing(http: httpx.Client, failure: str, code: int) -> None:
    order(http, times=1, deploy={"failure": failure})

    operation = done(http, http.post(GARDEN, json=PHANTOM).json())

    assert operation["error"]["code"] == code
    assert http.get(f"{PARENT}/endpoints").json() == {}
    assert http.get(f"{PARENT}/models").json() == {}


def test_of_a_split_the_model_that_is_named_fails_and_its_engine_answers_before_and_after(
    http: httpx.Client,
) -> None:
    endpoint = done(http, http.post(GARDEN, json=PHANTOM).json())["response"]["endpoint"]
    (deployed,) = http.get(f"/v1/{endpoint}").json()["deployedModels"]
    ask = {"instances": [{"text": "A chest X-ray."}]}
    order(http, match={"deployedModelId": deployed["id"]}, times=1, http={"status": 500, "text": "broken"})

    answers = [http.post(f"/v1/{endpoint}:predict", json=ask) for _ in range(2)]

    assert [answer.status_code for answer in answers] == [500, 200]
    assert answers[0].text == "broken"
    assert answers[1].json()["deployedModelId"] == deployed["id"]


def test_an_operation_is_held_up_and_then_done(http: httpx.Client) -> None:
    order(http, operation={"kind": "createEndpoint", "slowSeconds": 0.5})

    begun = http.post(f"{PARENT}/endpoints", json={"displayName": "slow"}).json()

    assert begun["done"] is False
    assert done(http, begun)["response"]["displayName"] == "slow"
