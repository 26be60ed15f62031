"""Names from outside: which become paths, and which never do."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.snapshots import manifest_of, write_small

from medport.errors import VerificationError
from medport_local.snapshot import digest_of, open_snapshot
from medport_local.snapshot_names import check_name, check_names, check_twins, is_allowed


@pytest.mark.parametrize(
    "name",
    [
        "model.safetensors",
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "chat_template.jinja",
        "tokenizer.model",
        "vision/config.json",
        "_meta/x.json",
        "LICENSE",
        "a" * 200,
    ],
)
def test_plain_name_passes(name: str) -> None:
    check_names([name])


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "../x.json",
        "a/../x.json",
        "a/..",
        "/etc/passwd",
        "//x.json",
        "a//x.json",
        "a/",
        "./a.json",
        "a\\b.json",
        "..\\x.json",
        "C:x.json",
        "c:/x.json",
        "config.json:stream",
        "x.json\0.safetensors",
        "x\n.json",
        "x\x1b[2J.json",
        " x.json",
        "x .json",
        "x.json ",
        "x.json.",
        ".hidden.json",
        "a/.git/config.json",
        "con.json",
        "a/NUL",
        "lpt1.safetensors",
        "~root.json",
        "$HOME.json",
        "*.json",
        "-rf.json",
        "cafe\u0301.json",
        "\u202egpj.nosj",
        "config.json\u200b",
        "\uff0e\uff0e/x.json",
        "x" * 201,
        "a/" * 300 + "x.json",
    ],
)
def test_name_that_is_a_trick_is_refused_and_shown_harmless(name: str) -> None:
    with pytest.raises(VerificationError) as caught:
        check_name(name)

    assert str(caught.value).isascii()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    ("names", "fault"),
    [
        (["config.json", "Config.json"], "case"),
        (["a/x.json", "A/x.json"], "case"),
        (["a", "a/x.json"], "which is a file"),
        (["A", "a/b/x.json"], "which is a file"),
        (["a/b/x.json", "a/b"], "which is a file"),
    ],
)
def test_names_that_cannot_be_beside_each_other_are_refused(names: list[str], fault: str) -> None:
    with pytest.raises(VerificationError, match=fault):
        check_names(names)


@pytest.mark.parametrize(
    "twins", [["caf\u00e9", "cafe\u0301"], ["\u212a.json", "k.json"], ["stra\u00dfe", "STRASSE"]]
)
def test_twins_in_another_unicode_form_are_refused(twins: list[str]) -> None:
    with pytest.raises(VerificationError, match="case"):
        check_twins(twins)


@pytest.mark.parametrize(
    "name", ["a.safetensors", "a.json", "a.jinja", "a.model", "merges.txt", "LICENSE", "b/NOTICE"]
)
def test_files_of_a_model_are_kept(name: str) -> None:
    assert is_allowed(name)


@pytest.mark.parametrize(
    "name",
    ["a.bin", "a.pt", "a.py", "a.pkl", "a.json.py", "a.safetensors.pkl", "a", "a.so", "a.gguf", "a.sh", "json"],
)
def test_files_that_can_hold_code_or_anything_are_not(name: str) -> None:
    assert not is_allowed(name)


@given(st.text(max_size=40) | st.text(alphabet="./\\aA:~ \0\u0301", max_size=12))
def test_name_that_passes_stays_inside_the_directory(name: str) -> None:
    try:
        check_name(name)
    except VerificationError:
        return

    root = Path("/srv/store")
    assert os.path.normpath(root / name) == str(root / name)
    assert (root / name).is_relative_to(root)
    assert name.isascii()


@given(st.lists(st.text(alphabet="aAbB/._1", min_size=1, max_size=5), max_size=6, unique=True))
def test_names_that_pass_are_as_many_files_on_every_file_system(names: list[str]) -> None:
    try:
        check_names(names)
    except VerificationError:
        return

    folded = {unicodedata.normalize("NFD", name).upper() for name in names}
    assert len(folded) == len(names)
    assert not any(one != other and one.startswith(f"{other}/") for one in folded for other in folded)


def test_directory_with_twins_is_no_snapshot(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "one")
    (folder / "Config.json").write_text("{}")
    if len(list(folder.iterdir())) < 3:
        pytest.skip("this file system has no two files whose names differ in case")

    with pytest.raises(VerificationError, match="case"):
        open_snapshot(folder)


@pytest.mark.parametrize("name", ["../outside.json", "/etc/passwd", "a\\b.json", "MODEL.safetensors"])
def test_manifest_with_a_name_that_is_a_trick_is_refused(tmp_path: Path, name: str) -> None:
    folder = write_small(tmp_path / "one")
    (tmp_path / "outside.json").write_text("{}")
    manifest = manifest_of(folder)
    files = {**manifest.files, name: manifest.files["config.json"]}
    told = manifest.model_copy(update={"files": files, "snapshot_sha256": digest_of(files)})
    (folder / "manifest.json").write_text(told.model_dump_json())

    with pytest.raises(VerificationError, match=r"plain relative path|case"):
        open_snapshot(folder)


def test_manifest_needs_no_revision(tmp_path: Path) -> None:
    folder = write_small(tmp_path / "one")
    (folder / "manifest.json").write_text(manifest_of(folder, revision=None).model_dump_json())

    snapshot = open_snapshot(folder)

    assert (snapshot.model_id, snapshot.revision) == ("medport/tiny", None)


@pytest.mark.parametrize("revision", ["main", "", "a" * 39, "A" * 40, "a" * 40 + "\n"])
def test_revision_that_is_no_commit_is_refused(tmp_path: Path, revision: str) -> None:
    folder = write_small(tmp_path / "one")
    told = manifest_of(folder).model_dump() | {"revision": revision}
    (folder / "manifest.json").write_text(json.dumps(told))

    with pytest.raises(VerificationError, match=r"manifest\.json.*revision"):
        open_snapshot(folder)
