"""The one door to optional packages."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from types import ModuleType

from medport.errors import ConfigError


def load(module: str, *, extra: str) -> ModuleType:
    """Import an optional package, or say which extra brings it.

    Args:
        module: dotted name, such as ``"pydicom"`` or ``"pydicom.pixels"``.
        extra: the extra of the distribution that holds it, such as ``"dicom"``.

    Raises:
        ConfigError: it, or a package it needs, is not installed.
    """
    try:
        return import_module(module)
    except ModuleNotFoundError as missing:
        raise ConfigError(
            f"{missing.name or module} is not installed", remedy=f'pip install "medport[{extra}]"'
        ) from missing


@contextmanager
def importing() -> Iterator[None]:
    """Import much at once. Python looks for garbage meanwhile, and modules make none: a third faster."""
    before = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if before:
            gc.enable()
