"""``medport snapshot pull`` and ``add`` as a person or a script runs them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.bundles import META, Keys, snapshot_items
from support.hub_server import Hub
from typer.testing import CliRunner, Result

from medport.errors import ConfigError, ConnectionFailed, MedportError
from medport_local.bundle.archive import write_bundle
from medport_local.cli_pull import app
from medport_local.phantom import weights_dir

from .conftest import MODEL


@pytest.fixture
def run(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    monkeypatch.setenv("MEDPORT_STORE", str(tmp_path / "mine"))

    def command(*arguments: str) -> Result:
        return CliRunner().invoke(app, arguments)

    return command


def fault(result: Result) -> MedportError:
    assert isinstance(result.exception, MedportError)
    return result.exception


def test_a_pull_prints_what_to_pin_and_nothing_else_on_stdout(run: Any, commit: str) -> None:
    result = run("pull", MODEL)

    assert result.exit_code == 0
    assert result.stdout.startswith(f"{MODEL}@{commit}  sha256:")
    assert result.stdout.count("\n") == 1
    assert f"main is {commit}" in result.stderr


def test_json_is_one_object_and_progress_goes_to_stderr(run: Any, commit: str, files: dict[str, bytes]) -> None:
    result = run("pull", f"{MODEL}@{commit}", "--json")

    printed = json.loads(result.stdout)
    assert (printed["model_id"], printed["revision"]) == (MODEL, commit)
    assert printed["record"]["source"] == "hub"
    assert set(printed["files"]) == set(files)
    assert printed["fetched_bytes"] == sum(map(len, files.values()))
    assert "model-00001-of-00003.safetensors" in result.stderr


def test_a_second_pull_fetches_nothing(run: Any, hub: Hub, commit: str) -> None:
    run("pull", f"{MODEL}@{commit}")
    hub.requests.clear()

    result = run("pull", f"{MODEL}@{commit}", "--json")

    assert json.loads(result.stdout)["fetched_bytes"] == 0
    assert hub.requests == []


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_is_honoured(run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, "1")

    result = run("pull", MODEL)

    assert isinstance(fault(result), ConnectionFailed)
    assert hub.requests == []


def test_a_token_comes_from_the_named_variable_alone(run: Any, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.repositories[MODEL].gated, hub.repositories[MODEL].readers = "auto", ("hf_mine",)
    hub.accounts["hf_mine"] = "dr-lee"
    monkeypatch.setenv("HOSPITAL_TOKEN", "hf_mine\n")

    without = run("pull", MODEL)
    result = run("pull", MODEL, "--token-env", "HOSPITAL_TOKEN", "--json")

    assert "--token-env" in str(fault(without))
    assert json.loads(result.stdout)["record"]["terms"]["accepted_by"] == "dr-lee"
    assert "hf_mine" not in result.output


def test_a_variable_that_is_not_set_is_a_config_error(run: Any) -> None:
    result = run("pull", MODEL, "--token-env", "NOT_SET")

    assert isinstance(fault(result), ConfigError)
    assert "NOT_SET" in str(fault(result))


@pytest.mark.parametrize("secret", ["hf_abcdefghijklmnop", "correct horse battery", "Sesame1", "", "A=B"])
def test_a_token_that_somebody_gives_itself_is_not_repeated(run: Any, hub: Hub, secret: str) -> None:
    result = run("pull", MODEL, "--token-env", secret)

    assert isinstance(fault(result), ConfigError)
    assert fault(result).field == "token-env"
    assert not secret or secret not in f"{fault(result)}{fault(result).remedy}{result.output}"
    assert hub.requests == []


@pytest.fixture
def signed(tmp_path: Path) -> Keys:
    """Who signed the bundle ``x.mpb``."""
    keys = Keys.make(tmp_path)
    items = snapshot_items(weights_dir("medsiglip"))
    write_bundle(tmp_path / "x.mpb", items, meta=META, signer=keys.signer)
    return keys


def test_who_may_sign_a_bundle_can_be_said_with_the_command(
    run: Any, hub: Hub, tmp_path: Path, signed: Keys
) -> None:
    (tmp_path / "others").mkdir()
    others = Keys.make(tmp_path / "others")

    result = run("pull", f"bundle:{tmp_path / 'x.mpb'}", "--key", str(signed.public), "--json")

    assert json.loads(result.stdout)["record"]["source"] == "bundle"
    refused = run("pull", f"bundle:{tmp_path / 'x.mpb'}", "--key", str(others.public))
    assert "is by another key" in str(fault(refused))
    nobody = run("pull", f"bundle:{tmp_path / 'x.mpb'}")
    assert fault(nobody).field == "key"
    assert "--key" in str(fault(nobody).remedy)
    assert hub.requests == []


@pytest.mark.parametrize("option", ["--key", "--ca", "--signer"])
def test_who_may_sign_is_said_for_a_bundle_alone(run: Any, hub: Hub, option: str) -> None:
    result = run("pull", MODEL, option, "x")

    assert fault(result).field == option[2:]
    assert hub.requests == []


def test_add_takes_a_directory(run: Any, tmp_path: Path) -> None:
    result = run("add", str(weights_dir("medsiglip")), "--store", str(tmp_path / "other"), "--json")

    printed = json.loads(result.stdout)
    assert printed["family"] == "medsiglip"
    assert Path(printed["directory"]).is_relative_to(tmp_path / "other")


def test_add_asks_no_hub(run: Any, hub: Hub) -> None:
    result = run("add", MODEL)

    assert isinstance(fault(result), ConfigError)
    assert hub.requests == []


def test_help_needs_no_torch_and_shows_an_example(run: Any) -> None:
    assert "Example" in run("pull", "--help").output
    assert "Example" in run("add", "--help").output
