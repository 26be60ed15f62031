"""Models of a hub, from a real server: what is asked, what is fetched, and what is written down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr
from support.hub_server import Hub, status

from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    Forbidden,
    NotFound,
    ProtocolError,
    VerificationError,
)
from medport_local.model_identity import known_model
from medport_local.snapshot import open_snapshot
from medport_local.sources import DirectorySource, HubSource, pull
from medport_local.store import Store

from .conftest import MODEL, STRANGE

TOKEN = "hf_abcdefghijklmnopqrstuvwxyz"
Fetch = Callable[..., Any]


# -- what arrives -------------------------------------------------------------------------------------------------


def test_a_commit_becomes_a_snapshot_of_exactly_its_files(
    fetch: Fetch, files: dict[str, bytes], commit: str
) -> None:
    stored = fetch(commit)

    snapshot = open_snapshot(stored.directory)
    assert (snapshot.model_id, snapshot.revision, snapshot.family) == (MODEL, commit, "medgemma")
    assert {name: snapshot.read(name) for name in snapshot.files} == files


def test_the_same_files_are_the_same_snapshot_wherever_they_come_from(
    fetch: Fetch, store: Store, files: dict[str, bytes], tmp_path: Path
) -> None:
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for name, data in {**files, "README.md": b"", "LICENSE": b""}.items():
        (folder / name).write_bytes(data)

    added = pull(store, DirectorySource(folder), told=lambda _: None)

    assert added.snapshot_sha256 == fetch().snapshot_sha256 == open_snapshot(folder).snapshot_sha256


def test_what_is_no_part_of_the_model_is_not_asked_for_and_said(fetch: Fetch, hub: Hub) -> None:
    fetch()

    assert {name for name in STRANGE if hub.sent[name]} == {"LICENSE"}
    assert any("modeling.py" in line and "pytorch_model.bin" in line for line in fetch.said)


def test_settings_come_before_weights(fetch: Fetch, hub: Hub) -> None:
    fetch()

    order = [path.rpartition("/")[2] for path in hub.asked("hub") if "/resolve/" in path and "LICENSE" not in path]
    assert order[:2] == ["config.json", "model.safetensors.index.json"]
    assert all(name.endswith(".safetensors") for name in order[-3:])


def test_weights_that_the_index_does_not_name_are_not_fetched(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    hub.add("google/two", {**files, "consolidated.safetensors": b"the same again"})

    stored = fetch(model="google/two")

    assert hub.sent["consolidated.safetensors"] == 0
    assert any("consolidated.safetensors" in note for note in stored.record.notes)


def test_a_manifest_in_the_repository_is_not_taken_for_ours(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    hub.add("google/with-manifest", {**files, "manifest.json": b"{}"})

    stored = fetch(model="google/with-manifest")

    assert hub.sent["manifest.json"] == 0
    assert open_snapshot(stored.directory).model_id == "google/with-manifest"


# -- which commit -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("branch", [None, "main", "validated/2026"])
def test_a_branch_becomes_the_commit_that_it_is_and_that_is_said(
    fetch: Fetch, hub: Hub, commit: str, branch: str | None
) -> None:
    hub.repositories[MODEL].branches["validated/2026"] = commit

    stored = fetch(branch)

    assert stored.revision == commit
    assert (stored.record.requested, stored.record.revision) == (branch or "main", commit)
    assert f"{branch or 'main'} is {commit}; pin {MODEL}@{commit}" in fetch.said


def test_a_branch_that_moves_on_during_a_pull_gives_the_listed_commit(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], commit: str
) -> None:
    def move_on(_: object) -> None:
        hub.repositories[MODEL].commits["f" * 40] = dict.fromkeys(files, b"other")
        hub.repositories[MODEL].branches["main"] = "f" * 40

    hub.change("config.json", move_on)

    stored = fetch()

    assert stored.revision == commit
    assert open_snapshot(stored.directory).read("config.json") == files["config.json"]


def test_a_commit_that_the_store_has_is_not_asked_for(fetch: Fetch, hub: Hub, commit: str) -> None:
    first = fetch(commit)
    hub.requests.clear()

    again = fetch(commit)

    assert again == first
    assert hub.requests == []


def test_a_branch_whose_commit_the_store_has_costs_one_request(fetch: Fetch, hub: Hub, commit: str) -> None:
    fetch(commit)
    hub.requests.clear()

    fetch("main")

    assert hub.asked("hub")[0].partition("?")[0].endswith("/revision/main")
    assert not any("/resolve/" in path and "LICENSE" not in path for path in hub.asked("hub"))


def test_a_stored_commit_that_lost_a_file_is_fetched_again(
    fetch: Fetch, store: Store, hub: Hub, commit: str
) -> None:
    stored = fetch(commit)
    stored.directory.chmod(0o755)
    (stored.directory / "config.json").unlink()
    hub.sent.clear()

    again = fetch(commit)

    assert open_snapshot(again.directory).snapshot_sha256 == stored.snapshot_sha256
    assert not any(hub.sent[name] for name in hub.sent if name.endswith(".safetensors"))
    assert any("damaged" in line for line in fetch.said)


def test_another_commit_with_the_same_weights_fetches_only_what_differs(
    fetch: Fetch, hub: Hub, files: dict[str, bytes]
) -> None:
    fetch()
    changed = json.dumps({**json.loads(files["generation_config.json"]), "top_k": 32}).encode()
    second = hub.add(MODEL, {**files, "generation_config.json": changed})
    hub.sent.clear()

    stored = fetch(second)

    assert open_snapshot(stored.directory).read("generation_config.json") == changed
    assert not any(hub.sent[name] for name in files if name.endswith((".safetensors", "tokenizer.json")))


@pytest.mark.parametrize("revision", ["no-such-branch", "0" * 40])
def test_a_revision_that_is_not_there_is_named(fetch: Fetch, revision: str) -> None:
    with pytest.raises(NotFound, match="no such branch, tag or commit"):
        fetch(revision)


@pytest.mark.parametrize("revision", ["../main", "a b", "", "-x", "a" * 201, "main\n"])
def test_what_cannot_be_a_revision_is_refused_before_anything_is_asked(
    fetch: Fetch, hub: Hub, revision: str
) -> None:
    with pytest.raises(ConfigError, match="no revision"):
        fetch(revision)

    assert hub.requests == []


def test_a_hub_that_answers_with_another_commit_is_not_believed(hub: Hub, fetch: Fetch, commit: str) -> None:
    hub.change("api", lambda answer: setattr(answer, "body", answer.body.replace(commit.encode(), b"e" * 40)))

    with pytest.raises(ProtocolError, match="another commit"):
        fetch(commit)


def test_a_model_is_stored_as_the_hub_spells_it(hub: Hub, fetch: Fetch) -> None:
    hub.repositories["Google/Toy"] = hub.repositories[MODEL]
    hub.change("api", lambda answer: setattr(answer, "body", answer.body.replace(b"Google/Toy", MODEL.encode())))

    assert fetch(model="Google/Toy").model_id == MODEL


def test_a_repository_that_goes_by_another_name_is_not_stored_under_the_asked_one(hub: Hub, fetch: Fetch) -> None:
    hub.change("api", lambda answer: setattr(answer, "body", answer.body.replace(b"google/toy", b"stranger/toy")))

    with pytest.raises(ConfigError, match="stranger/toy"):
        fetch()


# -- nobody is asked ----------------------------------------------------------------------------------------------


def test_offline_a_commit_that_the_store_has_is_given_and_others_are_refused(
    fetch: Fetch, hub: Hub, commit: str
) -> None:
    stored = fetch(commit)
    hub.requests.clear()

    assert fetch(commit, offline=True) == stored
    with pytest.raises(ConnectionFailed, match="HF_HUB_OFFLINE"):
        fetch("main", offline=True)
    assert hub.requests == []


def test_the_hubs_own_offline_switch_holds(fetch: Fetch, hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)

    with pytest.raises(ConnectionFailed, match="HF_HUB_OFFLINE"):
        fetch()

    assert hub.requests == []


# -- who may ------------------------------------------------------------------------------------------------------


def test_a_gated_model_says_where_to_accept_its_terms_and_how_to_give_a_token(hub: Hub, fetch: Fetch) -> None:
    hub.repositories[MODEL].gated = "manual"

    with pytest.raises(AuthError) as raised:
        fetch()

    assert f"{hub.endpoint}/{MODEL}" in str(raised.value)
    assert "--token-env" in str(raised.value)


def test_a_token_whose_account_did_not_accept_the_terms_says_so(hub: Hub, fetch: Fetch) -> None:
    hub.repositories[MODEL].gated = "manual"
    hub.accounts[TOKEN] = "dr-lee"

    with pytest.raises(Forbidden, match="fine-grained") as raised:
        fetch(token=SecretStr(TOKEN), token_from="HF_TOKEN")

    assert raised.value.field == "HF_TOKEN"


def test_a_token_that_the_hub_does_not_know_says_so(fetch: Fetch) -> None:
    with pytest.raises(AuthError, match="does not know this token"):
        fetch(token=SecretStr(TOKEN))


def test_the_terms_who_accepted_them_and_their_text_are_written_down(hub: Hub, fetch: Fetch) -> None:
    repository = hub.repositories[MODEL]
    repository.gated, repository.readers = "manual", (TOKEN,)
    repository.card = {
        "license": "other",
        "license_name": "toy-terms",
        "license_link": "https://example.org/terms",
    }
    hub.accounts[TOKEN] = "dr-lee"

    terms = fetch(token=SecretStr(TOKEN)).record.terms

    assert (terms.name, terms.url, terms.gated) == ("toy-terms", "https://example.org/terms", True)
    assert (terms.accepted_by, terms.accepted_at[:2]) == ("dr-lee", "20")
    assert terms.licence_sha256 == hashlib.sha256(STRANGE["LICENSE"]).hexdigest()


def test_who_pulls_a_model_that_is_not_gated_has_accepted_nothing(hub: Hub, fetch: Fetch) -> None:
    hub.accounts[TOKEN] = "dr-lee"

    terms = fetch(token=SecretStr(TOKEN)).record.terms

    assert (terms.gated, terms.accepted_by, terms.accepted_at) == (False, None, None)


def test_a_mirror_without_accounts_serves_whoever_has_a_token(hub: Hub, fetch: Fetch) -> None:
    hub.accounts[TOKEN] = "dr-lee"
    hub.change("whoami", lambda answer: setattr(answer, "status", 404))

    assert fetch(token=SecretStr(TOKEN)).record.terms.accepted_by is None


@pytest.mark.parametrize("code", [403, 404, 429, 500])
def test_a_hub_that_does_not_say_whose_token_it_is_serves_it_all_the_same_and_is_asked_once(
    hub: Hub, fetch: Fetch, code: int
) -> None:
    repository = hub.repositories[MODEL]
    repository.gated, repository.readers = "manual", (TOKEN,)
    hub.change("whoami", status(code))

    terms = fetch(token=SecretStr(TOKEN)).record.terms

    assert (terms.gated, terms.accepted_by, terms.accepted_at) == (True, None, None)
    assert sum("whoami" in path for path in hub.asked("hub")) == 1


@pytest.mark.parametrize("token", [None, SecretStr(TOKEN)])
def test_a_repository_that_is_not_there_or_hidden_is_named(
    hub: Hub, fetch: Fetch, token: SecretStr | None
) -> None:
    hub.accounts[TOKEN] = "dr-lee"

    with pytest.raises(NotFound, match="google/none"):
        fetch(model="google/none", token=token)


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"null",
        b'{"id": "google/toy"}',
        b'{"id": "google/toy", "sha": "x", "siblings": []}',
    ],
)
def test_an_answer_that_is_none_of_a_hub_is_a_protocol_error(hub: Hub, fetch: Fetch, body: bytes) -> None:
    hub.change("api", lambda answer: setattr(answer, "body", body))

    with pytest.raises(ProtocolError):
        fetch()


def test_a_listing_of_more_than_4_mib_is_not_parsed(hub: Hub, fetch: Fetch) -> None:
    hub.change("api", lambda answer: setattr(answer, "body", b"[" + b"[]," * (4 * 2**20 // 3) + b"[]]"))

    with pytest.raises(ProtocolError, match="larger than 4 MiB"):
        fetch()


# -- what is refused before the weights ---------------------------------------------------------------------------


def _weights_sent(hub: Hub) -> int:
    return sum(count for name, count in hub.sent.items() if name.endswith(".safetensors"))


def test_another_model_under_a_known_name_is_refused_before_its_weights(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    assert known_model("google/medgemma-4b-it") is not None
    hub.add("google/medgemma-4b-it", files)

    with pytest.raises(VerificationError, match=r"config\.json.*medgemma-4b-it has"):
        fetch(model="google/medgemma-4b-it")

    assert _weights_sent(hub) == 0


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"auto_map": {"AutoModel": "modeling.Evil"}}, "auto_map"),
        ({"_attn_implementation_internal": "someone/kernel"}, "_attn_implementation_internal"),
        ({"model_type": "llama"}, "llama"),
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantised"),
    ],
)
def test_settings_that_are_refused_cost_no_weights(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], store: Store, change: dict[str, Any], said: str
) -> None:
    config = {**json.loads(files["config.json"]), **change}
    hub.add("google/bad", {**files, "config.json": json.dumps(config).encode()})

    with pytest.raises(VerificationError, match=said):
        fetch(model="google/bad")

    assert _weights_sent(hub) == 0
    assert store.list() == []


def test_an_index_that_names_an_absent_shard_costs_no_weights(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    hub.add("google/bad", {name: data for name, data in files.items() if "00002-of" not in name})

    with pytest.raises(VerificationError, match="names a shard that is not there"):
        fetch(model="google/bad")

    assert _weights_sent(hub) == 0


@pytest.mark.parametrize(("name", "mib"), [("config.json", 4), ("model.safetensors.index.json", 64)])
def test_settings_larger_than_a_snapshot_may_have_them_are_refused_by_the_listing(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], tmp_path: Path, name: str, mib: int
) -> None:
    large = files[name] + b" " * (mib * 2**20 + 1 - len(files[name]))
    hub.add("google/bad", {**files, name: large})
    hub.sent.clear()

    with pytest.raises(VerificationError, match=f"{name}: is larger than {mib} MiB"):
        fetch(model="google/bad")

    assert not any(hub.sent[each] for each in files)
    folder = tmp_path / "downloaded"
    folder.mkdir()
    for each, data in {**files, name: large}.items():
        (folder / each).write_bytes(data)
    with pytest.raises(VerificationError, match=f"{name}: is larger than {mib} MiB"):
        open_snapshot(folder)


def test_a_pickle_that_is_called_safetensors_is_refused_by_its_first_bytes(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    pickled = b"\x80\x04\x95" + bytes(4_000_000)
    hub.add("google/bad", {**files, "model-00001-of-00003.safetensors": pickled})
    hub.change("model-00001-of-00003.safetensors", lambda answer: setattr(answer, "pause_s", 0.02))

    with pytest.raises(VerificationError, match="not a safetensors file"):
        fetch(model="google/bad")

    assert _weights_sent(hub) < len(pickled)


def test_a_repository_without_safetensors_says_what_is_needed(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    hub.add("google/bad", {"config.json": files["config.json"], "pytorch_model.bin": b"\x80\x04."})

    with pytest.raises(ConfigError, match=r"\*\.safetensors"):
        fetch(model="google/bad")

    assert hub.sent["pytorch_model.bin"] == 0


def test_names_that_are_one_file_on_some_disks_are_refused(
    hub: Hub, fetch: Fetch, files: dict[str, bytes]
) -> None:
    hub.add("google/bad", {**files, "Config.json": b"{}"})

    with pytest.raises(VerificationError, match=r"differs from Config\.json"):
        fetch(model="google/bad")


@pytest.mark.parametrize(
    "name", ["../evil.json", "/etc/evil.json", "a\\b.json", "con.json", ".hidden.json", "x:y.json"]
)
def test_a_name_that_is_no_plain_file_is_never_fetched(
    hub: Hub, fetch: Fetch, files: dict[str, bytes], name: str
) -> None:
    hub.add("google/odd", {**files, name: b"{}"})

    stored = fetch(model="google/odd")

    assert hub.sent[name] == 0
    assert {path.name for path in stored.directory.iterdir()} == {*files, "manifest.json"}


@pytest.mark.parametrize(
    "repository", ["toy", "a/b/c", "google/..", "/toy", "google/", "goo gle/toy", "google/toy\n"]
)
def test_what_cannot_be_a_repository_is_refused(repository: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        HubSource(repository)


def test_the_terms_of_a_known_model_are_those_that_are_known(hub: Hub, files: dict[str, bytes]) -> None:
    known = known_model("google/medgemma-4b-it")
    assert known is not None
    hub.add(known.model_id, files, card={"license": "other", "license_name": "something-else"})

    offer = HubSource(known.model_id, endpoint=hub.endpoint).offer()
    assert offer.terms is not None
    assert (offer.terms.name, offer.terms.url) == (known.terms.name, known.terms.url)
