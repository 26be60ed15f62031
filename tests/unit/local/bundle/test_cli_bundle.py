"""``medport bundle``: from keys to an installed site, as it is typed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from support.bundles import META, Certifier, Keys, lock_of, wheel
from typer.testing import CliRunner, Result

from medport.errors import ConfigError, VerificationError
from medport_local import cli_bundle
from medport_local.bundle import trust
from medport_local.bundle.archive import Item, Meta, write_bundle
from medport_local.phantom import weights_dir
from medport_local.sources import DirectorySource, pull
from medport_local.store import Store

SIGLIP = weights_dir("medsiglip")


@pytest.fixture(autouse=True)
def nobody_trusted_yet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(trust, "MACHINE", tmp_path / "etc")


@pytest.fixture(autouse=True)
def removable(tmp_path: Path) -> Iterator[None]:
    yield
    for folder, _, _ in os.walk(tmp_path):
        os.chmod(folder, 0o700)


def run(*arguments: object) -> Result:
    return CliRunner().invoke(cli_bundle.app, [str(argument) for argument in arguments])


def good(*arguments: object) -> str:
    result = run(*arguments)
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.stdout


def parsed(*arguments: object) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(good(*arguments, "--json"))
    return value


@pytest.fixture
def exported(tmp_path: Path, trusted: Keys) -> Path:
    """A bundle with MedSigLIP, its lock and one wheel, made by the command."""
    store = Store(tmp_path / "there")
    pull(store, DirectorySource(SIGLIP), told=lambda line: None)
    (tmp_path / "wheels").mkdir()
    for name in ("example", "torch", "model_signing"):
        (tmp_path / "wheels" / f"{name}-1.0-py3-none-any.whl").write_bytes(wheel(name))
    (tmp_path / "medport.lock").write_text(lock_of(SIGLIP).text())
    good(
        "export", "-o", tmp_path / "site.mpb", "--store", store.root, "--lock", tmp_path / "medport.lock",
        "--wheels", tmp_path / "wheels", "--sign", trusted.private,
    )  # fmt: skip
    return tmp_path / "site.mpb"


def test_what_is_exported_is_verified_and_installed_elsewhere(
    exported: Path, trusted: Keys, tmp_path: Path
) -> None:
    verified = parsed("verify", exported, "--key", trusted.public)
    installed = parsed(
        "install", exported, "--key", trusted.public, "--store", tmp_path / "here", "--to", tmp_path / "site"
    )

    lock = lock_of(SIGLIP)
    assert verified["lock_id"] == lock.lock_id
    assert verified["signed_by"] == list(trusted.signer.names)
    assert {entry["kind"] for entry in verified["entries"]} == {"lock", "snapshot", "sbom", "wheel", "blob"}
    assert installed["installed"] is True
    assert [each.pinned_by for each in Store(tmp_path / "here").list()] == [(installed["pin"],)]
    assert [each["snapshot_sha256"] for each in installed["snapshots"]] == [
        lock.models["medsiglip"].snapshot_sha256
    ]
    assert (tmp_path / "site" / "wheels" / "example-1.0-py3-none-any.whl").read_bytes() == wheel()


def test_people_are_told_who_signed_what_it_holds_and_what_to_type_next(
    exported: Path, trusted: Keys, tmp_path: Path
) -> None:
    options = ("--key", trusted.public, "--store", tmp_path / "here", "--to", tmp_path / "site")

    listed = good("install", exported, *options, "--dry-run")
    assert not (tmp_path / "site").exists()
    assert not (tmp_path / "here").exists()
    said = good("install", exported, *options)

    assert "signed by  key sha256:" in listed
    assert "blob" in listed
    assert "copies     6." in listed
    assert said.splitlines()[-3:] == [
        f"  pip install --no-index --find-links {tmp_path}/site/wheels 'medport[local,bundle]'",
        f"  medport serve --lock {tmp_path}/site/lock/medport.lock --store {tmp_path}/here",
        f"  medport doctor --offline --bundle {tmp_path}/site --store {tmp_path}/here",
    ]


def test_verify_says_its_rate(exported: Path, trusted: Keys) -> None:
    assert "GB/s" in good("verify", exported, "--key", trusted.public)


def test_a_certificate_signs_and_its_root_verifies(tmp_path: Path) -> None:
    """At the time of the machine, as nobody gives the command a clock."""
    now = datetime.now(UTC)
    root = Certifier(tmp_path, valid=(now - timedelta(days=9), now + timedelta(days=9)))
    key, chain = root.certify("Release", valid=(now - timedelta(days=5), now + timedelta(days=5)))
    (tmp_path / "letter.txt").write_text("approved")

    good(
        "export", "-o", tmp_path / "b.mpb", "--document", tmp_path / "letter.txt",
        "--sign", key, "--certificate", chain,
    )  # fmt: skip

    assert "signed by  CN=Release, valid until" in good("verify", tmp_path / "b.mpb", "--ca", root.file)
    assert isinstance(
        run("verify", tmp_path / "b.mpb", "--ca", root.file, "--signer", "CN=Other").exception, VerificationError
    )


def test_the_environment_may_name_whom_to_trust(
    exported: Path, trusted: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert isinstance(run("verify", exported).exception, ConfigError)

    monkeypatch.setenv("MEDPORT_BUNDLE_KEY", str(trusted.public))

    assert "Verified" in good("verify", exported)


def test_an_unsigned_bundle_is_shown_only_if_told_and_never_installed(tmp_path: Path, trusted: Keys) -> None:
    (tmp_path / "letter.txt").write_text("approved")
    file = tmp_path / "b.mpb"
    good("export", "-o", file, "--document", tmp_path / "letter.txt", "--unsigned")

    shown = good("verify", file, "--unsigned-ok")

    assert "NOBODY" in shown
    assert "NOT VERIFIED" in shown
    assert isinstance(run("verify", file).exception, ConfigError)
    assert isinstance(run("verify", file, "--key", trusted.public).exception, VerificationError)
    refused = run("install", file, "--key", trusted.public, "--to", tmp_path / "s", "--store", tmp_path / "t")
    assert isinstance(refused.exception, VerificationError)
    assert run("install", file, "--unsigned-ok").exit_code == 2


def test_an_export_is_signed_or_said_to_be_unsigned(tmp_path: Path, trusted: Keys) -> None:
    (tmp_path / "letter.txt").write_text("approved")
    options = ("export", "-o", tmp_path / "b.mpb", "--document", tmp_path / "letter.txt")

    assert isinstance(run(*options).exception, ConfigError)
    assert isinstance(run(*options, "--unsigned", "--sign", trusted.private).exception, ConfigError)
    assert not (tmp_path / "b.mpb").exists()


def test_a_name_that_is_taken_is_said_before_anything_is_gathered(
    tmp_path: Path, trusted: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "b.mpb").write_text("precious")
    options = ("export", "-o", tmp_path / "b.mpb", "--document", tmp_path / "absent", "--sign", trusted.private)

    taken, missing = run(*options), run(*options, "--replace")

    assert "there already" in str(taken.exception)
    assert isinstance(missing.exception, VerificationError)
    assert (tmp_path / "b.mpb").read_text() == "precious"


def test_keys_are_made_shown_by_their_fingerprint_and_used_with_a_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BUNDLE_PASSWORD", "secret")
    (tmp_path / "letter.txt").write_text("approved")
    made = parsed("keygen", tmp_path / "key.pem", tmp_path / "pub.pem", "--password-env", "BUNDLE_PASSWORD")

    options = (
        "export",
        "-o",
        tmp_path / "b.mpb",
        "--document",
        tmp_path / "letter.txt",
        "--sign",
        tmp_path / "key.pem",
    )
    assert isinstance(run(*options).exception, ConfigError)
    good(*options, "--password-env", "BUNDLE_PASSWORD")

    said = parsed("verify", tmp_path / "b.mpb", "--key", tmp_path / "pub.pem")
    assert said["key_sha256"] == made["key_sha256"]
    assert isinstance(run(*options, "--password-env", "ABSENT").exception, ConfigError)


@pytest.mark.parametrize("given", ["hunter2!", "my password", "hf_abc/def", "1st", ""])
def test_a_password_in_place_of_its_variables_name_is_not_repeated(tmp_path: Path, given: str) -> None:
    fault = run("keygen", tmp_path / "k", tmp_path / "p", "--password-env", given).exception

    assert isinstance(fault, ConfigError)
    assert fault.field == "password-env"
    assert not given or given not in str(fault)


def test_a_word_that_could_be_a_variable_is_not_repeated_either(tmp_path: Path) -> None:
    fault = run("keygen", tmp_path / "k", tmp_path / "p", "--password-env", "correcthorse").exception

    assert isinstance(fault, ConfigError)
    assert "correcthorse" not in str(fault)


def test_an_older_bundle_is_installed_only_if_told(exported: Path, trusted: Keys, tmp_path: Path) -> None:
    parts = [Item("documents/a", "document", b"")]
    at = datetime(2020, 1, 1, tzinfo=UTC)
    write_bundle(tmp_path / "old.mpb", parts, meta=Meta(created_at=at, medport="0"), signer=trusted.signer)
    options = ("--key", trusted.public, "--store", tmp_path / "here", "--to", tmp_path / "site")
    good("install", exported, *options)

    fault = run("install", tmp_path / "old.mpb", *options).exception

    assert isinstance(fault, ConfigError)
    assert "--older" in str(fault)
    assert (tmp_path / "site" / "wheels").is_dir()
    assert "OLDER" in good("install", tmp_path / "old.mpb", *options, "--older")


def test_a_bundle_of_another_signer_is_installed_only_if_told(
    exported: Path, trusted: Keys, stranger: Keys, tmp_path: Path
) -> None:
    at = datetime.now(UTC) + timedelta(days=1)
    write_bundle(
        tmp_path / "other.mpb", [Item("documents/a", "document", b"")],
        meta=Meta(created_at=at, medport="0"), signer=stranger.signer,
    )  # fmt: skip
    places = ("--store", tmp_path / "here", "--to", tmp_path / "site")
    good("install", exported, "--key", trusted.public, *places)

    fault = run("install", tmp_path / "other.mpb", "--key", stranger.public, *places).exception

    assert isinstance(fault, ConfigError)
    assert "--other-signer" in str(fault)
    good("install", tmp_path / "other.mpb", "--key", stranger.public, *places, "--other-signer")


def test_help_names_the_files_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")

    said = good("verify", "--help")

    assert "/etc/medport/bundle-ca.pem" in said
    assert "/etc/medport/bundle-key.pem" in said


def test_a_name_from_a_bundle_cannot_move_the_cursor(tmp_path: Path, trusted: Keys) -> None:
    """The version is the only free text that verify prints of a manifest."""
    meta = type(META)(created_at=META.created_at, medport="0.1\x1b[2J")
    write_bundle(tmp_path / "b.mpb", [Item("documents/a", "document", b"")], meta=meta, signer=trusted.signer)

    assert "\x1b" not in good("verify", tmp_path / "b.mpb", "--key", trusted.public)


def test_the_commands_need_neither_torch_nor_a_web_framework(exported: Path, trusted: Keys) -> None:
    code = (
        "import sys; from medport_local.cli_bundle import app\n"
        "assert not {'torch', 'pydantic', 'model_signing', 'cryptography'} & set(sys.modules)\n"
        "app(sys.argv[1:], standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'starlette'} & set(sys.modules)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", code, "verify", exported, "--key", trusted.public], capture_output=True, text=True
    )

    assert done.returncode == 0, done.stderr
