"""Whom this machine trusts to sign bundles: what the command says, else its environment, else ``/etc/medport``."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from medport.errors import ConfigError
from medport_local.bundle.signing import Verifier

KEY = "MEDPORT_BUNDLE_KEY"
AUTHORITY = "MEDPORT_BUNDLE_CA"
MACHINE = Path("/etc/medport")
"""Where an administrator puts ``bundle-key.pem`` or ``bundle-ca.pem`` for everybody."""


def trusted(
    *,
    key: Path | None = None,
    authorities: Sequence[Path] = (),
    signer: str | None = None,
    environ: Mapping[str, str] = os.environ,
    machine: Path = MACHINE,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Verifier | None:
    """The verifier for what is trusted; ``None`` if nobody is.

    The first place that names anybody decides alone: places are not mixed.

    Raises:
        ConfigError: a key and an authority are named at one place, a signer is named and no authority decides, or
            a file is not what it should be.
    """
    places = (
        (key, tuple(authorities)),
        (_path(environ.get(KEY)), tuple(filter(None, [_path(environ.get(AUTHORITY))]))),
        (_there(machine / "bundle-key.pem"), tuple(filter(None, [_there(machine / "bundle-ca.pem")]))),
    )
    for named_key, named_authorities in places:
        if named_key is not None or named_authorities:
            return Verifier(key=named_key, authorities=named_authorities, signer=signer, clock=clock)
    if signer is not None:
        raise ConfigError("no authority is trusted that could certify it", field="signer", remedy="give --ca ROOT")
    return None


def _path(text: str | None) -> Path | None:
    return Path(text) if text else None


def _there(path: Path) -> Path | None:
    return path if os.path.lexists(path) else None
