"""The names of LoRA adapters, as callers write them behind a model's. No torch."""

from __future__ import annotations

import re

from medport.errors import ConfigError, InputError

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}\Z")


def parse_model(text: str) -> tuple[str, str | None]:
    """``base+adapter`` → base and adapter; ``None`` where the base alone is asked for.

    Raises:
        InputError: what follows the ``+`` is not the name of an adapter. Names ``model``.
    """
    base, plus, adapter = text.partition("+")
    if not plus:
        return text, None
    if not _NAME.match(adapter):
        raise InputError(
            "what follows the + is not the name of an adapter",
            field="model",
            remedy="write base+adapter, the adapter in lower case as the server lists it, or the base alone",
        )
    return base, adapter


def check_name(name: str) -> str:
    """The name, if an adapter can have it.

    Raises:
        ConfigError: it cannot.
    """
    if not _NAME.match(name):
        raise ConfigError(
            "an adapter cannot have this name",
            field="adapter",
            remedy="use up to 63 of a-z, 0-9, dot, dash and underscore, a letter or digit first: NAME=DIRECTORY",
        )
    return name
