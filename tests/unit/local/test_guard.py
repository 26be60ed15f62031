"""Every route of the real server against every kind of key; callers' certificates; no word of a patient."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import trustme
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from support.local_server import LocalServer, client_context, local_server
from support.polling import wait_until
from support.running import LoopThread

from medport.errors import ConfigError
from medport_local.app import Settings, Tls
from medport_local.engine.engine import EngineLimits
from medport_local.serving import chain, keys, verbs
from medport_local.serving.exchange import Door
from medport_local.serving.logs import JsonFormatter

ROOT_KEY = "a-root-key-of-some-length"
PARAMETERS = {
    "project": "local", "location": "europe-west4", "endpoint": "medgemma", "model": "medgemma",
    "model_version": "1", "deployed_model": "1", "path": "v1/chat/completions",
    "job": "1",
}  # fmt: skip
CHAT = {"model": "", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 2}
BODY = {**CHAT, "instances": [CHAT], "input": "hello"}
OPEN = {"/health", "/health/live", "/health/ready", "/ping", "/token"}
"""Where tokens are given, the assertion is the credential."""
ABOUT_NO_MODEL = {"/metrics", "/openapi.json"}


@pytest.fixture(scope="module")
def made_keys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    file = tmp_path_factory.mktemp("keys") / "keys.json"
    every = list(verbs.ACTIONS)
    return {
        "file": str(file),
        "all": keys.add(file, "all", actions=every),
        "medgemma": keys.add(file, "medgemma", actions=every, models=["medgemma"]),
        "medgemma-dicom": keys.add(file, "medgemma-dicom", models=["medgemma-dicom"]),
        "stranger": keys.add(file, "stranger", actions=every, models=["no-such-endpoint"]),
        "expired": keys.add(file, "expired", actions=every, expires=date(2020, 1, 1)),
        **{f"only-{action}": keys.add(file, f"only-{action}", actions=[action]) for action in verbs.ACTIONS},
    }


@pytest.fixture(scope="module")
def spans() -> InMemorySpanExporter:
    return InMemorySpanExporter()


@pytest.fixture(scope="module")
def audit_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log") / "audit"


@pytest.fixture(scope="module")
def server(
    gemma_folder: Path,
    siglip_folder: Path,
    made_keys: dict[str, str],
    loop_thread: LoopThread,
    spans: InMemorySpanExporter,
    audit_dir: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[LocalServer]:
    settings = Settings(
        snapshots={"medgemma": gemma_folder, "medsiglip": siglip_folder},
        api_key=ROOT_KEY,
        keys_file=Path(made_keys["file"]),
        audit_dir=audit_dir,
        batch_dir=tmp_path_factory.mktemp("jobs"),
        engine_limits=EngineLimits(max_running=2, max_queue=8),
        drain_s=1.0,
    )
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    with local_server(loop_thread, settings, tracer_provider=provider) as running:
        yield running


def table(server: LocalServer) -> list[tuple[str, str, Door]]:
    """Method, path and door of each route."""
    rows = []
    for route in server.app.routes:
        path = route.path.replace("{path:path}", "{path}").format(**PARAMETERS)
        rows += [(method, path, route.endpoint) for method in route.methods - {"HEAD"}]
    return rows


def ask(server: LocalServer, method: str, path: str, key: str | None, **headers: str) -> httpx.Response:
    with server.client(key) as client:
        return client.request(method, path, json=BODY if method == "POST" else None, headers=headers)


def test_all_routes_are_doors_and_only_health_and_tokens_are_open(server: LocalServer) -> None:
    rows = table(server)

    assert len(rows) > 20
    assert all(isinstance(door, Door) for _, _, door in rows)
    assert {path for _, path, door in rows if door.action is None} == OPEN
    assert isinstance(server.app.router.default, Door)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": f"Basic {ROOT_KEY}"},
        {"Authorization": ROOT_KEY},
        {"Authorization": f"Bearer {ROOT_KEY[:-1]}"},
        {"Authorization": f"Bearer {ROOT_KEY}x"},
        {"Authorization": "Bearer ' OR 1=1 --"},
        {"x-goog-api-key": ROOT_KEY.upper()},
        {"api-key": ROOT_KEY},
        {"Host": "x/health?x="},
        {"Host": "x/health", "X-Original-URL": "/health", "X-Forwarded-For": "127.0.0.1"},
    ],
)
def test_attack_1_no_route_but_those_answers_without_a_key(server: LocalServer, headers: dict[str, str]) -> None:
    answered = set()
    for method, path, _ in table(server):
        for way in (path, f"{path}?key={ROOT_KEY}"):
            if ask(server, method, way, None, **headers).status_code != 401:
                answered.add(path)

    assert answered == OPEN


def test_expired_key_opens_nothing(server: LocalServer, made_keys: dict[str, str]) -> None:
    answered = {p for m, p, _ in table(server) if ask(server, m, p, made_keys["expired"]).status_code != 401}

    assert answered == OPEN


@pytest.mark.parametrize("action", verbs.ACTIONS)
def test_key_for_one_action_opens_the_routes_of_that_action_alone(
    server: LocalServer, made_keys: dict[str, str], action: str
) -> None:
    for method, path, door in table(server):
        status = ask(server, method, path, made_keys[f"only-{action}"]).status_code
        if door.action in (None, action):
            assert status not in (401, 403), path
        else:
            assert status == 403, path


def test_key_with_all_actions_and_the_root_key_open_everything(
    server: LocalServer, made_keys: dict[str, str]
) -> None:
    for method, path, _ in table(server):
        for key in (made_keys["all"], ROOT_KEY):
            answer = ask(server, method, path, key)
            assert answer.status_code not in (401, 403), path
            assert "kept back" not in answer.text, path


def test_key_for_another_model_is_refused_on_every_route_that_is_about_a_model(
    server: LocalServer, made_keys: dict[str, str]
) -> None:
    for method, path, _ in table(server):
        if path in OPEN | ABOUT_NO_MODEL or "batchPredictionJobs" in path:  # jobs: see the next test
            continue
        answer = ask(server, method, path, made_keys["stranger"])
        if answer.status_code == 200:  # a list, out of which all is left
            assert method == "GET", path
            assert not any(values for values in answer.json().values() if isinstance(values, list)), path
        else:
            assert answer.status_code == 403, path


def test_job_is_for_the_keys_of_its_model(server: LocalServer, made_keys: dict[str, str]) -> None:
    root = "/v1/projects/local/locations/europe-west4"
    job = {
        "displayName": "a job",
        "model": f"{root[4:]}/models/medgemma@1",
        "inputConfig": {"instancesFormat": "jsonl", "gcsSource": {"uris": ["rows.jsonl"]}},
        "outputConfig": {"predictionsFormat": "jsonl", "gcsDestination": {"outputUriPrefix": "out"}},
    }
    with server.client(ROOT_KEY) as root_client, server.client(made_keys["stranger"]) as stranger:
        made = root_client.post(f"{root}/batchPredictionJobs", json=job).json()

        assert stranger.post(f"{root}/batchPredictionJobs", json=job).status_code == 403
        for method, path in (("GET", made["name"]), ("POST", f"{made['name']}:cancel"), ("DELETE", made["name"])):
            assert stranger.request(method, f"/v1/{path}").status_code == 403
        assert stranger.get(f"{root}/batchPredictionJobs").json() == {"batchPredictionJobs": []}


def test_key_for_one_model_answers_for_that_one(server: LocalServer, made_keys: dict[str, str]) -> None:
    for method, path, _ in table(server):
        answer = ask(server, method, path, made_keys["medgemma"])
        if "embeddings" in path:
            assert answer.status_code == 403, path
        else:
            assert answer.status_code not in (401, 403), path
        other = path.replace("endpoints/medgemma", "endpoints/medgemma_dicom")
        if other != path:
            assert ask(server, method, other, made_keys["medgemma"]).status_code == 403, other


def test_key_for_one_endpoint_learns_of_no_other(server: LocalServer, made_keys: dict[str, str]) -> None:
    def asked(model: str | None, key: str) -> tuple[int, str]:
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
        with server.client(key) as client:
            answer = client.post("/v1/chat/completions", json=body | ({"model": model} if model else {}))
        return answer.status_code, answer.text

    narrow = made_keys["medgemma-dicom"]
    there, nowhere = asked("medgemma-shared", narrow), asked("no-such-thing", narrow)

    assert there == nowhere
    assert there[0] == 404
    assert "medgemma-shared" not in there[1]
    assert ask(server, "GET", "/v1/models/medgemma-shared", narrow).status_code == 403
    assert ask(server, "GET", "/v1/models/no-such-thing", narrow).status_code == 403


def test_key_for_one_endpoint_is_answered_by_that_where_no_model_is_named(
    server: LocalServer, made_keys: dict[str, str]
) -> None:
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    answers = []
    with server.client(made_keys["medgemma-dicom"]) as client:
        for named in ({}, {"model": "medgemma-dicom"}):
            answers.append(client.post("/v1/chat/completions", json=body | named))

    assert [answer.status_code for answer in answers] == [200, 200]
    assert len({answer.headers["X-Vertex-AI-Deployed-Model-Id"] for answer in answers}) == 1


def test_refused_request_touches_no_engine(server: LocalServer, made_keys: dict[str, str]) -> None:
    engine = server.app.state.engines["medgemma"]
    before = engine.stats()

    for key in (None, made_keys["expired"], made_keys["stranger"], made_keys["only-read"]):
        ask(server, "POST", "/v1/chat/completions", key)

    assert engine.stats() == before


def test_nothing_of_a_patient_is_in_logs_metrics_traces_or_audit(
    server: LocalServer, audit_dir: Path, spans: InMemorySpanExporter, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    spans.clear()
    text = {**CHAT, "messages": [{"role": "user", "content": "CANARY-prompt"}], "user": "CANARY-user"}
    embed = "/v1/projects/local/locations/europe-west4/endpoints/medsiglip:predict"
    image = base64.b64encode(b"CANARY-pixels").decode()
    with server.client(ROOT_KEY, headers={"X-Patient": "CANARY-header", "traceparent": "CANARY-parent"}) as client:
        answers = [
            client.post("/v1/chat/completions?mrn=CANARY-query", json=text),
            client.post("/v1/chat/completions", json={**text, "stream": True}),
            client.post("/v1/chat/completions", json={**text, "model": "CANARY-model"}),
            client.post("/v1/chat/completions", json={**text, "temperature": "CANARY-value"}),
            client.post("/v1/chat/completions", content=b'{"CANARY-cut'),
            client.post(embed, json={"instances": [{"image": {"input_bytes": image}}, {"text": "CANARY-text"}]}),
            client.get("/v1/projects/CANARY-project/locations/-/endpoints/CANARY-endpoint"),
            client.get("/CANARY-path"),
            client.get("/v1/models", headers={"Authorization": "Bearer CANARY-key"}),
            client.get("/v1/models", headers={"X-Request-Id": "CANARY request id"}),
        ]
        metrics = client.get("/metrics").text
    answer = answers[0].json()["choices"][0]["message"]["content"]

    def lines() -> list[logging.LogRecord]:
        return [record for record in list(caplog.records) if record.name.startswith(("medport", "uvicorn"))]

    wait_until(lambda: sum(record.name == "medport_local.access" for record in lines()) >= 11)
    written = "".join(path.read_text() for path in audit_dir.iterdir() if path.suffix == ".jsonl")
    traced = "".join(span.to_json() for span in spans.get_finished_spans())
    logged = "\n".join(f"{record.getMessage()} {JsonFormatter().format(record)}" for record in lines())
    assert all(len(each) > 100 for each in (written, traced, logged, metrics))
    for sink in (written, traced, logged, metrics):
        assert "CANARY" not in sink
        assert ROOT_KEY not in sink
        assert image not in sink
        assert len(answer) < 4 or answer not in sink
    assert [each.status_code for each in answers[:2]] == [200, 200]


def test_audit_says_who_asked_and_which_snapshot_answered(
    server: LocalServer, made_keys: dict[str, str], audit_dir: Path
) -> None:
    ask(server, "POST", "/v1/chat/completions", made_keys["all"], **{"X-Request-Id": "who"})

    (record,) = chain.find(audit_dir, "who")

    snapshot = server.app.state.deployed["medgemma"].snapshot
    assert record["key"] == "all"
    assert record["route"] == "/v1/chat/completions"
    assert record["snapshot_sha256"] == snapshot.snapshot_sha256
    assert (record["model_id"], record["revision"]) == (snapshot.model_id, snapshot.revision)
    assert record["completion_tokens"] >= 1
    assert record["prompt_tokens"] >= 1
    assert len(record["finish_reasons"]) == 1
    assert abs(datetime.fromisoformat(record["time"]).timestamp() - datetime.now(UTC).timestamp()) < 60
    assert chain.verify(audit_dir).unbroken


def test_embeddings_and_predictions_are_in_the_audit(server: LocalServer, audit_dir: Path) -> None:
    parent = "/v1/projects/local/locations/europe-west4/endpoints"
    with server.client(ROOT_KEY) as client:
        client.post(
            f"{parent}/medsiglip:predict", json={"instances": [{"text": "a"}]}, headers={"X-Request-Id": "e1"}
        )
        client.post(f"{parent}/medgemma:predict", json={"instances": [CHAT]}, headers={"X-Request-Id": "p1"})

    (embedded,), (predicted,) = chain.find(audit_dir, "e1"), chain.find(audit_dir, "p1")
    assert (embedded["endpoint"], embedded["embeddings"], embedded["key"]) == ("medsiglip", 1, "root")
    assert (predicted["endpoint"], predicted["embeddings"]) == ("medgemma", 0)
    assert embedded["snapshot_sha256"] != predicted["snapshot_sha256"]


# Certificates of callers


@pytest.fixture(scope="module")
def authorities(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The server's certificate, and callers' by the right and by a wrong authority."""
    folder = tmp_path_factory.mktemp("mtls")
    callers, strangers, servers = trustme.CA(), trustme.CA(), trustme.CA()
    paths = {}
    for name, leaf in (
        ("server", servers.issue_cert("127.0.0.1")),
        ("right", callers.issue_cert("gateway@example.org")),
        ("wrong", strangers.issue_cert("gateway@example.org")),
    ):
        leaf.private_key_pem.write_to_path(folder / f"{name}.key")
        for i, pem in enumerate(leaf.cert_chain_pems):
            pem.write_to_path(folder / f"{name}.pem", append=i > 0)
        paths[name] = (str(folder / f"{name}.pem"), str(folder / f"{name}.key"))
    callers.cert_pem.write_to_path(folder / "callers.pem")
    servers.cert_pem.write_to_path(folder / "servers.pem")
    return {**paths, "callers": folder / "callers.pem", "servers": str(folder / "servers.pem")}


