"""Key pairs, and one small bundle signed with one of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.bundle_site import Place, items, meta
from support.bundles import META, Keys

from medport_local.bundle.archive import Item, write_bundle


@pytest.fixture(scope="session")
def trusted(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys.make(tmp_path_factory.mktemp("trusted"))


@pytest.fixture(scope="session")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    """Whom nobody here trusts."""
    return Keys.make(tmp_path_factory.mktemp("stranger"))


@pytest.fixture
def small(tmp_path: Path, trusted: Keys) -> Path:
    """A bundle of two documents, one of them with a name that needs a pax header."""
    items = [
        Item("documents/letter.txt", "document", b"Approved.\n"),
        Item("documents/Übersicht.txt", "document", b"x" * 513),
    ]
    write_bundle(tmp_path / "small.mpb", items, meta=META, signer=trusted.signer)
    return tmp_path / "small.mpb"


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, trusted: Keys) -> Path:
    """Both phantoms, their lock, a wheel and a document."""
    target = tmp_path_factory.mktemp("whole") / "site.mpb"
    write_bundle(target, items(), meta=meta(), signer=trusted.signer)
    return target


@pytest.fixture
def place(tmp_path: Path, trusted: Keys) -> Iterator[Place]:
    made = Place(tmp_path / "root", trusted)
    made.root.mkdir()
    yield made
    for folder, _, _ in os.walk(made.root):
        os.chmod(folder, 0o700)
