"""``medport doctor``."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pytest
import trustme

from medport.cli import reach
from medport.cli.checks import Check, Skipped, run
from medport.errors import ConfigError, ConnectionFailed

NETWORK = [
    "configuration", "packages", "credential", "dns", "tcp", "tls", "clock", "endpoint", "location", "data plane",
    "deployed model", "pins", "chat", "embedding",
]  # fmt: skip


def _statuses(run: Any, profile: int = 0) -> dict[str, str]:
    return {check["name"]: check["status"] for check in run.json["profiles"][profile]["checks"]}


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@pytest.fixture
def certified(tmp_path: Path) -> Iterator[tuple[dict[str, str], str]]:
    """uvicorn's TLS settings for 127.0.0.1, and the file of the CA."""
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    chain, ca = tmp_path / "server.pem", tmp_path / "ca.pem"
    issued.private_key_and_cert_chain_pem.write_to_path(str(chain))
    authority.cert_pem.write_to_path(str(ca))
    return {"ssl_certfile": str(chain), "ssl_keyfile": str(chain)}, str(ca)


def test_working_server_passes_every_check(medport: Any, local: list[str]) -> None:
    run = medport("doctor", "--json", *local)

    assert run.code == 0, run.out
    assert run.json["ok"] is True
    assert run.json["first_failure"] is None
    assert _statuses(run) == dict.fromkeys(NETWORK, "ok")
    assert sorted(run.json["profiles"][0]) == ["backend", "checks", "profile"]
    assert sorted(run.json["profiles"][0]["checks"][0]) == ["detail", "name", "remedy", "status"]


def test_text_form_has_a_line_for_each_check(medport: Any, local: list[str]) -> None:
    run = medport("doctor", *local)

    assert run.code == 0
    assert [name for name in NETWORK if name not in run.out] == []
    assert "All is well." in run.out
    assert run.err == ""


def test_first_failure_is_explained_and_what_needs_it_is_skipped(medport: Any) -> None:
    run = medport("doctor", "--backend", "local", "--url", f"http://127.0.0.1:{_free_port()}")
    as_json = medport("doctor", "--json", "--backend", "local", "--url", f"http://127.0.0.1:{_free_port()}")

    assert run.code == as_json.code == 1
    assert "tcp: ConnectionFailed: 127.0.0.1 refuses port" in run.out
    assert "remedy: start the server" in run.out
    statuses = _statuses(as_json)
    assert statuses["dns"] == "ok"
    assert statuses["tcp"] == "failed"
    assert {statuses[name] for name in NETWORK[5:]} == {"skipped"}
    assert as_json.json["first_failure"]["name"] == "tcp"


def test_unknown_host_fails_at_dns(medport: Any) -> None:
    run = medport("doctor", "--json", "--backend", "local", "--url", "https://no-such-host.invalid")

    assert run.json["first_failure"]["name"] == "dns"


def test_trusted_certificate_passes_and_its_life_is_told(medport: Any, certified: Any, canned_over: Any) -> None:
    tls, ca = certified
    with canned_over(**tls) as server:
        run = medport("doctor", "--json", "--backend", "local", "--url", server.url, "--ca-file", ca)

    details = {check["name"]: check["detail"] for check in run.json["profiles"][0]["checks"]}
    assert run.code == 0, run.out
    assert "certificate valid for" in details["tls"]


def test_untrusted_certificate_fails_at_tls_with_the_remedy(
    medport: Any, certified: Any, canned_over: Any
) -> None:
    tls, _ = certified
    with canned_over(**tls) as server:
        run = medport("doctor", "--json", "--backend", "local", "--url", server.url)

    assert run.code == 1
    assert run.json["first_failure"]["name"] == "tls"
    assert "ca_file" in run.json["first_failure"]["remedy"]


def test_certificate_for_another_name_is_told_apart(certified: Any, canned_over: Any) -> None:
    tls, ca = certified
    with canned_over(**tls) as server:
        host, port, _ = reach.origin(server.url)
        with pytest.raises(ConnectionFailed) as caught:
            reach.handshake(host, port, "other.example", ca)

    assert "server_name" in str(caught.value.remedy)


def test_port_without_tls_is_told_apart(canned: Any) -> None:
    host, port, _ = reach.origin(canned.url)

    with pytest.raises(ConnectionFailed, match="does not speak TLS"):
        reach.handshake(host, port, host, None)


def test_wrong_clock_is_found_by_the_servers_date(medport: Any, canned_over: Any) -> None:
    late = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    with canned_over(date=late) as server:
        run = medport("doctor", "--json", "--backend", "local", "--url", server.url)

    assert run.json["first_failure"]["name"] == "clock"
    assert "NTP" in run.json["first_failure"]["remedy"]
    assert _statuses(run)["chat"] == "ok"  # a wrong clock alone keeps nothing from working


def test_server_of_one_model_passes_and_the_other_is_skipped(medport: Any, local: list[str], canned: Any) -> None:
    canned.families = ("medsiglip",)

    run = medport("doctor", "--json", *local)

    assert run.code == 0
    assert _statuses(run)["chat"] == "skipped"
    assert _statuses(run)["embedding"] == "ok"


