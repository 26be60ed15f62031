"""What a verification makes of what it is told: requests, kept fleets, values that may be secrets, its words."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from support.deploy_plans import MODEL, lock, spec

from medport.errors import ConnectionFailed, Forbidden, NotFound, VerificationError
from medport_deploy import names, provenance
from medport_deploy.spec.reading import Spec
from medport_deploy.verify import checking as verify
from medport_deploy.verify import show as verify_show
from medport_deploy.verify.checking import Report
from medport_deploy.verify.result import Check

Json = dict[str, Any]
NOW = datetime(2026, 11, 27, 8, tzinfo=UTC)


@dataclass
class Tried:
    kind: str
    status: str
    detail: str
    latency_ms: float | None = None


class Plane:
    """Fixed answers: a deployment on Vertex AI as it was approved, and what a test changes in it."""

    def __init__(
        self, spec: Spec, *, up: int | None = 1, fleets: Sequence[Json] = (), error: Exception | None = None
    ):
        self.lock = lock(spec)
        self.id = names.deployed_model_id(self.lock.lock_id, spec.name, MODEL)
        self.error = error
        model = spec.models[MODEL]
        machine = {"machineType": model.machine.type, "acceleratorType": model.machine.accelerator}
        fleet: Json = {
            "id": self.id,
            "model": f"projects/1/locations/l/models/{spec.model_id(MODEL)}",
            "modelVersionId": "1",
            "displayName": provenance.deployed_name(self.lock, MODEL),
            "dedicatedResources": {
                "machineSpec": {**machine, "acceleratorCount": model.machine.count},
                "minReplicaCount": model.replicas.min,
                "maxReplicaCount": model.replicas.max,
            },
            **(
                {}
                if up is None
                else {"status": {"lastUpdateTime": "now", **({"availableReplicaCount": up} if up else {})}}
            ),
        }
        self.endpoint: Json = {
            "name": f"projects/1/locations/l/endpoints/{spec.endpoint_id(MODEL)}",
            "displayName": spec.display_name(MODEL),
            "labels": {names.DEPLOYMENT_LABEL: spec.name},
            "dedicatedEndpointEnabled": True,
            "trafficSplit": {self.id: 100},
            "deployedModels": [fleet, *fleets],
        }
        body = provenance.model_body(spec, self.lock, MODEL)
        self.version: Json = {
            **body,
            "labels": {**body["labels"], names.DEPLOYMENT_LABEL: spec.name},
            "versionId": "1",
            "versionAliases": [names.version_alias(self.lock.lock_id), names.good_alias(self.lock.lock_id)],
        }

    def get_endpoint(self, endpoint: str, /) -> Json:
        if self.error:
            raise self.error
        return self.endpoint

    def list_endpoints(self, labels: Mapping[str, str], /) -> list[Json]:
        return [self.endpoint]

    def get_model(self, model: str, version: str, /) -> Json:
        return self.version


def checked(plane: Plane, spec: Spec, **more: Any) -> Report:
    return verify.check(spec, plane.lock, plane, spec_bytes=b"the file", now=NOW, **more)


def found(report: Report) -> dict[str, Check]:
    return {each.check: each for each in report.findings}


def test_results_of_requests_are_checks_of_their_own_and_a_failed_kind_is_a_finding() -> None:
    wanted = spec()
    plane = Plane(wanted)
    asked: list[tuple[str, str]] = []

    def smoke(name: str, id_: str) -> list[Tried]:
        asked.append((name, id_))
        return [
            Tried("text", "ok", "12 words", 40.04),
            Tried("stream", "failed", "thinking tokens leaked"),
            Tried("dicom", "skipped", "pydicom is not installed"),
        ]

    report = checked(plane, wanted, smoke=smoke)

    assert asked == [(MODEL, plane.id)]
    assert {each.check: each.found for each in report.findings} == {"smoke.stream": "thinking tokens leaked"}
    assert {each.check: each.found for each in report.passed}["smoke.text"] == {
        "detail": "12 words",
        "latency_ms": 40.0,
    }
    assert {each.check: each.why for each in report.skipped}["smoke.dicom"] == "pydicom is not installed"


def test_trial_that_gives_up_is_a_finding_and_a_server_that_is_not_reached_an_error() -> None:
    wanted = spec()
    plane = Plane(wanted)

    def gives_up(name: str, id_: str) -> list[Tried]:
        raise VerificationError("the fleet answered 0 of 20")

    def unreached(name: str, id_: str) -> list[Tried]:
        raise ConnectionFailed("nobody answers")

    assert found(checked(plane, wanted, smoke=gives_up))["smoke"].found == "the fleet answered 0 of 20"
    with pytest.raises(ConnectionFailed):
        checked(plane, wanted, smoke=unreached)


def test_requests_are_not_sent_to_a_fleet_without_traffic() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.endpoint["trafficSplit"] = {}

    report = checked(plane, wanted, smoke=lambda name, id_: pytest.fail("was asked"))

    assert found(report)["traffic.sum"].found == 0
    assert {each.check: each.why for each in report.skipped}["smoke"] == "the fleet has no traffic"


def test_what_cannot_be_read_is_an_error_and_what_is_not_there_a_finding() -> None:
    wanted = spec()

    with pytest.raises(Forbidden):
        checked(Plane(wanted, error=Forbidden("no")), wanted)
    assert found(checked(Plane(wanted, error=NotFound("none")), wanted))["endpoint"].found is None


def test_replica_that_is_missing_on_vertex_is_found_also_when_some_are_up() -> None:
    wanted = spec(model={"replicas": {"min": 2, "max": 4}})

    report = checked(Plane(wanted, up=1), wanted)

    assert (found(report)["fleet.available"].expected, found(report)["fleet.available"].found) == (
        {"at least": 2},
        1,
    )
    assert checked(Plane(wanted, up=2), wanted).findings == ()
    assert found(checked(Plane(wanted, up=0), wanted))["fleet.available"].found == 0


def test_number_of_replicas_that_the_target_does_not_tell_is_a_note() -> None:
    wanted = spec()

    report = checked(Plane(wanted, up=None), wanted)

    assert report.exit_code == 0
    assert [each.check for each in report.notes] == ["fleet.available"]


def test_old_fleet_is_a_note_with_the_time_until_which_it_is_kept() -> None:
    wanted = spec()
    old = {
        "id": "77",
        "displayName": provenance.deployed_name(lock(wanted, said="old"), MODEL),
        "model": "models/m",
    }

    kept = checked(Plane(wanted, fleets=[old]), wanted, retained={"77": "2026-11-27T09:00:00Z"})
    overdue = checked(Plane(wanted, fleets=[old]), wanted)

    assert (kept.exit_code, overdue.exit_code) == (0, 0)
    assert "kept until 2026-11-27T09:00:00Z" in next(
        each.why for each in kept.notes if each.check == "fleet.other"
    )
    assert "of another lock" in next(each.why for each in overdue.notes if each.check == "fleet.other")


def test_fleet_of_the_lock_is_looked_at_also_where_another_has_all_the_traffic() -> None:
    wanted = spec()
    old = {
        "id": "77",
        "displayName": provenance.deployed_name(lock(wanted, said="old"), MODEL),
        "model": "models/m",
    }
    plane = Plane(wanted, fleets=[old])
    plane.endpoint["trafficSplit"] = {"77": 100}

    report = checked(plane, wanted, smoke=lambda name, id_: pytest.fail("was asked"))

    assert set(found(report)) == {"traffic.split", "traffic.foreign"}
    assert (found(report)["traffic.split"].expected, found(report)["traffic.split"].found) == (
        {plane.id: 100},
        {"77": 100},
    )
    assert list(found(report)["traffic.foreign"].found) == ["77"]


def test_program_other_than_the_images_own_is_found() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.version["containerSpec"]["command"] = ["/bin/sh"]

    assert found(checked(plane, wanted))["version.command"].found == ["/bin/sh"]


def test_weights_from_elsewhere_and_another_route_are_found() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.version["artifactUri"] = "gs://elsewhere/weights"
    plane.version["containerSpec"]["predictRoute"] = "/other"

    assert set(found(checked(plane, wanted))) == {"version.artifact", "version.container"}


def test_container_that_the_server_does_not_show_is_said_to_be_unchecked() -> None:
    wanted = spec()
    plane = Plane(wanted)
    del plane.version["containerSpec"]

    report = checked(plane, wanted)

    assert report.exit_code == 0
    assert {"version.image", "version.args", "version.env"} <= {each.check for each in report.skipped}


def test_pin_in_the_environment_is_shown_and_any_other_value_is_not() -> None:
    wanted = spec(model={"env": {"TOKENS": "ours-and-private"}})
    plane = Plane(wanted)
    env = {each["name"]: each for each in plane.version["containerSpec"]["env"]}
    env["TOKENS"]["value"] = "theirs-and-private"
    env["MEDPORT_REVISION"]["value"] = "f" * 40

    finding = found(checked(plane, wanted))["version.env"]

    assert finding.expected == {"MEDPORT_REVISION": "29" * 20, "TOKENS": "(set)"}
    assert finding.found == {"MEDPORT_REVISION": "f" * 40, "TOKENS": "(another value)"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("startupProbe", {"exec": {"command": ["sh", "-c", "true"]}}),
        ("livenessProbe", {"exec": {"command": ["sh", "-c", "true"]}}),
        ("grpcPorts", [{"containerPort": 9}]),
        ("invokeRoutePrefix", "/"),
        ("deploymentTimeout", "60s"),
    ],
)
def test_setting_of_the_container_that_was_not_asked_for_is_found(key: str, value: object) -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.version["containerSpec"][key] = value

    assert set(found(checked(plane, wanted))) == {"version.container"}


def test_explanations_that_nobody_asked_for_are_found() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.version["explanationSpec"] = {"parameters": {"sampledShapleyAttribution": {"pathCount": 10}}}

    assert set(found(checked(plane, wanted))) == {"version.explanation"}


def test_model_of_another_project_under_the_same_name_is_found() -> None:
    wanted = spec()
    plane = Plane(wanted)
    name = plane.endpoint["deployedModels"][0]["model"].replace("projects/1/", "projects/999/")
    plane.endpoint["deployedModels"][0]["model"] = name

    assert found(checked(plane, wanted))["version.lock"].found["model"] == name


def test_fleet_that_may_go_to_no_machine_is_found() -> None:
    wanted = spec()
    plane = Plane(wanted)
    del plane.endpoint["deployedModels"][0]["dedicatedResources"]["minReplicaCount"]

    assert found(checked(plane, wanted))["fleet.replicas"].found["min"] == 0


def test_machines_that_may_be_taken_away_are_found() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.endpoint["deployedModels"][0]["dedicatedResources"]["spot"] = True

    assert found(checked(plane, wanted))["fleet.unasked"].found == {"spot": True}


def test_requests_that_are_written_down_are_found_and_of_terraforms_endpoint_a_note() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.endpoint["predictRequestResponseLoggingConfig"] = {"enabled": True}
    by_terraform = spec(terraform={"root": "root"}, model={"endpoint": {"id": "1234567890"}})
    other = Plane(by_terraform)
    other.endpoint["predictRequestResponseLoggingConfig"] = {"enabled": True}

    assert set(found(checked(plane, wanted))) == {"endpoint.logs_requests"}
    report = checked(other, by_terraform)
    assert "endpoint.logs_requests" not in found(report)
    assert [each.found for each in report.notes if each.check == "endpoint.logs_requests"] == [True]


def test_values_of_arguments_are_not_shown_but_for_the_pin() -> None:
    wanted = spec(model={"args": ["--note=ours-and-private", "--fast"]})
    plane = Plane(wanted)
    passed = {each.check: each.found for each in checked(plane, wanted).passed}
    plane.version["containerSpec"]["args"] = ["--note=ours-and-private", "--note=theirs", "theirs-too", "--slow"]

    finding = found(checked(plane, wanted))["version.args"]

    pin = f"--revision={'29' * 20}"
    assert passed["version.args"] == ["--note=(set)", "--fast", pin]
    assert finding.expected == ["--note=(set)", "--fast", pin]
    assert finding.found == ["--note=(set)", "--note=(another value)", "(another value)", "--slow"]


def test_report_is_plain_json_and_says_what_it_is_of() -> None:
    wanted = spec()
    said = json.loads(json.dumps(checked(Plane(wanted), wanted).as_dict()))

    assert {key: said[key] for key in ("form", "version", "made_at", "deployment", "clean", "exit_code")} == {
        "form": "medport-verify",
        "version": 1,
        "made_at": "2026-11-27T08:00:00.000000Z",
        "deployment": "chest",
        "clean": True,
        "exit_code": 0,
    }
    assert said["lock_id"] == lock(wanted).lock_id
    assert said["spec_sha256"] == hashlib.sha256(b"the file").hexdigest()


def test_lines_name_what_was_approved_what_was_found_and_what_to_do() -> None:
    wanted = spec()
    plane = Plane(wanted)
    plane.version["containerSpec"]["args"] = ["--x\x1b[2J"]

    text = "\n".join(line for line, _ in verify_show.lines(checked(plane, wanted)))

    assert "! reader version.args" in text
    assert f"approved  --revision={'29' * 20}" in text
    assert "\x1b" not in text
    assert "→ upload and deploy the approved one again" in text
    assert text.endswith("1 thing is not as approved (23 checks, 2 not made)")
