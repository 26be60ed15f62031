"""Sizes of memory as people write them: ``8GiB``, ``512MiB``, ``2.5GB``, or bytes."""

from __future__ import annotations

import re

from medport.errors import ConfigError

_UNITS = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"))


def parse_size(text: str, *, field: str) -> int:
    """Bytes. ``8GB`` is 8 * 10**9 of them and ``8GiB`` 8 * 2**30; a number alone is bytes.

    Raises:
        ConfigError: it is no size. Names ``field``.
    """
    from pydantic import ByteSize, TypeAdapter, ValidationError

    # pydantic takes whatever follows a unit.
    written = re.fullmatch(r"\s*\d+(\.\d+)?\s*[A-Za-z]*\s*", text)
    try:
        size = -1 if written is None else int(TypeAdapter(ByteSize).validate_python(text.strip()))
    except (ValidationError, OverflowError):
        size = -1
    if not 0 <= size < 1 << 60:
        raise ConfigError("is not a size of memory", field=field, remedy="write it as 8GiB, 512MiB or in bytes")
    return size


def format_size(size: int) -> str:
    """Three digits and a binary unit, such as ``1.50 GiB``."""
    for factor, unit in _UNITS:
        if size >= factor:
            return f"{size / factor:.3g} {unit}"
    return f"{size} B"
