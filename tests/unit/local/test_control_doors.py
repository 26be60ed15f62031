"""Every door of a server with a control plane, against keys of every kind."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from support.local_server import LocalServer, local_server
from support.running import LoopThread

from medport_local.app import Settings
from medport_local.serving import keys
from medport_local.serving.exchange import Door
from medport_local.serving.verbs import ACTIONS, CHANGES, VERBS, action_of
from medport_local.settings import ControlPlane

OPEN = {"/health", "/health/live", "/health/ready", "/ping", "/token"}
LOOSE = "aiplatform.endpoints.*"


@pytest.fixture(scope="module")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    return {
        "file": str(file),
        **{action: keys.add(file, action, actions=[action]) for action in ACTIONS},
        "elsewhere": keys.add(file, "elsewhere", actions=list(ACTIONS), models=["elsewhere"]),
        "a model's": keys.add(file, "a-model-s", actions=["infer"], models=["models/elsewhere"]),
        "loose": keys.add(file, "loose", verbs=[LOOSE]),
    }


@pytest.fixture(scope="module")
def server(
    made_keys: dict[str, str], loop_thread: LoopThread, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LocalServer]:
    state = tmp_path_factory.mktemp("plane") / "state"
    settings = Settings(
        snapshots={},
        keys_file=Path(made_keys["file"]),
        control_plane=ControlPlane(directory=state, allow_faults=True),
    )
    with local_server(loop_thread, settings) as running:
        yield running


def rows(server: LocalServer) -> list[tuple[str, str, Door]]:
    """Method, path template and door of each route."""
    return [
        (method, route.path, route.endpoint) for route in server.app.routes for method in route.methods - {"HEAD"}
    ]


def status(client: httpx.Client, method: str, template: str) -> int:
    """Of a call about things that are not there: what matters is whether the door let it in."""
    path = (
        template.replace("{path:path}", "health")
        .replace("{project}", "local")
        .replace("{location}", "europe-west4")
    )
    while "{" in path:
        head, _, rest = path.partition("{")
        path = head + "9" + rest.partition("}")[2]
    return client.request(method, path, json=None if method == "GET" else {}).status_code


def test_every_call_of_the_control_plane_has_a_permission_that_keys_can_hold(server: LocalServer) -> None:
    for method, template, door in rows(server):
        assert not door._verb or door._verb in VERBS, f"{method} {template}: {door._verb}"
        assert not door._verb or door.action == action_of(door._verb), f"{method} {template}"
        assert door.action not in CHANGES or door._verb, f"{method} {template} changes something and names no verb"


def test_nothing_but_health_and_tokens_answers_without_a_key(server: LocalServer) -> None:
    with server.client() as client:
        answered = {path for method, path, _ in rows(server) if status(client, method, path) != 401}

    assert answered == OPEN


@pytest.mark.parametrize("action", ACTIONS)
def test_key_for_one_action_opens_that_actions_doors_alone(
    server: LocalServer, made_keys: dict[str, str], action: str
) -> None:
    with server.client(made_keys[action]) as client:
        for method, path, door in rows(server):
            refused = status(client, method, path) == 403
            assert refused == (door.action not in (None, action)), f"{method} {path}"


def test_key_for_a_verb_opens_that_verbs_doors_alone(server: LocalServer, made_keys: dict[str, str]) -> None:
    with server.client(made_keys["loose"]) as client:
        for method, path, door in rows(server):
            opens = door.action is None or door._verb.startswith("aiplatform.endpoints.")
            assert (status(client, method, path) != 403) == opens, f"{method} {path}"


def test_key_for_another_endpoint_changes_nothing_here_nor_in_the_project(
    server: LocalServer, made_keys: dict[str, str]
) -> None:
    with server.client(made_keys["elsewhere"]) as client:
        for method, path, door in rows(server):
            if door.action in CHANGES:
                assert status(client, method, path) == 403, f"{method} {path}"


def test_key_for_another_endpoint_cannot_find_out_by_a_batch_job_what_there_is(
    server: LocalServer, made_keys: dict[str, str]
) -> None:
    here = "/v1/projects/local/locations/europe-west4"
    with server.client(made_keys["deploy"]) as client:
        made = client.post(f"{here}/endpoints", params={"endpointId": "hidden"}, json={"displayName": "hidden"})

    answers = set()
    with server.client(made_keys["elsewhere"]) as client:
        for id_ in ("hidden", "no-such-thing"):
            answer = client.post(f"{here}/batchPredictionJobs", json={"endpoint": f"{here[4:]}/endpoints/{id_}"})
            answers.add((answer.status_code, answer.text))

    assert made.status_code == 200
    assert [status for status, _ in answers] == [403]


@pytest.mark.parametrize(
    ("key", "asked", "status"),
    [
        ("elsewhere", {"endpoint": "endpoints/elsewhere"}, 404),
        ("elsewhere", {"model": "models/elsewhere"}, 403),
        ("elsewhere", {"model": "models/elsewhere@1", "endpoint": "endpoints/elsewhere"}, 403),
        ("a model's", {"model": "models/elsewhere@1"}, 404),
        ("a model's", {"model": "models/other"}, 403),
        ("a model's", {"endpoint": "endpoints/elsewhere"}, 403),
        ("infer", {"model": "models/elsewhere"}, 404),
    ],
)
def test_key_for_an_endpoint_runs_no_batch_job_on_a_model_of_the_same_id(
    server: LocalServer, made_keys: dict[str, str], key: str, asked: dict[str, str], status: int
) -> None:
    here = "projects/local/locations/europe-west4"
    gcs = {"uris": ["gs://bucket/in.jsonl"]}
    body = {
        "displayName": "job",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": gcs},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "gs://bucket/out"}},
        **{kind: f"{here}/{name}" for kind, name in asked.items()},
    }

    with server.client(made_keys[key]) as client:
        answer = client.post(f"/v1beta1/{here}/batchPredictionJobs", json=body)

    assert answer.status_code == status, answer.text
