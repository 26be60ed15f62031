"""Whom a machine trusts: what is said wins over the environment, and that over the machine."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.bundles import NOW, Certifier, Keys

from medport.errors import ConfigError, VerificationError
from medport_local.bundle.signing import Signer, Verifier
from medport_local.bundle.trust import AUTHORITY, KEY
from medport_local.bundle.trust import trusted as trust

DATA = b"{}"


def takes(verifier: Verifier | None, signer: Signer) -> bool:
    assert verifier is not None
    try:
        verifier.verify(DATA, signer.sign(DATA))
    except VerificationError:
        return False
    return True


def test_nobody_is_trusted_where_nobody_is_named(tmp_path: Path) -> None:
    assert trust(environ={}, machine=tmp_path) is None
    assert trust(environ={KEY: "", AUTHORITY: ""}, machine=tmp_path) is None


def test_what_is_said_wins_over_the_environment_and_that_over_the_machine(
    tmp_path: Path, trusted: Keys, stranger: Keys
) -> None:
    shutil.copy(trusted.public, tmp_path / "bundle-key.pem")
    other = {KEY: str(stranger.public)}

    assert takes(trust(environ={}, machine=tmp_path), trusted.signer)
    assert takes(trust(environ=other, machine=tmp_path), stranger.signer)
    assert not takes(trust(environ=other, machine=tmp_path), trusted.signer)
    assert takes(trust(key=trusted.public, environ=other, machine=tmp_path), trusted.signer)
    assert not takes(trust(key=trusted.public, environ=other, machine=tmp_path), stranger.signer)


@pytest.mark.parametrize("place", ["said", "environment", "machine"])
def test_an_authority_is_trusted_from_each_place(tmp_path: Path, place: str) -> None:
    (tmp_path / "ca").mkdir()
    root = Certifier(tmp_path / "ca")
    key, chain = root.certify("Release")
    if place == "machine":
        shutil.copy(root.file, tmp_path / "bundle-ca.pem")

    verifier = trust(
        authorities=[root.file] if place == "said" else (),
        environ={AUTHORITY: str(root.file)} if place == "environment" else {},
        machine=tmp_path,
        clock=lambda: NOW,
    )

    assert takes(verifier, Signer(key, certificate=chain, clock=lambda: NOW))


def test_a_key_and_an_authority_at_one_place_are_a_contradiction(tmp_path: Path, trusted: Keys) -> None:
    environ = {KEY: str(trusted.public), AUTHORITY: str(trusted.public)}

    with pytest.raises(ConfigError, match="public key"):
        trust(environ=environ, machine=tmp_path)


def test_a_key_that_is_named_and_missing_does_not_fall_back(tmp_path: Path, trusted: Keys) -> None:
    (tmp_path / "bundle-key.pem").symlink_to(tmp_path / "gone")

    with pytest.raises(ConfigError, match="cannot be read"):
        trust(environ={KEY: str(tmp_path / "absent")}, machine=tmp_path)
    with pytest.raises(ConfigError, match="cannot be read"):
        trust(environ={}, machine=tmp_path)


@pytest.mark.parametrize("place", ["said", "environment", "machine", "nowhere"])
def test_signer_that_cannot_be_compared_is_refused_and_not_passed_over(
    tmp_path: Path, trusted: Keys, place: str
) -> None:
    if place == "machine":
        shutil.copy(trusted.public, tmp_path / "bundle-key.pem")

    with pytest.raises(ConfigError) as caught:
        trust(
            key=trusted.public if place == "said" else None,
            signer="CN=Release",
            environ={KEY: str(trusted.public)} if place == "environment" else {},
            machine=tmp_path,
        )

    assert caught.value.field == "signer"
