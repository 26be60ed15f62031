"""``medport doctor`` for a profile on Vertex AI, against the stand-in on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.certificates import Authority
from support.running import LoopThread
from support.vertex import Account, Vertex, cold

CHECKS = [
    "configuration", "packages", "credential", "dns", "tcp", "tls", "clock", "endpoint", "location", "data plane",
    "deployed model", "pins", "chat", "embedding",
]  # fmt: skip


@pytest.fixture
def vertex(authority: Authority, account: Account, loop_thread: LoopThread, tmp_path: Path) -> Iterator[Vertex]:
    """The stand-in, and a ``medport.toml`` that leads to it."""
    with Vertex(authority, tmp_path, account).serving(loop_thread) as server:
        settings = server.settings()
        (tmp_path / "medport.toml").write_text(
            f"""
            default_profile = "cloud"
            [profiles.cloud]
            backend = "vertex"
            project = "{settings["project"]}"
            location = "{settings["location"]}"
            medgemma = {{ endpoint = "1001" }}
            medsiglip = {{ endpoint = "1002" }}
            api_endpoint = "{settings["api_endpoint"]}"
            dns_suffixes = ["localhost"]
            ca_file = "{settings["ca_file"]}"
            auth = {{ credentials_file = "{settings["auth"]["credentials_file"]}" }}
            [policy]
            allowed_locations = ["{settings["location"]}"]
            """
        )
        yield server


def _checks(run: Any) -> dict[str, Any]:
    return {check["name"]: check for check in run.json["profiles"][0]["checks"]}


def test_working_endpoints_pass_every_check(medport: Any, vertex: Vertex) -> None:
    run = medport("doctor", "--json")

    assert run.code == 0, run.out
    assert {name: check["status"] for name, check in _checks(run).items()} == dict.fromkeys(CHECKS, "ok")
    assert vertex.data_host.partition(":")[0] in _checks(run)["data plane"]["detail"]
    assert "certificate valid for" in _checks(run)["data plane"]["detail"]
    assert "revision 0123456789ab" in _checks(run)["pins"]["detail"]
    assert "europe-west4" in _checks(run)["location"]["detail"]


def test_token_is_never_printed(medport: Any, vertex: Vertex) -> None:
    for form in ((), ("--json",)):
        run = medport("doctor", *form)
        assert vertex.tokens
        assert "ya29" not in run.out + run.err


def test_cold_endpoint_fails_at_the_chat_and_is_called_not_ready(medport: Any, vertex: Vertex) -> None:
    vertex.script = [cold()]

    run = medport("doctor", "--json")

    assert run.code == 1
    assert run.json["first_failure"]["name"] == "chat"
    assert run.json["first_failure"]["detail"].startswith("NotReady: ")
    assert _checks(run)["embedding"]["status"] == "ok"


def test_missing_endpoint_fails_there(medport: Any, vertex: Vertex) -> None:
    vertex.models["medsiglip"].endpoint = "9999"

    run = medport("doctor", "--json")

    assert run.json["first_failure"]["name"] == "endpoint"
    assert _checks(run)["chat"]["status"] == "skipped"


def test_host_that_may_not_have_the_token_fails_before_it_gets_one(medport: Any, vertex: Vertex) -> None:
    vertex.dns = "evil.example"

    run = medport("doctor", "--json")

    assert run.json["first_failure"]["name"] == "endpoint"
    assert run.json["first_failure"]["detail"].startswith("PolicyError: ")
    assert vertex.asked(":predict") == []


def test_location_outside_the_policy_is_told_as_configuration(
    medport: Any, vertex: Vertex, tmp_path: Path
) -> None:
    file = tmp_path / "medport.toml"
    file.write_text(file.read_text().replace('allowed_locations = ["europe-west4"]', 'allowed_locations = ["us"]'))

    run = medport("doctor", "--json")

    assert run.code == 1
    assert run.json["first_failure"]["name"] == "configuration"
    assert vertex.seen == []
