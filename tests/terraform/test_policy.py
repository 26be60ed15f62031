"""Our own policies on real plans: each root keeps them, and each of them catches what it is for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.configurations import Cli
from support.plan_policy import Breach, Policy

POLICY = Policy(allowed_locations=frozenset({"europe-west3", "europe-west4"}))
ROOTS = ("roots/cloud", "roots/local", "roots/state-bootstrap", "examples/model-garden-endpoint")
LOCAL_STATE = 'terraform {\n  backend "local" {}\n}\n'
PROVIDER = 'provider "google" {\n  project = "example-project"\n  region = "europe-west4"\n}\n'
BUCKET = """
resource "google_storage_bucket" "it" {
  name                        = "weights"
  location                    = "%(location)s"
  uniform_bucket_level_access = true
  public_access_prevention    = "%(prevention)s"
  deletion_policy             = "%(policy)s"
  labels                      = %(labels)s
}
"""
GOOD = {
    "location": "europe-west4",
    "prevention": "enforced",
    "policy": "PREVENT",
    "labels": '{ team = "imaging" }',
}
GARDEN = """
resource "google_vertex_ai_endpoint_with_model_garden_deployment" "it" {
  location             = "europe-west4"
  publisher_model_name = "publishers/google/models/medgemma@medgemma-4b-it"
  model_config {
    accept_eula = true
    %s
  }
}
"""
GRANT = """
resource "google_storage_bucket_iam_member" "it" {
  bucket = "weights"
  role   = "roles/storage.objectViewer"
  member = "allUsers"
}
"""
SECRET = """
resource "google_secret_manager_secret_version" "it" {
  secret      = "projects/p/secrets/s"
  secret_data = "value"
}
"""
BINDING = """
resource "google_project_iam_binding" "it" {
  project = "example-project"
  role    = "roles/viewer"
  members = ["group:platform@example.org"]
}
"""
IMAGE = 'container_spec {\n image_uri = "europe-docker.pkg.dev/example/medport/serving%s"\n }'


@pytest.mark.parametrize("root", ROOTS)
def test_plan_of_a_root_with_its_example_variables_keeps_every_policy(
    root: str, configurations: Path, provider: dict[str, str]
) -> None:
    cli = Cli(configurations / root, provider)
    # Instead of a bucket.
    (cli.directory / "backend_override.tf").write_text(LOCAL_STATE)
    cli("init")

    plan = cli.plan("-var-file=example.tfvars", *PROTECTED.get(root, ()))

    (cli.directory / "backend_override.tf").unlink()
    assert plan["resource_changes"]
    assert POLICY.breaches(plan) == []


PROTECTED = {"roots/local": ("-var=deletion_protection=true",)}
"""The local root protects nothing unless it is told to."""


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        (BUCKET % {**GOOD, "location": "us-central1"}, "every location is allowed"),
        (BUCKET % {**GOOD, "prevention": "inherited"}, "nothing is public"),
        (BUCKET % {**GOOD, "policy": "DELETE"}, "what bears data cannot be destroyed"),
        (BUCKET % {**GOOD, "labels": "{}"}, "what can have labels has labels"),
        (GARDEN % (IMAGE % ":latest"), "every image has a digest"),
        (GARDEN % (IMAGE % ("@sha256:" + "0" * 63)), "every image has a digest"),
        (GARDEN % 'hugging_face_access_token = "value"', "no secret is stored"),
        (SECRET, "no secret is stored"),
        (GRANT, "nothing is public"),
        (BINDING, "grants are added, never set"),
    ],
)
def test_policy_catches(written: Callable[[str], Cli], text: str, rule: str) -> None:
    plan = written(PROVIDER + text).plan()

    assert [each.rule for each in POLICY.breaches(plan)] == [rule]


@pytest.mark.parametrize("text", [BUCKET % GOOD, GARDEN % (IMAGE % ("@sha256:" + "0" * 64))])
def test_policy_lets_pass(written: Callable[[str], Cli], text: str) -> None:
    plan = written(PROVIDER + text).plan()

    assert POLICY.breaches(plan) == []


def test_replacement_is_caught_unless_it_is_asked_for(written: Callable[[str], Cli]) -> None:
    cli = written(PROVIDER + BUCKET % {**GOOD, "policy": "DELETE"})
    cli("apply", "-auto-approve")
    (cli.directory / "main.tf").write_text(PROVIDER + BUCKET % {**GOOD, "location": "europe-west3"})

    plan = cli.plan()

    address = "google_storage_bucket.it"
    assert POLICY.breaches(plan) == [Breach("nothing is destroyed or replaced unasked", address)]
    assert Policy(POLICY.allowed_locations, may_replace=True).breaches(plan) == []


def test_write_only_secret_is_in_neither_plan_nor_state(written: Callable[[str], Cli]) -> None:
    text = """
variable "value" {
  type      = string
  ephemeral = true
}
resource "google_secret_manager_secret_version" "it" {
  secret                 = "projects/p/secrets/s"
  secret_data_wo         = var.value
  secret_data_wo_version = "1"
}
"""
    cli = written(PROVIDER + text)

    plan = cli.plan("-var=value=not-for-any-file")

    cli("apply", "-auto-approve", "-var=value=not-for-any-file")
    assert POLICY.breaches(plan) == []
    assert "not-for-any-file" not in str(plan) + (cli.directory / "terraform.tfstate").read_text()