def test_server_of_no_model_fails_at_the_endpoint(medport: Any, local: list[str], canned: Any) -> None:
    canned.families = ()

    assert medport("doctor", "--json", *local).json["first_failure"]["name"] == "endpoint"


def test_endpoint_without_a_model_fails_there(medport: Any, local: list[str], canned: Any) -> None:
    canned.deployed = False

    assert medport("doctor", "--json", *local).json["first_failure"]["name"] == "deployed model"


def test_model_without_pins_is_no_failure(medport: Any, local: list[str], canned: Any) -> None:
    canned.pinned = False

    run = medport("doctor", "--json", *local)

    assert run.code == 0
    assert _statuses(run)["pins"] == "skipped"


def test_failing_model_is_found_by_the_round_trip(medport: Any, local: list[str], canned: Any) -> None:
    canned.error = (500, {"error": {"code": 500, "message": "broken", "status": "INTERNAL"}})

    run = medport("doctor", "--json", *local)

    assert run.json["first_failure"]["name"] == "chat"
    assert len(canned.asked) == 2  # once each: a retry would hide what is to be found


def test_every_link_of_the_chain_is_checked(medport: Any, canned: Any, tmp_path: Path) -> None:
    (tmp_path / "medport.toml").write_text(
        f"""
        default_profile = "ha"
        [profiles.down]
        backend = "local"
        url = "http://127.0.0.1:{_free_port()}"
        [profiles.up]
        backend = "local"
        url = "{canned.url}"
        [profiles.ha]
        fallback = ["down", "up"]
        """
    )

    run = medport("doctor", "--json")

    assert run.code == 1
    assert [each["profile"] for each in run.json["profiles"]] == ["down", "up"]
    assert _statuses(run, 0)["tcp"] == "failed"
    assert set(_statuses(run, 1).values()) == {"ok"}


def test_wrong_configuration_is_a_failed_check(medport: Any, tmp_path: Path) -> None:
    (tmp_path / "medport.toml").write_text("[profiles.a]\nbackand = 'local'\n")

    run = medport("doctor", "--json")

    assert run.code == 1
    assert run.json["first_failure"]["name"] == "configuration"
    assert "backend" in run.json["first_failure"]["remedy"]


def test_missing_variable_of_the_key_fails_at_the_credential(medport: Any, canned: Any, tmp_path: Path) -> None:
    (tmp_path / "medport.toml").write_text(
        f"[profiles.a]\nbackend = 'local'\nurl = '{canned.url}'\nauth = {{ api_key_env = 'NOT_SET' }}\n"
    )

    run = medport("doctor", "--json", "--profile", "a")

    assert run.json["first_failure"]["name"] == "credential"
    assert "export NOT_SET" in run.json["first_failure"]["remedy"]
    assert _statuses(run)["tcp"] == "ok"


def test_key_is_never_printed(medport: Any, local: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MEDPORT_API_KEY", "secret-key")

    for form in ((), ("--json",), ("--debug",)):
        run = medport("doctor", *form, *local)
        assert run.code == 0
        assert "secret-key" not in run.out + run.err


def test_cloud_profile_without_credentials_fails_there_and_sends_nothing(
    medport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "key.json").write_text("no JSON")
    (tmp_path / "medport.toml").write_text(
        "[profiles.cloud]\nbackend = 'vertex'\nproject = 'p'\nlocation = 'europe-west4'\n"
        "api_endpoint = 'https://no-such-host.invalid'\n"
        "medgemma = { endpoint = 'e' }\nauth = { credentials_file = 'key.json' }\n"
    )
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)

    run = medport("doctor", "--json", "-p", "cloud")

    assert run.code == 1
    assert run.json["first_failure"]["name"] == "credential"
    assert _statuses(run)["endpoint"] == "skipped"


def test_proxied_cloud_profile_is_not_reached_directly(
    medport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "medport.toml").write_text(
        "[profiles.cloud]\nbackend = 'vertex'\nproject = 'p'\nlocation = 'europe-west4'\n"
        "medgemma = { endpoint = 'e' }\nauth = { credentials_file = 'nowhere.json' }\n"
    )
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)

    statuses = _statuses(medport("doctor", "--json", "-p", "cloud"))

    assert [statuses[name] for name in ("dns", "tcp", "tls")] == ["skipped"] * 3


def test_checks_after_a_failed_one_are_skipped_and_after_a_skipped_one_are_not() -> None:
    def fail() -> str:
        raise ConfigError("wrong", remedy="run: medport doctor")

    def skip() -> str:
        raise Skipped("not here")

    found = list(
        run(
            [
                Check("a", fail, "own remedy"),
                Check("b", lambda: "fine", "", ("a",)),
                Check("c", lambda: "fine", "", ("b",)),
                Check("d", skip, ""),
                Check("e", lambda: "fine", "", ("d",)),
            ]
        )
    )

    assert [each.status for each in found] == ["failed", "skipped", "skipped", "skipped", "ok"]
    assert found[0].remedy == "own remedy"
