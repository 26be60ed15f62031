"""The allow-list: which files of a place are a model's. The others are never fetched."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from medport.errors import ConfigError, VerificationError
from medport_local.snapshot import MANIFEST
from medport_local.snapshot_names import check_name, check_names

WEIGHTS = ".safetensors"
_KINDS = (WEIGHTS, ".json", ".jinja", ".model")
_SHOWN = 5
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Chosen:
    """The names of a place, sorted out."""

    wanted: tuple[str, ...]
    left: tuple[str, ...]
    """What is not a model's file, whatever it is."""

    @property
    def said(self) -> tuple[str, ...]:
        """One line about what is left, if anything is."""
        return (f"left where it is, as no part of the model: {shown(self.left)}",) if self.left else ()


def choose(names: Iterable[str], *, field: str) -> Chosen:
    """Sort the names of a place by whether they are a model's files; ``manifest.json`` is neither.

    Only names without a folder are: what lies deeper is another model, or an older one.

    Args:
        field: what the place was given as, for errors.

    Raises:
        ConfigError: there are no safetensors weights.
        VerificationError: two names are one file on some disks.
    """
    every = sorted(set(names) - {MANIFEST})
    wanted = tuple(name for name in every if is_wanted(name))
    check_names((MANIFEST, *wanted))
    if not any(name.endswith(WEIGHTS) for name in wanted):
        raise ConfigError(
            "holds no *.safetensors",
            field=field,
            remedy="name the place that holds config.json and the weights as *.safetensors; "
            "other kinds of weights can run code, and are never loaded",
        )
    return Chosen(wanted, tuple(name for name in every if not is_wanted(name)))


def is_wanted(name: str) -> bool:
    """Whether a file of this name may be part of a model."""
    if "/" in name or not name.endswith(_KINDS):
        return False
    try:
        check_name(name)
    except VerificationError:
        return False
    return True


def shown(names: tuple[str, ...]) -> str:
    """The first of some names, which come from outside, as a terminal may show them."""
    first = ", ".join(_printable(name) for name in names[:_SHOWN])
    rest = len(names) - _SHOWN
    return f"{first} and {rest} more" if rest > 0 else first


def _printable(name: str) -> str:
    plain = name if name.isprintable() else ascii(name)
    return plain if len(plain) <= _SHOWN_CHARACTERS else plain[:_SHOWN_CHARACTERS] + "…"
