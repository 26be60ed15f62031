"""``medport snapshot lock``: what gets into a lock, and what it does to one that is there."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer
from support.snapshots import add, write_snapshot
from typer.testing import CliRunner, Result

from medport import lock as locks
from medport.errors import ConfigError, NotFound, VerificationError
from medport_local import cli
from medport_local.snapshot import open_snapshot
from medport_local.store import Store, Stored, Terms

Run = Callable[..., Result]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def pinned(store: Store, tmp_path: Path) -> Stored:
    terms = Terms(name="HAI-DEF", url="https://terms.example", gated=True, accepted_by="kim")
    return add(store, write_snapshot(tmp_path / "one"), terms=terms)


@pytest.fixture
def unpinned(store: Store, tmp_path: Path) -> Stored:
    return add(store, write_snapshot(tmp_path / "two", seed=2), repo_id="medport/other", revision=None)


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "medport.lock"


@pytest.fixture
def run(store: Store, out: Path) -> Run:
    """The command; an error of ours comes out as it is."""
    app = typer.Typer()
    cli.register(app)

    def call(*arguments: str) -> Result:
        done = CliRunner().invoke(
            app,
            ["snapshot", "lock", *arguments, "--store", str(store.root), "-o", str(out)],
            standalone_mode=False,
        )
        if done.exception is not None:
            raise done.exception
        return done

    return call


def test_lock_holds_all_that_a_snapshot_is(run: Run, pinned: Stored, out: Path) -> None:
    run("medport/tiny@aaaaaaa")

    made = locks.read(out).models["medgemma"]
    snapshot = open_snapshot(pinned.directory)
    assert (made.model_id, made.revision, made.family) == ("medport/tiny", "a" * 40, "medgemma")
    assert made.snapshot_sha256 == snapshot.snapshot_sha256
    assert {name: file.model_dump() for name, file in made.files.items()} == {
        name: entry.model_dump() for name, entry in snapshot.files.items()
    }
    assert made.terms is not None
    assert (made.terms.name, made.terms.accepted_by) == ("HAI-DEF", "kim")


def test_line_of_json_names_the_lock(run: Run, pinned: Stored, out: Path) -> None:
    said = json.loads(run("medport/tiny", "--json").stdout)

    assert said["lock_id"] == locks.read(out).lock_id
    assert said["written"] is True
    assert said["models"]["medgemma"]["reference"] == "medport/tiny@" + "a" * 40


def test_same_lock_again_is_not_written(run: Run, pinned: Stored, out: Path) -> None:
    run("medport/tiny")
    before = out.stat().st_mtime_ns

    again = json.loads(run("medport/tiny", "--json").stdout)

    assert again["written"] is False
    assert out.stat().st_mtime_ns == before


def test_snapshot_without_a_commit_is_locked_only_when_it_is_asked_for(
    run: Run, unpinned: Stored, out: Path
) -> None:
    with pytest.raises(ConfigError, match="has no commit") as fault:
        run("medport/other")
    assert "--allow-unpinned" in (fault.value.remedy or "")
    assert not out.exists()

    run("medport/other", "--allow-unpinned")

    assert locks.read(out).models["medgemma"].revision is None


def test_two_of_a_family_need_names(run: Run, pinned: Stored, unpinned: Stored, out: Path) -> None:
    with pytest.raises(ConfigError, match="two snapshots would be called medgemma"):
        run("medport/tiny", "medport/other", "--allow-unpinned")

    run("a=medport/tiny", "b=medport/other", "--allow-unpinned")

    assert set(locks.read(out).models) == {"a", "b"}


def test_branch_is_no_reference(run: Run, pinned: Stored) -> None:
    with pytest.raises(ConfigError, match="a branch or tag is no snapshot"):
        run("medport/tiny@main")


def test_what_is_not_in_the_store_cannot_be_locked(run: Run, pinned: Stored, out: Path) -> None:
    with pytest.raises(NotFound):
        run("google/medgemma-4b-it")

    assert not out.exists()


def test_damaged_snapshot_is_not_locked(run: Run, pinned: Stored, out: Path) -> None:
    shard = pinned.directory / "model-00001-of-00002.safetensors"
    shard.chmod(0o644)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)

    with pytest.raises(VerificationError, match="hash"):
        run("medport/tiny")

    assert not out.exists()


def test_lock_that_says_something_else_is_replaced_only_when_it_is_asked_for(
    run: Run, pinned: Stored, unpinned: Stored, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run("medport/tiny")
    before = locks.read(out)

    with pytest.raises(ConfigError, match="says something else"):
        run("medport/other", "--allow-unpinned")
    assert locks.read(out) == before

    run("medport/other", "--allow-unpinned", "--replace")

    assert locks.read(out).models["medgemma"].model_id == "medport/other"


def test_keys_and_images_that_are_there_are_kept(run: Run, pinned: Stored, out: Path) -> None:
    image = {"uri": "registry.example/serving", "digest": "sha256:" + "b" * 64}
    out.write_text(json.dumps({"version": 1, "providers": {"google": "7.1"}, "images": {"serving": image}}))

    run("medport/tiny", "--replace", "--image", f"other=registry.example/x@sha256:{'c' * 64}")

    said: dict[str, Any] = json.loads(out.read_text())
    assert said["providers"] == {"google": "7.1"}
    assert said["images"]["serving"] == image
    assert said["images"]["other"] == {"uri": "registry.example/x", "digest": "sha256:" + "c" * 64}


@pytest.mark.parametrize(
    "image", ["serving=registry.example/x:latest", "registry.example/x", "serving=x@sha256:12"]
)
def test_image_without_a_digest_is_refused(run: Run, pinned: Stored, image: str) -> None:
    with pytest.raises(ConfigError) as fault:
        run("medport/tiny", "--image", image)

    assert fault.value.field == "image"


def test_name_that_no_lock_may_hold_is_refused_before_it_is_written(run: Run, pinned: Stored, out: Path) -> None:
    with pytest.raises(ConfigError):
        run("medport/tiny", "--image", f"bad name=x@sha256:{'c' * 64}")

    assert not out.exists()
