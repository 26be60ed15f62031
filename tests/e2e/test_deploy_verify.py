"""Verification of a real control plane: whatever somebody changes by hand is found, and named."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from support import deploying
from support.plane_server import KEY, PlaneServer, plane_server
from support.planned import deploy, lock_of, spec_bytes

from medport.errors import AuthError
from medport.lock import Lock
from medport_deploy import names, provenance
from medport_deploy.control.plane import ControlPlane
from medport_deploy.plan import reality
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_deploy.trial.trial import LiveTrial
from medport_deploy.verify import checking as verify
from medport_deploy.verify import show as verify_show
from medport_deploy.verify import version as verify_version
from medport_deploy.verify.checking import Report
from medport_deploy.verify.result import Check

Json = dict[str, Any]
MACHINE = {"machineSpec": {"machineType": "n1-standard-4"}, "minReplicaCount": 1, "maxReplicaCount": 1}


class Stood:
    """One deployment that was verified."""

    def __init__(self, server: PlaneServer, control: ControlPlane, name: str, root: Path, **changes: Any) -> None:
        self.server, self.control = server, control
        self.data = spec_bytes(server.url, name, **changes)
        self.spec: Spec = specs.parse(self.data)
        self.lock: Lock = lock_of(self.spec)
        self.id = deploy(control, self.data, root)
        self.endpoint, self.model = self.spec.endpoint_id("reader"), self.spec.model_id("reader")
        control.merge_aliases(self.model, "1", [names.good_alias(self.lock.lock_id)])

    def verify(self, data: bytes | None = None, **more: Any) -> Report:
        spec = specs.parse(data or self.data)
        return verify.check(spec, self.lock, self.control, spec_bytes=data or self.data, **more)

    def patch(self, path: str, field: str, value: Any) -> None:
        self.server.ok("PATCH", f"/{path}?updateMask={field}", {field: value})

    @contextmanager
    def changed(self, path: str, field: str, value: Any) -> Iterator[None]:
        """With a field of a resource as somebody set it."""
        before = self.server.ok("GET", f"/{path}").get(field)
        self.patch(path, field, value)
        try:
            yield
        finally:
            self.patch(path, field, before)

    def by_hand(self, version: str, display_name: str, share: int) -> str:
        """Somebody deploys a version and gives it traffic."""
        split = {"0": share, self.id: 100 - share} if share < 100 else {"0": 100}
        return self.server.deployed(
            self.endpoint, version, split=split, displayName=display_name, dedicatedResources=MACHINE
        )

    def undeploy(self, id_: str, split: Mapping[str, int]) -> None:
        body = {"deployedModelId": id_, "trafficSplit": dict(split)}
        self.server.succeeded(self.server.ok("POST", f"/endpoints/{self.endpoint}:undeployModel", body))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane"), "--allow-faults") as server:
        yield server


@pytest.fixture(scope="module")
def control(server: PlaneServer) -> Iterator[ControlPlane]:
    with deploying.plane(server.url, server.line["ca_file"], KEY) as control:
        yield control


@pytest.fixture(scope="module")
def stood(server: PlaneServer, control: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> Stood:
    """A deployment for all tests that leave it as it was."""
    return Stood(server, control, "stands", tmp_path_factory.mktemp("root"), model={"args": ["--limit=2"]})


@pytest.fixture(autouse=True)
def clean_again(request: pytest.FixtureRequest) -> Iterator[None]:
    """What is shared is as it was approved after each test."""
    yield
    if "stood" in request.fixturenames:
        stood: Stood = request.getfixturevalue("stood")
        assert stood.verify().exit_code == 0


def found(report: Report) -> dict[str, Check]:
    return {each.check: each for each in report.findings}


def test_deployment_as_it_was_approved_has_no_finding_and_every_check_says_what_it_saw(stood: Stood) -> None:
    report = stood.verify()

    assert (report.findings, report.exit_code) == ((), 0)
    passed = {each.check: each.found for each in report.passed}
    assert passed["version.image"] == deploying.IMAGE
    assert passed["version.args"] == ["--limit=(set)", f"--revision={stood.lock.models['reader'].revision}"]
    assert passed["traffic.split"] == {stood.id: 100}
    assert passed["fleet.available"] == 1
    assert {f"version.{each}" for each in verify_version.CHECKS} <= set(passed)
    assert {each.check for each in report.skipped} == {"smoke", "terraform"}


def test_label_of_the_version_that_was_written_over_is_found(stood: Stood) -> None:
    path = f"models/{stood.model}@1"
    labels = stood.server.ok("GET", f"/{path}")["labels"]

    with stood.changed(path, "labels", {**labels, "medport-rev": "0" * 40, "team": "chest"}):
        report = stood.verify()

    assert set(found(report)) == {"version.labels"}
    assert found(report)["version.labels"].expected == {"medport-rev": labels["medport-rev"]}
    assert found(report)["version.labels"].found == {"medport-rev": "0" * 40}
    assert report.exit_code == 2


def test_description_of_the_version_that_was_written_over_is_found(stood: Stood) -> None:
    with stood.changed(f"models/{stood.model}@1", "versionDescription", "a better one"):
        report = stood.verify()

    assert {each.check: each.found for each in report.findings} == {"version.description": "a better one"}


def test_label_of_the_endpoint_that_was_taken_away_is_found(stood: Stood) -> None:
    with stood.changed(f"endpoints/{stood.endpoint}", "labels", {"team": "chest"}):
        report = stood.verify()

    assert found(report)["endpoint.labels"].expected == {names.DEPLOYMENT_LABEL: "stands"}
    assert set(found(report)) == {"endpoint.labels"}


def test_time_limit_of_the_endpoint_that_was_changed_is_found(stood: Stood) -> None:
    stood.control.wait(stood.control.set_inference_timeout(stood.endpoint, 30))

    report = stood.verify()

    stood.control.wait(stood.control.set_inference_timeout(stood.endpoint, 600))
    assert (found(report)["endpoint.inference_timeout_s"].expected, set(found(report))) == (
        600.0,
        {"endpoint.inference_timeout_s"},
    )


def test_alias_of_its_verification_that_is_gone_is_found(stood: Stood) -> None:
    good = names.good_alias(stood.lock.lock_id)
    stood.control.merge_aliases(stood.model, "1", [f"-{good}"])

    report = stood.verify()

    stood.control.merge_aliases(stood.model, "1", [good])
    assert set(found(report)) == {"version.good"}


def test_replicas_and_machine_that_the_specification_has_otherwise_are_found(stood: Stood) -> None:
    more = spec_bytes(
        stood.server.url,
        "stands",
        model={"args": ["--limit=2"], "replicas": {"min": 1, "max": 3}, "machine": {"type": "n1-standard-8"}},
    )

    report = stood.verify(more)

    assert (found(report)["fleet.replicas"].expected, found(report)["fleet.replicas"].found) == (
        {"max": 3},
        {"max": 1},
    )
    assert found(report)["fleet.machine"].found == {"machine_type": "n1-standard-4"}
    assert set(found(report)) == {"fleet.replicas", "fleet.machine"}


def test_fleet_without_a_replica_up_is_found(stood: Stood) -> None:
    class Down:
        """The real answers, with an engine that is down: that number is left out then."""

        def get_endpoint(self, endpoint: str, /) -> Json:
            said = stood.control.get_endpoint(endpoint)
            del said["deployedModels"][0]["status"]["availableReplicaCount"]
            return said

        def list_endpoints(self, labels: Mapping[str, str], /) -> list[Json]:
            return stood.control.list_endpoints(labels)

        def get_model(self, model: str, version: str, /) -> Json:
            return stood.control.get_model(model, version)

    report = verify.check(stood.spec, stood.lock, Down(), spec_bytes=stood.data)

    assert {each.check: each.found for each in report.findings} == {"fleet.available": 0}


def test_fleet_of_somebody_else_with_traffic_is_found_and_without_is_a_note(stood: Stood) -> None:
    other = stood.by_hand(f"{stood.server.parent}/models/{stood.model}@1", "by hand", 30)

    with_traffic = stood.verify()
    stood.patch(f"endpoints/{stood.endpoint}", "trafficSplit", {stood.id: 100})
    without = stood.verify()

    stood.undeploy(other, {})
    assert found(with_traffic)["traffic.foreign"].found == {
        other: {"percent": 30, "version": f"{stood.model}@1", "lock_id": None}
    }
    assert found(with_traffic)["traffic.split"].found == {other: 30, stood.id: 70}
    assert set(found(with_traffic)) == {"traffic.foreign", "traffic.split"}
    assert without.exit_code == 0
    assert [(each.check, each.found["id"]) for each in without.notes] == [("fleet.other", other)]


def test_version_that_bears_the_locks_name_and_runs_something_else_is_found(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    stood = Stood(server, control, "args", tmp_path)
    alias, good = names.version_alias(stood.lock.lock_id), names.good_alias(stood.lock.lock_id)
    control.merge_aliases(stood.model, "1", [f"-{alias}", f"-{good}"])
    body = provenance.model_body(stood.spec, stood.lock, "reader")
    body["labels"][names.DEPLOYMENT_LABEL] = "args"
    body["containerSpec"]["args"].append("--trust-remote-code")
    body["containerSpec"]["env"].append({"name": "TOKEN", "value": "hunter2"})
    body["versionAliases"] = [alias, good]
    operation = server.ok(
        "POST", "/models:upload", {"model": body, "parentModel": f"{server.parent}/models/{stood.model}"}
    )
    number = server.succeeded(operation)["modelVersionId"]
    version = f"{server.parent}/models/{stood.model}@{number}"
    new = stood.by_hand(version, provenance.deployed_name(stood.lock, "reader"), 100)

    report = stood.verify()

    assert set(found(report)) == {"version.args", "version.env"}
    assert found(report)["version.args"].found[-1] == "--trust-remote-code"
    assert found(report)["version.env"].found == {"TOKEN": "(another value)"}
    assert "hunter2" not in str(report.as_dict()) + str(verify_show.lines(report, every=True))
    assert {each.check: each.found for each in report.passed}["traffic.split"] == {new: 100}


def test_other_version_that_was_deployed_by_hand_in_its_place_is_found(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    stood = Stood(server, control, "other", tmp_path)
    version = server.upload("another", "medport/medgemma-phantom", parent=stood.model)
    new = stood.by_hand(version, "by hand", 100)
    stood.undeploy(stood.id, {})

    report = stood.verify()

    assert found(report)["fleet.lock"].found is None
    assert found(report)["traffic.split"].found == {new: 100}
    assert found(report)["version.lock"].found["version"] == "2"
    assert {"traffic.foreign", "version.image", "version.args", "version.labels", "version.good"} <= set(
        found(report)
    )


def test_deployed_model_that_is_gone_is_found(server: PlaneServer, control: ControlPlane, tmp_path: Path) -> None:
    stood = Stood(server, control, "undeployed", tmp_path)
    stood.undeploy(stood.id, {})

    report = stood.verify()

    assert found(report)["fleet.lock"].found is None
    assert found(report)["traffic.sum"].found == 0
    assert "smoke" in {each.check for each in report.skipped}


def test_endpoint_that_is_gone_is_found(server: PlaneServer, control: ControlPlane, tmp_path: Path) -> None:
    stood = Stood(server, control, "gone", tmp_path)
    stood.undeploy(stood.id, {})
    server.succeeded(server.ok("DELETE", f"/endpoints/{stood.endpoint}"))

    report = stood.verify()

    assert {each.check: each.expected for each in report.findings} == {"endpoint": stood.endpoint}


def test_endpoint_that_the_specification_has_no_more_and_that_serves_is_found(stood: Stood) -> None:
    moved = spec_bytes(stood.server.url, "stands", model={"args": ["--limit=2"], "endpoint": {"id": "elsewhere"}})

    report = stood.verify(moved)

    assert found(report)["deployment.leftovers"].found == [stood.endpoint]
    assert found(report)["endpoint"].expected == "elsewhere"


def test_requests_of_all_kinds_are_sent_to_what_serves_and_one_that_fails_is_found(
    server: PlaneServer, control: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KEY", KEY)
    target = {
        "kind": "local", "project": deploying.PROJECT, "location": deploying.LOCATION, "url": server.url,
        "ca_file": server.line["ca_file"], "auth": {"api_key_env": "KEY"},
    }  # fmt: skip
    stood = Stood(server, control, "asked", tmp_path, target=target)
    trial = LiveTrial(stood.spec, stood.lock, tmp_path / "kept", control, rate_per_s=1000)

    first = stood.verify(smoke=trial.check)
    second = stood.verify(smoke=trial.check)
    rule = {"match": {"deployedModelId": stood.id}, "http": {"status": 500}}
    server.http.post("/medport/v1/faults", json=rule).raise_for_status()
    failing = stood.verify(smoke=trial.check)
    server.http.delete("/medport/v1/faults").raise_for_status()

    assert (first.findings, second.findings) == ((), ())
    kinds = {each.check for each in second.passed if each.check.startswith("smoke.")}
    assert kinds >= {"smoke.text", "smoke.image", "smoke.stream", "smoke.golden"}
    assert {"smoke.text", "smoke.image", "smoke.stream"} <= set(found(failing))
    assert failing.exit_code == 2


def test_server_that_refuses_is_an_error_and_no_drift(stood: Stood) -> None:
    with (
        deploying.plane(stood.server.url, stood.server.line["ca_file"], "another key", attempts=1) as stranger,
        pytest.raises(AuthError),
    ):
        verify.check(stood.spec, stood.lock, stranger, spec_bytes=stood.data)


def test_verifying_changes_nothing(stood: Stood) -> None:
    before = reality.read(stood.control, stood.spec)

    stood.verify()

    assert reality.read(stood.control, stood.spec) == before
