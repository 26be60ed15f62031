"""What deploying writes beside a model is what the SDK reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.planes import standing

from medport import lock as locks
from medport.errors import VerificationError
from medport.lock import Lock, LockedFile
from medport.wire.vertex import ModelResource, Pins, pins_from_model
from medport_deploy import provenance
from medport_deploy.lock.model_source import locked
from medport_deploy.spec import reading as specs

DIGEST = "d1" * 32
COMMIT = "290d" * 10
SPEC = specs.parse(b"""
version: 1
name: radiology
target: {kind: vertex, project: example-project, location: us-east4}
models:
  chat:
    model: google/medgemma-4b-it
    image: europe-docker.pkg.dev/example/medport/serving:1.0
    machine: {type: g2-standard-24, accelerator: NVIDIA_L4, count: 2}
    args: [--max-num-seqs=8]
    env: {MEDPORT_MAX_WAIT: "30"}
    container: {port: 7080, predict_route: /v1/predict, shared_memory_mb: 16384}
labels: {team: radiology}
""")


def locked_by(revision: str | None = COMMIT) -> Lock:
    files = {"model.safetensors": LockedFile(sha256="5" * 64, size_bytes=9)}
    model = locked("google/medgemma-4b-it", revision, "medgemma", files)
    image = {"uri": "europe-docker.pkg.dev/example/medport/serving", "digest": f"sha256:{DIGEST}"}
    return locks.checked(
        {"version": 1, "models": {"chat": model.model_dump(exclude_unset=True)}, "images": {"chat": image}}
    )


LOCK = locked_by()
PINS = Pins(
    model_id="google/medgemma-4b-it",
    revision=COMMIT,
    image_digest=DIGEST,
    snapshot_sha256=LOCK.models["chat"].snapshot_sha256,
    lock_id=LOCK.lock_id,
)


def body(**changes: Any) -> ModelResource:
    said = provenance.model_body(SPEC, LOCK, "chat") | changes
    return ModelResource.model_validate({"name": "projects/1/locations/l/models/m", **said})


def test_the_sdk_reads_every_pin_from_the_uploaded_model() -> None:
    assert pins_from_model(body()) == PINS


def test_the_sdk_reads_all_but_the_lock_from_the_container_where_labels_are_lost() -> None:
    found = pins_from_model(body(labels={}))

    assert (found.revision, found.image_digest, found.snapshot_sha256) == (COMMIT, DIGEST, PINS.snapshot_sha256)
    assert found.lock_id is None


def test_every_pin_is_read_from_the_description_where_the_container_is_not_shown() -> None:
    assert provenance.pins_from_description(provenance.description(LOCK, "chat")) == PINS
    assert provenance.pins_from_description("") == provenance.pins_from_description("my model") == Pins()


def test_the_lock_is_read_from_the_display_name_alone() -> None:
    name = provenance.deployed_name(LOCK, "chat")

    assert name.startswith("chat mp1.")
    assert provenance.lock_id_of_name(name) == LOCK.lock_id
    assert len(provenance.deployed_name(LOCK, "a" * 200)) == 128


@pytest.mark.parametrize("name", ["", "chat", "chat mp1.", f"chat mp1.{'a' * 51}", f"chat xmp1.{'a' * 52}"])
def test_a_display_name_of_somebody_else_holds_no_lock(name: str) -> None:
    assert provenance.lock_id_of_name(name) is None


def test_the_container_gets_the_pins_beside_what_the_specification_says() -> None:
    container = provenance.model_body(SPEC, LOCK, "chat")["containerSpec"]
    env = {each["name"]: each["value"] for each in container["env"]}

    assert container["imageUri"] == f"europe-docker.pkg.dev/example/medport/serving@sha256:{DIGEST}"
    assert container["args"] == ["--max-num-seqs=8", f"--revision={COMMIT}"]
    assert env == {
        "MEDPORT_MAX_WAIT": "30",
        "MODEL_ID": "google/medgemma-4b-it",
        "MEDPORT_REVISION": COMMIT,
        "MEDPORT_SNAPSHOT_SHA256": PINS.snapshot_sha256,
    }
    assert container["ports"] == [{"containerPort": 7080}]
    assert (container["predictRoute"], container["sharedMemorySizeMb"]) == ("/v1/predict", "16384")


def test_labels_are_such_as_vertex_takes() -> None:
    labels = provenance.labels(SPEC, LOCK, "chat")

    assert set(labels) == {"team", "medport-rev", "medport-image", "medport-snap", "medport-lock"}
    assert all(len(value) <= 63 and value == value.lower() for value in labels.values())


def test_a_model_without_a_commit_gets_no_revision() -> None:
    lock = locked_by(None)

    assert provenance.arguments(SPEC, lock, "chat") == ["--max-num-seqs=8"]
    assert "medport-rev" not in provenance.labels(SPEC, lock, "chat")
    assert provenance.pins_from_description(provenance.description(lock, "chat")).revision is None


def test_the_body_is_one_that_googles_client_takes() -> None:
    types = pytest.importorskip("google.cloud.aiplatform_v1.types", exc_type=ImportError)
    said = provenance.model_body(SPEC, LOCK, "chat")

    read = types.Model.from_json(json.dumps(said), ignore_unknown_fields=False)

    assert read.container_spec.deployment_timeout.total_seconds() == 1800
    assert read.version_description == provenance.description(LOCK, "chat")


def test_the_local_control_plane_takes_the_body_and_shows_every_pin_again(tmp_path: Path) -> None:
    with standing(tmp_path / "state", require_digest=True) as plane:
        body = {"model": provenance.model_body(SPEC, LOCK, "chat"), "modelId": SPEC.model_id("chat")}
        done = plane.call.done(plane.call("POST", "models:upload", body))["response"]
        shown = plane.call("GET", f"models/{SPEC.model_id('chat')}@{done['modelVersionId']}")

    assert pins_from_model(ModelResource.model_validate(shown)) == PINS
    assert shown["versionDescription"] == provenance.description(LOCK, "chat")


def test_what_is_not_locked_cannot_be_uploaded() -> None:
    with pytest.raises(VerificationError, match=r"models\.other: is not in the lock"):
        provenance.pins_of(LOCK, "other")
    with pytest.raises(VerificationError, match="has no digest in the lock"):
        provenance.image_uri(Lock(), "chat")
