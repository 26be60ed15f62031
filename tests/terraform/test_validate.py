"""What ``terraform validate`` refuses by the real provider's schema, with file and line."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from support.configurations import Cli

Written = Callable[[str], Cli]
ENDPOINT = """
resource "google_vertex_ai_endpoint" "it" {
  name         = "1234567890"
  display_name = "chest"
  location     = "europe-west4"
  %s
}
"""
GARDEN = """
resource "google_vertex_ai_endpoint_with_model_garden_deployment" "it" {
  location = "europe-west4"
  %s
}
"""
ALERT = """
resource "google_monitoring_alert_policy" "it" {
  display_name = "p95"
  combiner     = %s
  %s
}
"""
PROVIDER = """
provider "google" {
  vertex_ai_custom_endpoint = "https://plane:1/v1"
}
"""
CONDITIONS = 'conditions { display_name = "c" }'


def refusals(cli: Cli) -> list[tuple[str, int, str]]:
    """File, line and summary with detail of each error."""
    said = cli("validate", "-json", codes=(1,)).json()
    return [
        (each["range"]["filename"], each["range"]["start"]["line"], f"{each['summary']}: {each.get('detail', '')}")
        for each in said["diagnostics"]
    ]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        (ENDPOINT % "dedicated_endpoint_enable = true", 6, "dedicated_endpoint_enable"),
        (ENDPOINT % "encryption_spec {\n kms_key = 1\n }", 7, "kms_key"),
        (ENDPOINT % "encryption_specs {}", 6, "encryption_specs"),
        (ENDPOINT % "encryption_spec {}", 6, "kms_key_name"),
        (ENDPOINT % 'dedicated_endpoint_enabled = "perhaps"', 6, "bool"),
        (ENDPOINT % 'dedicated_endpoint_dns = "own"', 6, "unconfigurable"),
        (ENDPOINT % 'inference_timeout = "600s"', 6, "inference_timeout"),
        ('resource "google_vertex_ai_endpoint" "it" {\n name = "1"\n display_name = "d"\n}', 1, "location"),
        ('resource "google_vertex_ai_endpoints" "it" {}', 1, "google_vertex_ai_endpoints"),
        (GARDEN % "", 2, "exactly one of"),
        (GARDEN % 'publisher_model_name = "p"\n hugging_face_model_id = "h"', 4, "exactly one of"),
        (ALERT % ('"OR"', ""), 2, "conditions"),
        (ALERT % ('"SOME"', CONDITIONS), 4, "combiner"),
        (PROVIDER + ENDPOINT % "", 3, "vertex_ai_custom_endpoint"),
    ],
)
def test_fault_is_refused_with_its_file_and_line(written: Written, text: str, line: int, said: str) -> None:
    found = refusals(written(text))

    assert {file for file, _, _ in found} == {"main.tf"}
    assert any(where == line and said in told for _, where, told in found), found


def test_dedicated_and_private_exclude_each_other(written: Written) -> None:
    private = "private_service_connect_config {\n enable_private_service_connect = true\n }"

    found = refusals(written(ENDPOINT % f"dedicated_endpoint_enabled = true\n {private}"))

    assert {text.partition(":")[0] for _, _, text in found} == {"Conflicting configuration arguments"}


def test_secret_has_one_way_in(written: Written) -> None:
    text = """
resource "google_secret_manager_secret_version" "it" {
  secret                 = "projects/p/secrets/s"
  secret_data            = "stored"
  secret_data_wo         = "not stored"
  secret_data_wo_version = "1"
}
"""

    found = refusals(written(text))

    assert len(found) == 2
    assert "stored" not in "".join(text for _, _, text in found)


def test_right_configuration_has_no_fault(written: Written) -> None:
    cli = written(ENDPOINT % "dedicated_endpoint_enabled = true")

    said = cli("validate", "-json").json()

    assert said["diagnostics"] == []
