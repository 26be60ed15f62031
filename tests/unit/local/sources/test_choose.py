"""What a person writes, and which source is meant by it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from medport.errors import ConfigError
from medport_local.snapshot_names import check_names
from medport_local.sources import BucketSource, DirectorySource, HubSource, Offer, Pinned, source_for
from medport_local.sources.wanted import choose, is_wanted

COMMIT = "0123456789" * 4


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("text", ["google/medgemma-4b-it", "google/medgemma-4b-it@main", f"google/toy@{COMMIT}"])
def test_a_name_of_two_parts_is_a_repository(text: str) -> None:
    assert isinstance(source_for(text), HubSource)


@pytest.mark.parametrize(
    ("text", "reference"),
    [(f"google/toy@{COMMIT}", f"google/toy@{COMMIT}"), ("google/toy", None), ("google/toy@0123456", None)],
)
def test_only_a_whole_commit_is_known_without_asking(text: str, reference: str | None) -> None:
    source = source_for(text)

    assert isinstance(source, Pinned)
    assert source.reference == reference


def test_a_bucket_is_written_with_its_scheme() -> None:
    assert isinstance(source_for("gs://models/medgemma"), BucketSource)


@pytest.mark.parametrize("text", ["./google/toy", "model", "a/b/c"])
def test_a_directory_that_is_there_is_one(here: Path, text: str) -> None:
    (here / text).mkdir(parents=True)

    assert isinstance(source_for(text), DirectorySource)


def test_what_may_be_a_directory_or_a_repository_is_asked_back(here: Path) -> None:
    (here / "google/toy").mkdir(parents=True)

    with pytest.raises(ConfigError, match=r"\./google/toy"):
        source_for("google/toy")

    assert isinstance(source_for(f"google/toy@{COMMIT}"), HubSource)


@pytest.mark.parametrize(
    "text", ["", "toy", "a/b/c", "https://huggingface.co/google/toy", "google/toy@", "s3://x/y"]
)
def test_what_is_no_source_says_what_is(text: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME@COMMIT"):
        source_for(text)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("modles/medgemma/x", "modles/medgemma/x is no source"),
        ("google/toy@", "behind the @ of google/toy@"),
        ("", "is empty"),
        ("a/b\x1b[2J/c", r"a/b\\x1b\[2J/c"),
    ],
)
def test_what_is_no_source_is_shown_as_it_was_written(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        source_for(text)


def test_address_is_not_shown_beyond_its_scheme() -> None:
    with pytest.raises(ConfigError, match="https://") as raised:
        source_for("https://user:secret@hub.example/google/toy")

    assert "secret" not in str(raised.value)


def test_a_bundle_is_opened_by_whoever_can(here: Path) -> None:
    (here / "x.mpb").write_bytes(b"")
    asked = []

    class Opened:
        def offer(self) -> Offer:
            raise NotImplementedError

    def opened(file: Path, reference: str | None) -> Opened:
        asked.append((file.name, reference))
        return Opened()

    for text in ("bundle:x.mpb#google/toy", "bundle:x.mpb", "bundle:x.mpb#"):
        source_for(text, bundle=opened)  # type: ignore[arg-type]

    assert asked == [("x.mpb", "google/toy"), ("x.mpb", None), ("x.mpb", None)]
    with pytest.raises(ConfigError, match="not read here"):
        source_for("bundle:x.mpb")
    with pytest.raises(ConfigError, match="no file"):
        source_for("bundle:absent.mpb", bundle=opened)  # type: ignore[arg-type]


@given(
    st.lists(st.text(max_size=30) | st.sampled_from(["config.json", "a.model", "../x.json", "model.safetensors"]))
)
def test_every_name_is_wanted_or_left_and_only_plain_ones_are_wanted(names: list[str]) -> None:
    distinct = {name.casefold(): name for name in names}.values()

    chosen = choose([*distinct, "weights.safetensors"], field="source")

    assert {*chosen.wanted, *chosen.left} == {*distinct, "weights.safetensors"} - {"manifest.json"}
    check_names(chosen.wanted)
    assert not any("/" in name for name in chosen.wanted)
    assert all(line.isprintable() for line in chosen.said)


@pytest.mark.parametrize(
    "name", ["model.bin", "a.py", "x.safetensors.py", "model.pt", "README.md", "LICENSE", "json"]
)
def test_other_kinds_of_files_are_not_wanted(name: str) -> None:
    assert not is_wanted(name)


def test_naming_a_source_imports_no_client_of_any() -> None:
    clients = {"torch", "transformers", "huggingface_hub", "requests", "httpx", "starlette"}
    program = (
        "import sys; from medport_local.sources import source_for; source_for('gs://models/x')\n"
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )

    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert not clients & set(loaded.split())
