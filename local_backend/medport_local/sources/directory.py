"""Models in a directory of this machine, judged as ``open_snapshot`` judges it; no link is followed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from medport.errors import ConfigError
from medport_local.snapshot import MANIFEST, Snapshot, open_snapshot
from medport_local.snapshot_file import read_whole, refuse
from medport_local.sources.manifests import parsed
from medport_local.sources.source import Offer, Offered
from medport_local.sources.wanted import choose

_CHUNK_BYTES = 2**20


class DirectorySource:
    """A model directory. Its files are copied, never linked: whoever may write there could change a link's bytes.

    Args:
        directory: in Hugging Face layout. With a ``manifest.json`` it must be what that says.
        field: what to call it in errors.
    """

    def __init__(self, directory: Path, *, field: str = "source") -> None:
        self._directory = directory
        self._field = field
        self._snapshot: Snapshot | None = None

    def offer(self) -> Offer:
        """Verify the directory.

        Without a manifest every file is hashed here, and what is copied later is compared with that.

        Raises:
            ConfigError: there is no such directory, or it holds no safetensors weights.
            VerificationError: it is refused, as by ``open_snapshot``.
        """
        if not self._directory.is_dir():
            raise ConfigError(f"there is no directory {self._directory}", field=self._field)
        choose(_top_names(self._directory), field=self._field)
        snapshot = self._snapshot = open_snapshot(self._directory, defer_weights=True)
        chosen = choose(snapshot.files, field=self._field)
        manifest = None
        if os.path.lexists(self._directory / MANIFEST):
            manifest = parsed(read_whole(self._directory, MANIFEST)[0])
            if manifest.snapshot_sha256 != snapshot.snapshot_sha256:
                refuse(MANIFEST, "changed while it was read", "stop whatever writes there")
        files = {}
        for name in chosen.wanted:
            entry = snapshot.files[name]
            files[name] = Offered(
                name=name, size_bytes=entry.size_bytes, sha256=entry.sha256, version=entry.sha256
            )
        path = os.path.abspath(self._directory)
        return Offer(
            identity=f"directory {path} {snapshot.snapshot_sha256}",
            source="directory",
            model_id=snapshot.model_id,
            requested=path,
            revision=snapshot.revision,
            said=chosen.said,
            files=files,
            manifest=manifest,
        )

    def read(self, name: str, offset: int) -> Iterator[bytes]:
        """See ``Source.read``."""
        assert self._snapshot is not None
        with self._snapshot.open(name) as file:
            file.seek(offset)
            while data := file.read(_CHUNK_BYTES):
                yield data

    def close(self) -> None:
        """Nothing is held open."""


def _top_names(directory: Path) -> list[str]:
    try:
        return [entry.name for entry in os.scandir(directory)]
    except OSError as fault:
        raise ConfigError(
            f"{directory} cannot be read ({type(fault).__name__})", field="source", remedy="let this user read it"
        ) from None
