"""One file on its way from a source into the store, with an eye on what goes by."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from medport_local.snapshot_file import FileEntry
from medport_local.sources.judging import headed
from medport_local.sources.source import Offered, Source
from medport_local.sources.whole import Whole
from medport_local.store import Intake


class Reading:
    """What ``Intake.receive`` reads a file by.

    Args:
        offered: the file.
        size_bytes: of it, if known.
        int8: for weights, whether integers may stand in them; ``None`` for other files.
        moved: told the file's name, where its bytes were gone on from, and how many more have come.
    """

    def __init__(
        self,
        source: Source,
        offered: Offered,
        size_bytes: int | None,
        *,
        int8: bool | None,
        moved: Callable[[str, int, int], None],
    ) -> None:
        self._source = source
        self._name = offered.name
        self._size_bytes = size_bytes
        self._int8 = int8
        self._moved = moved
        self._whole = Whole(offered, size_bytes) if size_bytes is not None else None
        self.is_from_start = False
        """Whether the bytes were read from the first to the last in one go."""
        self.fetched_bytes = 0

    def __call__(self, offset: int) -> Iterator[bytes]:
        """The bytes from ``offset`` on."""
        self.is_from_start = offset == 0
        pieces = self._watched(offset)
        if self._int8 is not None and offset == 0 and self._size_bytes is not None:
            return headed(pieces, self._name, self._size_bytes, int8=self._int8)
        return pieces

    def differing(self, intake: Intake, entry: FileEntry) -> str | None:
        """Which digest of the received file is not the one that its source lists; ``None`` if all are."""
        if self._whole is None:
            return None
        if not self.is_from_start:
            with intake.open(entry) as file:
                self._whole.update_from(file)
        return self._whole.differing()

    def _watched(self, offset: int) -> Iterator[bytes]:
        for piece in self._source.read(self._name, offset):
            self.fetched_bytes += len(piece)
            if self._whole is not None and self.is_from_start:
                self._whole.update(piece)
            self._moved(self._name, offset, len(piece))
            yield piece
