"""What tests with the real terraform need, and what they say where it is not there."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from .wheel import WheelMissing, schema_file


def terraform_or_skip() -> str:
    """The binary; without it the test is skipped."""
    return shutil.which("terraform") or pytest.skip("terraform 1.11 or later is not on PATH")


def schema_or_skip() -> Path:
    """The schema that the stand-in serves; without it or terraform the test is skipped."""
    terraform_or_skip()
    try:
        return schema_file()
    except WheelMissing as missing:
        pytest.skip(str(missing))
