"""A control plane for the tests of its calls."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.planes import Standing, standing


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Standing]:
    """Over a real state, with no engines: it has the endpoint ``e`` and the model ``m``."""
    with standing(tmp_path) as made:
        made.endpoint()
        made.model()
        yield made
