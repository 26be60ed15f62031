"""Models are resolved against a real HTTP server that speaks the hub's API."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr
from support.hub_server import Hub as Server
from support.hub_server import body, flipped, hub_server
from support.hub_server import status as answering
from support.snapshots import write_snapshot

from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    Forbidden,
    NotFound,
    PolicyError,
    ProtocolError,
    VerificationError,
)
from medport_deploy.lock.hub import Hub
from medport_local.snapshot import open_snapshot

MODEL = "google/medgemma-4b-it"
TOKEN = "hf_canaryTOKEN"
FIELD = "models.medgemma.model"


@pytest.fixture
def files(tmp_path: Path) -> dict[str, bytes]:
    folder = write_snapshot(tmp_path / "made")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def server() -> Iterator[Server]:
    with hub_server() as started:
        yield started


def hub(server: Server, token: str | None = None) -> Hub:
    return Hub(endpoint=server.endpoint, token=SecretStr(token) if token else None, sleep=lambda _: None)


def test_a_branch_becomes_its_commit_and_every_file_a_sha256(server: Server, files: dict[str, bytes]) -> None:
    commit = server.add(MODEL, files)

    found = hub(server).find(MODEL, "main", field=FIELD)

    assert (found.model.model_id, found.model.revision, found.model.family) == (MODEL, commit, "medgemma")
    assert {name: (each.sha256, each.size_bytes) for name, each in found.model.files.items()} == {
        name: (hashlib.sha256(data).hexdigest(), len(data)) for name, data in files.items()
    }


def test_a_lock_from_the_hub_names_the_same_snapshot_as_the_downloaded_files(
    server: Server, files: dict[str, bytes], tmp_path: Path
) -> None:
    server.add(MODEL, files)

    assert (
        hub(server).find(MODEL, "main", field=FIELD).model.snapshot_sha256
        == open_snapshot(tmp_path / "made").snapshot_sha256
    )


def test_weights_are_not_downloaded(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files)

    hub(server).find(MODEL, "main", field=FIELD)

    assert server.asked("storage") == []
    assert not any(name.endswith(".safetensors") for name in server.sent)


def test_a_commit_stays_that_commit_when_the_branch_has_moved(server: Server, files: dict[str, bytes]) -> None:
    first = server.add(MODEL, files)
    second = server.add(MODEL, {**files, "tokenizer.json": b"{}"})

    assert hub(server).find(MODEL, first, field=FIELD).model.revision == first
    assert hub(server).find(MODEL, "main", field=FIELD).model.revision == second


def test_files_that_are_no_part_of_a_model_are_left_and_named(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, {**files, "README.md": b"hello", "modeling.py": b"import os", "sub/model.safetensors": b""})

    found = hub(server).find(MODEL, "main", field=FIELD)

    assert found.left == ("README.md", "modeling.py", "sub/model.safetensors")
    assert set(found.model.files) == set(files)


def test_weights_as_pickles_alone_are_refused(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, {"config.json": files["config.json"], "pytorch_model.bin": b"pickle"})

    with pytest.raises(VerificationError, match=r"'pytorch_model\.bin', which can run code"):
        hub(server).find(MODEL, "main", field=FIELD)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"model_type": "llama"}, "of type llama, which medport does not serve"),
        ({"model_type": "gemma3", "auto_map": {"AutoModel": "x.Y"}}, "auto_map"),
        (["gemma3"], "no JSON object"),
    ],
)
def test_a_model_that_is_not_served_is_refused(
    server: Server, files: dict[str, bytes], config: object, said: str
) -> None:
    server.add(MODEL, {**files, "config.json": json.dumps(config).encode()})

    with pytest.raises(VerificationError, match=said):
        hub(server).find(MODEL, "main", field=FIELD)


def test_a_small_file_that_is_not_what_the_hub_lists_is_refused(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files)
    server.change("config.json", body(flipped))

    with pytest.raises(VerificationError, match=r"config\.json is not what the hub lists"):
        hub(server).find(MODEL, "main", field=FIELD)


def test_a_gated_model_is_refused_with_the_page_that_opens_it(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files, gated="manual", readers=(TOKEN,))

    with pytest.raises(AuthError, match=r"accept its terms at .*HF_TOKEN"):
        hub(server).find(MODEL, "main", field=FIELD)
    with pytest.raises(Forbidden, match="may not read it"):
        hub(server, "hf_another").find(MODEL, "main", field=FIELD)
    assert hub(server, TOKEN).find(MODEL, "main", field=FIELD).model.model_id == MODEL


def test_the_token_is_in_no_error_and_no_repr(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files, gated="manual")
    asked = hub(server, TOKEN)

    with pytest.raises(Forbidden) as caught:
        asked.find(MODEL, "main", field=FIELD)

    assert TOKEN not in str(caught.value) + repr(caught.value) + repr(vars(asked))


def test_a_token_is_not_sent_over_plain_http_to_another_machine() -> None:
    for endpoint in ("http://hub.example.org", "http://127.0.0.1.example.org"):
        with pytest.raises(PolicyError, match="plain http"):
            Hub(endpoint=endpoint, token=SecretStr(TOKEN))


def test_unknown_models_and_revisions_are_told_apart(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files)

    with pytest.raises(NotFound, match="no such branch, tag or commit"):
        hub(server).find(MODEL, "absent", field=FIELD)
    with pytest.raises(NotFound, match="the hub has no google/medgemma-0b"):
        hub(server).find("google/medgemma-0b", "main", field=FIELD)


def test_a_busy_hub_is_asked_again_and_a_dead_one_given_up(server: Server, files: dict[str, bytes]) -> None:
    commit = server.add(MODEL, files)
    server.change("config.json", answering(503), answering(500))

    assert hub(server).find(MODEL, "main", field=FIELD).model.revision == commit
    dead = Hub(endpoint="http://127.0.0.1:9", sleep=lambda _: None)
    with pytest.raises(ConnectionFailed, match="--mirror DIR --offline"):
        dead.find(MODEL, "main", field=FIELD)


def test_what_is_no_answer_of_a_hub_is_a_protocol_error(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files)
    server.change("api", body(lambda data: b"<html>"))

    with pytest.raises(ProtocolError):
        hub(server).find(MODEL, "main", field=FIELD)


def test_terms_are_the_known_ones_or_those_on_the_models_page(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, files)
    licence = b"be nice"
    card = {"license": "other", "license_name": "House Rules", "license_link": "https://example.org/rules"}
    server.add("clinic/ours", {**files, "LICENSE": licence}, card=card, gated="auto", readers=(TOKEN,))
    server.add("clinic/free", files)

    known = hub(server).find(MODEL, "main", field=FIELD).terms
    stated = hub(server, TOKEN).find("clinic/ours", "main", field=FIELD).terms
    free = hub(server).find("clinic/free", "main", field=FIELD).terms

    assert known is not None
    assert (known.id, known.gated) == ("hai-def", True)
    assert stated is not None
    assert (stated.id, stated.gated, stated.url) == ("house-rules", True, "https://example.org/rules")
    assert stated.sha256 == hashlib.sha256(licence).hexdigest()
    assert free is None


def test_a_repository_without_weights_is_refused(server: Server, files: dict[str, bytes]) -> None:
    server.add(MODEL, {"config.json": files["config.json"]})

    with pytest.raises(ConfigError, match=r"holds no \*\.safetensors"):
        hub(server).find(MODEL, "main", field=FIELD)
