"""Key pairs, and one small bundle signed with one of them."""

from __future__ import annotations

from pathlib import Path

import pytest
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
