"""The control plane's calls are those of the installed google-cloud-aiplatform, and the other way round."""

from __future__ import annotations

import re
from collections.abc import Iterator

import httpx
import pytest
from support.client_routes import Call, names_of, of_a_table, of_the_client, query_keys
from support.local_server import LocalServer, local_server
from support.running import LoopThread

from medport_local.app import Settings
from medport_local.control import deploy_forms, unsupported
from medport_local.settings import ControlPlane

pytest.importorskip("google.cloud.aiplatform")

_P = "projects/*/locations/*"
NOT_THIS_PRODUCT = {
    r"/(customJobs|dataLabelingJobs|hyperparameterTuningJobs|nasJobs|trainingPipelines|tuningJobs|studies)\b":
        "training and tuning: medport tunes on the command line",
    r"/(modelDeploymentMonitoringJobs|modelMonitors|evaluationTasks|onlineEvaluators)\b":
        "monitoring and evaluation by the service",
    r"/(features?|featurestores|featureGroups|featureOnlineStores|entityTypes)\b": "feature stores",
    r"/(indexes|indexEndpoints)\b": "vector search as a service: medport.index searches in the process",
    r"/(datasets|annotationSpecs|dataItems|savedQueries)\b": "data sets",
    r"/(tensorboards|metadataStores|pipelineJobs|schedules|migratableResources)\b": "pipelines and experiments",
    r"/(notebookRuntimes|notebookRuntimeTemplates|notebookExecutionJobs|persistentResources)\b":
        "notebooks and machines to rent",
    r"/(reasoningEngines|ragCorpora|ragEngineConfig|extensions|extensionControllers|exampleStores|agents|apps)\b":
        "agents and retrieval",
    r"/(specialistPools|edgeDevices|edgeDeploymentJobs|solvers)\b": "people and devices",
    r"/(deploymentResourcePools|evaluations)/\*/operations\b":
        "operations of what is refused with 501: there are none",
    r"^/(ui|v1|v1beta1)/projects/\*/locations(/\*)?$": "which regions there are: a server has one",
}  # fmt: skip
"""Parts of the client that have nothing to do with serving a model: pattern of the path → why not."""
OURS_ALONE = {
    r"^/(health|health/ready|health/live|ping|metrics)$": "health and metrics of a server of one's own",
    r"^/v1/(models|models/\*|chat/completions|embeddings)$": "what OpenAI's clients ask a server",
    r"^/medport/": "faults on purpose, which no service offers",
    r"^/(v1|v1beta1)/.*/endpoints/\*/(chat/completions|completions|embeddings|invoke/.*|models)$":
        "paths of the container, which the client sends by hand",
    r"^/(v1|v1beta1)/.*/endpoints/\*/deployedModels/\*/invoke/": "as above, of one deployed model",
    r"/batchPredictionJobs/\*/operations": "deleting a job is an operation; the client polls the location's",
    r"^/(v1/)?(token|openapi\.json|docs)": "tokens and the document of the interface",
    r"^/v1/publishers/|^/v1/projects/\*/(modelGardenEula|locations/\*:recommendSpec)":
        "REST has it in v1 too",
}  # fmt: skip
"""Rows that no route of the client's stands for: pattern of the path → why we have it."""


@pytest.fixture(scope="module")
def server(loop_thread: LoopThread, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalServer]:
    plane = ControlPlane(directory=tmp_path_factory.mktemp("plane") / "state", allow_faults=True)
    with local_server(loop_thread, Settings(control_plane=plane)) as running:
        yield running


@pytest.fixture(scope="module")
def ours(server: LocalServer) -> set[Call]:
    """What the running server answers."""
    return of_a_table((method, route.path) for route in server.app.router.routes for method in route.methods)


@pytest.fixture(scope="module")
def refused() -> set[Call]:
    """What it answers with 501."""
    return of_a_table((row.method, row.path) for row in unsupported.rows())


def matching(patterns: dict[str, str], path: str) -> list[str]:
    return [each for each in patterns if re.search(each, path)]


def test_every_call_of_the_client_is_answered(ours: set[Call]) -> None:
    missing = sorted(
        call for call in of_the_client() if call not in ours and not matching(NOT_THIS_PRODUCT, call.path)
    )

    assert missing == []


def test_every_row_is_a_call_of_the_client_or_has_a_reason(ours: set[Call], refused: set[Call]) -> None:
    theirs = of_the_client()

    alone = {call for call in ours - refused - theirs.keys() if call.method != "HEAD"}

    assert sorted(call for call in alone if not matching(OURS_ALONE, call.path)) == []


def test_nothing_is_both_answered_and_declared_another_product(ours: set[Call]) -> None:
    theirs = of_the_client()

    both = {call for call in ours & theirs.keys() if matching(NOT_THIS_PRODUCT, call.path)}

    assert both == set()


@pytest.mark.parametrize("pattern", NOT_THIS_PRODUCT)
def test_every_reason_not_to_answer_is_about_a_call_of_the_client(pattern: str) -> None:
    assert any(re.search(pattern, call.path) for call in of_the_client())


@pytest.mark.parametrize("pattern", OURS_ALONE)
def test_every_reason_for_a_row_of_ones_own_is_about_a_row(ours: set[Call], pattern: str) -> None:
    theirs = of_the_client()

    assert any(re.search(pattern, call.path) for call in ours - theirs.keys())


def test_what_is_refused_is_refused_over_the_wire(server: LocalServer, refused: set[Call]) -> None:
    asked = [call for call in sorted(refused) if not call.path.startswith("/google")]

    with server.client() as http:
        answers = {call: http.request(call.method, filled(call.path)) for call in asked}

    assert {answer.status_code for answer in answers.values()} == {501}
    assert {answer.json()["error"]["status"] for answer in answers.values()} == {"UNIMPLEMENTED"}


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_every_key_that_the_client_writes_into_a_query_is_taken(
    server: LocalServer, ours: set[Call], refused: set[Call], version: str
) -> None:
    served = {call: keys for call, keys in query_keys(version).items() if call in ours - refused}

    with server.client() as http:
        unknown = [
            f"{call.method} {call.path}?{key}"
            for call, keys in sorted(served.items())
            for key in sorted(keys)
            if "Cannot bind query parameter" in asked(http, call, key).text
        ]

    assert served
    assert unknown == []


def test_key_that_no_call_has_is_refused(server: LocalServer) -> None:
    with server.client() as http:
        answer = asked(http, Call("GET", f"/v1/{_P}/endpoints"), "colour")

    assert answer.status_code == 400
    assert 'Unknown name "colour": Cannot bind query parameter' in answer.json()["error"]["message"]


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_accelerators_have_the_clients_numbers(version: str) -> None:
    assert names_of("AcceleratorType", version) == deploy_forms.ACCELERATORS


def asked(http: httpx.Client, call: Call, key: str) -> httpx.Response:
    json = {} if call.method in ("POST", "PATCH") else None
    return http.request(call.method, filled(call.path), params={key: "1"}, json=json)


def filled(path: str) -> str:
    """A path with this server's project and location, and ids that nothing has."""
    whole = path.replace(_P, "projects/local/locations/europe-west4").replace("projects/*", "projects/local")
    return whole.replace("*", "1")
