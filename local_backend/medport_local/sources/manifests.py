"""A ``manifest.json`` that a place holds: what its files must be."""

from __future__ import annotations

from pydantic import ValidationError

from medport_local.snapshot import MANIFEST, Manifest
from medport_local.snapshot_file import refuse


def parsed(data: bytes) -> Manifest:
    """The manifest in some bytes.

    Raises:
        VerificationError: they are none.
    """
    try:
        return Manifest.model_validate_json(data)
    except ValidationError as fault:
        place = ".".join(str(step) for step in fault.errors(include_url=False, include_input=False)[0]["loc"])
        refuse(MANIFEST, f"cannot be read as a manifest (at {place or 'its start'})")
