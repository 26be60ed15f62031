"""A site that bundles are installed into, and the bundles for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from medport_local.bundle import install as installing
from medport_local.bundle.archive import Bundle, Item, Meta, write_bundle
from medport_local.bundle.install import Installed, Plan
from medport_local.phantom import weights_dir
from support.bundles import NOW, Keys, lock_of, snapshot_items, wheel

GEMMA, SIGLIP = weights_dir("medgemma"), weights_dir("medsiglip")
LOCK = lock_of(GEMMA, SIGLIP)
OTHERS = [
    Item("wheels/example-1.0-py3-none-any.whl", "wheel", wheel()),
    Item("documents/Freigabe Übersicht.txt", "document", b"approved"),
]


def meta(at: datetime = NOW, lock_id: str | None = LOCK.lock_id) -> Meta:
    return Meta(created_at=at, medport="0.1.0", lock_id=lock_id)


def items() -> list[Item]:
    return [*snapshot_items(GEMMA), *snapshot_items(SIGLIP), *OTHERS, lock_item()]


def lock_item() -> Item:
    return Item("lock/medport.lock", "lock", LOCK.text().encode())


class Place:
    """A store and a directory of one site."""

    def __init__(self, root: Path, keys: Keys) -> None:
        self.root, self.keys = root, keys
        self.store, self.to = root / "store", root / "site"

    def plan(self, bundle: Bundle, **allowed: bool) -> Plan:
        return installing.plan(bundle, store_root=self.store, to=self.to, now=NOW, **allowed)

    def install(self, file: Path, told: Callable[[int], None] = lambda _: None) -> Installed:
        with Bundle.open(file, self.keys.verifier) as bundle:
            return installing.install(self.plan(bundle), told=told, now=NOW)

    def put(self, text: str, at: datetime = NOW) -> Installed:
        """Install a bundle of one document."""
        file = self.root / "put.mpb"
        parts = [Item("documents/x", "document", text.encode())]
        write_bundle(file, parts, meta=meta(at, None), signer=self.keys.signer, replace=True)
        try:
            with Bundle.open(file, self.keys.verifier) as bundle:
                return installing.install(self.plan(bundle))  # by the clock: no two receipts are the same
        finally:
            file.unlink()

    def shown(self) -> dict[str, str]:
        """What the document says in each directory beside the site."""
        found = {path.name: path / "documents/x" for path in self.root.iterdir()}
        return {name: path.read_text() for name, path in found.items() if path.is_file()}

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.root).as_posix(): path.read_bytes()
            for path in sorted(self.root.rglob("*"))
            if path.is_file() and "/locks/" not in path.as_posix() and not path.name.endswith(".lock.")
        }
