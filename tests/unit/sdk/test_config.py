"""Settings: their order, their faults, and a policy that holds before anything is sent."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

import medport
from medport import config

CLOUD = 'backend = "vertex"\nproject = "p"\nlocation = "us-central1"\nmedgemma = { endpoint = "123" }\n'


def write(directory: Path, text: str) -> Path:
    (directory / "medport.toml").write_text(text)
    return directory


def test_nothing_configured_is_in_process_with_phantoms(tmp_path: Path) -> None:
    resolved = config.resolve(environment={}, directory=tmp_path)

    assert resolved.profile.backend == "in-process"
    assert not resolved.profile.snapshot


@pytest.mark.parametrize(
    ("text", "near"),
    [
        ('[profiles.a]\nbackend = "local"\nulr = "https://x"\n', "url"),
        ('[profiles.a]\nauth = { api_key_evn = "K" }\n', "api_key_env"),
        ("[polcy]\nallow_cloud = false\n", "policy"),
        ('[policy]\nallowed_location = ["a"]\n', "allowed_locations"),
    ],
)
def test_an_unknown_key_names_the_nearest_known_one(tmp_path: Path, text: str, near: str) -> None:
    with pytest.raises(medport.ConfigError) as caught:
        config.resolve(environment={}, directory=write(tmp_path, text))

    assert caught.value.remedy == f"did you mean {near}?"


def test_options_of_the_in_process_engine_are_read(tmp_path: Path) -> None:
    text = '[profiles.a]\nbackend = "in-process"\ndevice = "cpu"\ndtype = "bfloat16"\nreuse_bytes = 1048576\n'

    profile = config.resolve("a", environment={}, directory=write(tmp_path, text)).profile

    assert (profile.device, profile.dtype, profile.reuse_bytes) == ("cpu", "bfloat16", 2**20)
    assert config.resolve(environment={}, directory=tmp_path / "elsewhere").profile.reuse_bytes == 0


@pytest.mark.parametrize("line", ['device = "cpu"', 'dtype = "float32"', "reuse_bytes = 1"])
def test_options_of_the_in_process_engine_mean_nothing_to_a_server(tmp_path: Path, line: str) -> None:
    text = f'[profiles.a]\nbackend = "local"\nurl = "https://x"\n{line}\n'

    with pytest.raises(medport.ConfigError, match="in-process") as caught:
        config.resolve("a", environment={}, directory=write(tmp_path, text))

    assert caught.value.field == f"profiles.a.{line.partition(' ')[0]}"


def test_an_unknown_profile_names_the_nearest(tmp_path: Path) -> None:
    directory = write(tmp_path, '[profiles.onprem]\nbackend = "local"\nurl = "https://x"\n')

    with pytest.raises(medport.ConfigError, match="did you mean onprem"):
        config.resolve("onperm", environment={}, directory=directory)


def test_arguments_beat_the_environment_which_beats_the_project_which_beats_the_user(tmp_path: Path) -> None:
    home, project = tmp_path / "home", tmp_path / "project" / "below"
    (home / "medport").mkdir(parents=True)
    project.mkdir(parents=True)
    (home / "medport" / "config.toml").write_text(
        '[profiles.a]\nurl = "https://user"\ntimeout_s = 1\nlanguage = "de"\n'
    )
    write(project.parent, 'default_profile = "a"\n[profiles.a]\nbackend = "local"\nurl = "https://project"\n')
    environment = {"XDG_CONFIG_HOME": str(home), "MEDPORT_TIMEOUT_S": "2", "MEDPORT_LANGUAGE": "fr"}

    resolved = config.resolve(None, {"language": "ja"}, environment=environment, directory=project)

    profile = resolved.profile
    assert (profile.url, profile.timeout_s, profile.language) == ("https://project", 2.0, "ja")
    rows = {key: origin for key, _, origin in config.masked(resolved)}
    assert rows["profiles.a.timeout_s"] == "MEDPORT_TIMEOUT_S"
    assert rows["profiles.a.language"] == config.ARGUMENTS
    assert rows["profiles.a.url"].endswith("medport.toml")


def test_a_secret_is_shown_nowhere(tmp_path: Path) -> None:
    client = medport.Client(url="https://localhost:1", api_key="KEY-CANARY")

    resolved = config.resolve(
        None, {"url": "https://x", "api_key": "KEY-CANARY"}, environment={}, directory=tmp_path
    )

    assert "KEY-CANARY" not in repr(client) + repr(resolved) + str(config.masked(resolved))


@pytest.fixture
def no_sockets(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


@pytest.mark.usefixtures("no_sockets")
@pytest.mark.parametrize(
    ("policy", "field"),
    [
        ('allowed_locations = ["europe-west4"]', "policy.allowed_locations"),
        ("allow_cloud = false", "policy.allow_cloud"),
    ],
)
def test_the_policy_refuses_before_a_byte_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, policy: str, field: str
) -> None:
    write(tmp_path, f"[policy]\n{policy}\n[profiles.cloud]\n{CLOUD}")
    monkeypatch.chdir(tmp_path)

    with pytest.raises(medport.PolicyError) as caught:
        medport.Client("cloud")

    assert caught.value.field == field


def test_the_policy_holds_for_each_link_of_a_chain(tmp_path: Path) -> None:
    text = (
        f'[policy]\nallow_cloud = false\n[profiles.cloud]\n{CLOUD}[profiles.here]\nbackend = "in-process"\n'
        '[profiles.ha]\nfallback = ["here", "cloud"]\n'
    )

    with pytest.raises(medport.PolicyError, match="cloud"):
        config.resolve("ha", environment={}, directory=write(tmp_path, text))


def test_a_location_in_the_resource_name_counts(tmp_path: Path) -> None:
    text = (
        '[policy]\nallowed_locations = ["europe-west4"]\n'
        '[profiles.c]\nbackend = "vertex"\nlocation = "europe-west4"\n'
        'medgemma = { endpoint = "projects/p/locations/us-east1/endpoints/1" }\n'
    )

    with pytest.raises(medport.PolicyError, match="us-east1"):
        config.resolve("c", environment={}, directory=write(tmp_path, text))


def test_settings_alone_listen_to_no_file_and_no_variable_of_medport(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 'default_profile = "a"\n[policy]\nallow_cloud = false\n[profiles.a]\n' + CLOUD)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPORT_URL", "https://elsewhere.example")
    monkeypatch.setenv("MEDPORT_API_KEY", "of-somebody-else")

    resolved = config.alone({"backend": "local", "url": "https://here.example"})

    assert resolved.profile.url == "https://here.example"
    assert resolved.secret(resolved.profile) is None
    assert [name for name, _ in resolved.chain] == ["local"]
    with pytest.raises(medport.ConfigError, match="ulr"):
        config.alone({"backend": "local", "ulr": "https://here.example"})


def test_client_of_a_resolved_profile_takes_no_more_settings() -> None:
    resolved = config.alone({"backend": "local", "url": "https://here.example"})

    with pytest.raises(medport.ConfigError, match="resolved profile"):
        medport.Client(resolved, url="https://elsewhere.example")
    with medport.Client(resolved) as client:
        assert repr(client) == "<Client local (local)>"
