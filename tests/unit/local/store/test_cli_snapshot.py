"""The commands about the store."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.snapshots import add
from typer.testing import CliRunner, Result

from medport.errors import ConfigError, NotFound
from medport_local import cli_snapshot
from medport_local.store import Store, Stored, Terms

LONG_AGO = datetime.now(UTC) - timedelta(days=100)


@pytest.fixture
def stored(store: Store, folder: Path) -> Stored:
    return add(
        store,
        folder,
        added_at=LONG_AGO,
        source="hub",
        requested="main",
        notes=("main was aaaaaaa",),
        terms=Terms(name="HAI-DEF", url="https://example.org/terms", gated=True, accepted_by="ward"),
    )


def run(store: Store, *arguments: str) -> Result:
    return CliRunner().invoke(cli_snapshot.app, [*arguments, "--store", str(store.root)])


def answer(store: Store, *arguments: str) -> Any:
    done = run(store, *arguments, "--json")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    (line,) = done.stdout.splitlines()
    return json.loads(line)


def test_list_shows_reference_hash_size_and_pins(store: Store, stored: Stored) -> None:
    store.pin("ward-3", [stored])

    shown = run(store, "list").stdout

    digest, size = stored.snapshot_sha256[:12], cli_snapshot.shown_size(stored.size_bytes)
    assert shown.splitlines() == [
        f"medport/tiny@{'a' * 40}  sha256:{digest}  {size}  {LONG_AGO:%Y-%m-%d}  pinned by ward-3"
    ]
    assert answer(store, "list")["snapshots"][0]["snapshot_sha256"] == stored.snapshot_sha256


def test_list_of_an_empty_store_says_what_to_do(store: Store) -> None:
    done = run(store, "list")

    assert (done.stdout, done.exit_code) == ("", 0)
    assert "medport snapshot pull" in done.stderr
    assert answer(store, "list") == {"snapshots": []}


def test_show_answers_which_bytes(store: Store, stored: Stored) -> None:
    shown = run(store, "show", "medport/tiny@aaaaaaa").stdout

    for entry in stored.manifest.files.values():
        assert entry.sha256 in shown
    for said in ("hub main", "main was aaaaaaa", "HAI-DEF https://example.org/terms", "by ward", "by tester"):
        assert said in shown
    told = answer(store, "show", "medport/tiny@aaaaaaa")
    assert told["files"] == {name: entry.model_dump() for name, entry in stored.manifest.files.items()}
    assert told["record"]["terms"]["accepted_by"] == "ward"


def test_show_does_not_pass_on_what_moves_a_cursor(store: Store, folder: Path) -> None:
    add(store, folder, requested="\x1b[2Jevil", notes=("a\rb",))

    shown = run(store, "show", "medport/tiny").stdout

    assert "\x1b" not in shown
    assert "\r" not in shown


def test_show_of_what_is_not_there_is_not_found(store: Store, stored: Stored) -> None:
    assert isinstance(run(store, "show", "medport/tiny@fffffff").exception, NotFound)


def test_verify_of_what_is_right_exits_with_0(store: Store, stored: Stored) -> None:
    done = run(store, "verify")

    assert done.exit_code == 0
    assert done.stdout.startswith("Sound: ")
    assert answer(store, "verify", "medport/tiny") == {
        "sound": True,
        "snapshots": 1,
        "bytes": stored.size_bytes,
        "findings": [],
    }


def test_verify_of_an_empty_store_does_not_say_that_anything_is_sound(store: Store) -> None:
    done = run(store, "verify")

    assert done.exit_code == 0
    assert done.stdout.startswith("Nothing to verify: the store holds no snapshot.")
    assert answer(store, "verify")["snapshots"] == 0


def test_name_that_is_no_utf_8_is_told_as_json(store: Store, stored: Stored) -> None:
    os.close(os.open(os.fsencode(store.root / "blobs") + b"/\xff", os.O_CREAT | os.O_WRONLY))

    (finding,) = answer(store, "verify")["findings"]

    assert os.fsencode(finding["path"]) == b"blobs/\xff"
    assert run(store, "verify").stdout.startswith("blobs/\\udcff: does not belong there")


@pytest.mark.parametrize("days", ["1e300", "inf", "nan", "-1", "36501"])
def test_days_that_are_no_number_of_days_are_a_fault_of_the_command(
    store: Store, stored: Stored, days: str
) -> None:
    done = run(store, "gc", "--yes", "--keep-days", days)

    assert (done.exit_code, type(done.exception)) == (2, SystemExit)
    assert store.list() == [stored]


def test_verify_names_file_snapshot_and_remedy_and_exits_with_1(store: Store, stored: Stored) -> None:
    shard = stored.directory / "model-00001-of-00002.safetensors"
    shard.chmod(0o600)
    shard.write_bytes(bytes(shard.stat().st_size))
    shard.chmod(0o444)

    done = run(store, "verify")

    assert done.exit_code == 1
    sha256 = stored.manifest.files[shard.name].sha256
    assert done.stdout.splitlines() == [
        f"blobs/{sha256[:2]}/{sha256}: does not hold the bytes that its name says",
        f"  needed by medport/tiny@{'a' * 40}",
        "  remedy: medport snapshot verify --repair, then pull it again",
    ]
    repaired = run(store, "verify", "--repair")
    assert repaired.exit_code == 1  # the snapshot still lacks a file
    assert "repaired: pull it again" in repaired.stdout
    assert run(store, "verify").exit_code == 1


def test_verify_that_mended_everything_exits_with_0(store: Store, stored: Stored) -> None:
    stored.directory.chmod(0o755)

    assert run(store, "verify").exit_code == 1
    assert run(store, "verify", "--repair").exit_code == 0
    assert run(store, "verify").exit_code == 0


def test_gc_lists_and_removes_nothing_until_it_is_told(store: Store, stored: Stored) -> None:
    listed = run(store, "gc")
    assert listed.stdout.splitlines()[0].startswith(f"would go: medport/tiny@{'a' * 40}")
    assert "--yes does it" in listed.stderr
    assert store.list() == [stored]

    done = run(store, "gc", "--yes")

    assert done.stdout.splitlines()[0].startswith("removed: medport/tiny")
    assert store.list() == []


def test_gc_keeps_what_came_in_the_last_30_days(store: Store, folder: Path) -> None:
    add(store, folder, added_at=datetime.now(UTC) - timedelta(days=29))

    assert "kept, recent: medport/tiny" in run(store, "gc", "--yes").stdout
    assert answer(store, "gc", "--yes", "--keep-days", "28")["snapshots"][0]["model_id"] == "medport/tiny"


def test_gc_says_what_it_keeps_and_why(store: Store, stored: Stored) -> None:
    store.pin("ward-3", [stored])

    told = answer(store, "gc", "--yes")

    assert told["removed"] is True
    assert [(each["reference"], each["why"]) for each in told["kept"]] == [(stored.reference, "pinned by ward-3")]


def test_pin_and_unpin(store: Store, stored: Stored) -> None:
    done = run(store, "pin", "ward-3", "medport/tiny@aaaaaaa", "--why", "validated")
    assert (done.exit_code, done.stdout) == (0, "")
    assert store.pins()["ward-3"].why == "validated"
    assert answer(store, "pin", "site", "medport/tiny")["snapshots"] == [stored.reference]

    assert run(store, "unpin", "ward-3").exit_code == 0

    assert store.find("medport/tiny").pinned_by == ("site",)
    assert isinstance(run(store, "unpin", "ward-3").exception, NotFound)


@pytest.mark.parametrize(
    "command", [["list"], ["show", "x"], ["verify"], ["gc"], ["pin", "a", "b"], ["unpin", "a"]]
)
def test_command_about_a_store_that_is_not_there_makes_none(tmp_path: Path, command: list[str]) -> None:
    done = CliRunner().invoke(cli_snapshot.app, [*command, "--store", str(tmp_path / "none")])

    assert isinstance(done.exception, ConfigError)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "size", [(0, "0 bytes"), (999, "999 bytes"), (8_641_000_000, "8.64 GB"), (1_500, "1.50 kB")]
)
def test_size_is_shown_as_disks_count(size: tuple[int, str]) -> None:
    assert cli_snapshot.shown_size(size[0]) == size[1]


@pytest.mark.parametrize("module", ["medport_local.store", "medport_local.cli_snapshot"])
def test_store_needs_no_torch_and_no_web_framework(module: str) -> None:
    script = f"import sys, {module}; print(*{{name.split('.')[0] for name in sys.modules}})"

    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    assert not {"torch", "transformers", "starlette", "httpx", "huggingface_hub"} & set(loaded.stdout.split())
