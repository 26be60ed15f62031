"""What reading a zip file raises that somebody made to be unreadable, or that came damaged."""

from __future__ import annotations

import lzma
import struct
import zipfile
import zlib

UNREADABLE: tuple[type[Exception], ...] = (
    # No archive, or cut off; a packing that is not known; an encrypted file; names and times that are none.
    OSError, EOFError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, struct.error,
    # The packings' own.
    zlib.error, lzma.LZMAError,
)  # fmt: skip
"""``zipfile`` lets through what the packings raise, and what its own fields lead to."""
