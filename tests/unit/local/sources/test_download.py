"""A source into plain files, as the container takes its model."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.hub_server import Hub, body, cut, flipped, headers

from medport.errors import AuthError, ConfigError, VerificationError
from medport_local.snapshot import open_snapshot
from medport_local.snapshot_source import obtain
from medport_local.sources import HubSource, download

from .conftest import MODEL


@pytest.fixture(autouse=True)
def endpoint(hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.endpoint)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


def test_a_commit_of_the_hub_comes_with_a_manifest_that_proves_it(files: dict[str, bytes], commit: str) -> None:
    with obtain([MODEL], revision=commit) as directory:
        snapshot = open_snapshot(directory)

        assert (snapshot.model_id, snapshot.revision) == (MODEL, commit)
        assert {name: snapshot.read(name) for name in snapshot.files} == files


def test_a_broken_download_is_gone_on_with(hub: Hub, files: dict[str, bytes], commit: str) -> None:
    hub.change("model-00002-of-00003.safetensors", cut(100_000))

    with obtain([MODEL], revision=commit) as directory:
        assert open_snapshot(directory).files

    assert hub.sent["model-00002-of-00003.safetensors"] == len(files["model-00002-of-00003.safetensors"])


@pytest.mark.parametrize("name", ["chat_template.jinja", "model-00002-of-00003.safetensors"])
@pytest.mark.parametrize("change", [[body(flipped)], [cut(100), headers(ETag='"another"')]], ids=["bit", "etag"])
def test_a_file_that_is_not_the_listed_one_leaves_nothing(
    hub: Hub, tmp_path: Path, commit: str, name: str, change: list[Any]
) -> None:
    hub.change(name, *change)

    with pytest.raises(VerificationError, match=name), obtain([MODEL], revision=commit):
        pass

    assert os.listdir(tmp_path) == []


def test_a_stream_without_end_is_left_at_the_listed_size(hub: Hub, tmp_path: Path, commit: str) -> None:
    hub.change("model-00002-of-00003.safetensors", body(lambda data: data + bytes(2**20), chunked=True))

    with pytest.raises(VerificationError, match="longer than the hub listed"), obtain([MODEL], revision=commit):
        pass


def test_a_gated_model_names_the_containers_variable(hub: Hub, commit: str) -> None:
    hub.repositories[MODEL].gated = "auto"

    with pytest.raises(AuthError, match="HF_TOKEN"), obtain([MODEL], revision=commit):
        pass


def test_a_disk_that_is_too_small_is_said_before_anything_is_fetched(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000_000}))

    with pytest.raises(ConfigError, match="TMPDIR"):
        download(HubSource(MODEL, endpoint=hub.endpoint), tmp_path, told=lambda _: None)

    assert hub.sent["config.json"] == 0
