"""Secrets that a command takes from an environment variable: an option names the variable, never the secret."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from medport.errors import ConfigError

_A_NAME = re.compile(r"[A-Z_][A-Z0-9_]{0,63}")
"""What can be shown: nearly every variable is called like this, and hardly any secret looks like it."""


def secret_of(name: str | None, option: str, environ: Mapping[str, str] = os.environ) -> str | None:
    """What the variable holds that an option names; ``None`` if the option is not given.

    Args:
        name: of the variable. Somebody may have given the secret itself, so what is no variable is not repeated.
        option: its name, without dashes.

    Raises:
        ConfigError: there is no such variable, or it holds nothing but blanks.
    """
    if name is None:
        return None
    value = environ.get(name, "")
    if value.strip():
        return value
    if not _A_NAME.fullmatch(name):
        raise ConfigError(
            "is not the name of an environment variable that is set",
            field=option,
            remedy=f"give the variable's name, and never the secret itself: export NAME=…, --{option} NAME",
        )
    raise ConfigError(f"the environment variable {name} is not set", field=option, remedy=f"export {name}=…")