@pytest.fixture(scope="module")
def mutual(siglip_folder: Path, loop_thread: LoopThread, authorities: dict[str, Any]) -> Iterator[LocalServer]:
    certificate, key = map(Path, authorities["server"])
    settings = Settings(snapshots={"medsiglip": siglip_folder}, drain_s=1.0)
    tls = Tls(certificate, key, client_ca=authorities["callers"])
    with local_server(loop_thread, settings, tls=tls) as running:
        yield running


def test_caller_with_the_right_certificate_is_answered(mutual: LocalServer, authorities: dict[str, Any]) -> None:
    context = client_context(authorities["servers"], authorities["right"])

    with mutual.client(verify=context) as client:
        assert client.get("/health").text == "ok"
        assert client.get("/v1/models").status_code == 200


@pytest.mark.parametrize("shown", [None, "wrong", "server"])
def test_caller_without_the_right_certificate_gets_no_answer_at_all(
    mutual: LocalServer, authorities: dict[str, Any], shown: str | None
) -> None:
    context = client_context(authorities["servers"], authorities[shown] if shown else None)

    # With TLS 1.3 the caller learns it at its first read.
    with mutual.client(verify=context) as client, pytest.raises(httpx.TransportError):
        client.get("/health")


# Settings


def test_missing_file_of_keys_ends_the_start(siglip_folder: Path, tmp_path: Path, loop_thread: LoopThread) -> None:
    settings = Settings(snapshots={"medsiglip": siglip_folder}, keys_file=tmp_path / "none.json")

    with pytest.raises(ConfigError, match="keys"), local_server(loop_thread, settings):
        pass


def test_log_of_another_server_ends_the_start_before_a_model_is_loaded(
    siglip_folder: Path, audit_dir: Path, server: LocalServer, loop_thread: LoopThread
) -> None:
    settings = Settings(snapshots={"medsiglip": siglip_folder / "not-even-there"}, audit_dir=audit_dir)

    with pytest.raises(ConfigError, match="another server"), local_server(loop_thread, settings):
        pass
