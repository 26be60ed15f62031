"""What a person writes → the one snapshot that is meant."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from medport.errors import ConfigError, NotFound
from medport_local.store.entries import reference

if TYPE_CHECKING:
    from medport_local.store.stored import Stored

_DIGEST = re.compile(r"sha256:([0-9a-f]{12,64})")
_REVISION = re.compile(r"[0-9a-f]{7,40}")
_SHOWN = 5


def resolve(text: str, stored: Sequence[Stored]) -> Stored:
    """The snapshot that a reference means: ``MODEL_ID@COMMIT``, ``MODEL_ID`` or ``sha256:…``.

    A commit may be cut to 7 digits, a sha256 to 12, as long as only one snapshot is meant.

    Raises:
        NotFound: there is none; says what is there that looks like it.
        ConfigError: several are meant, or it is no reference.
    """
    found = [each for each in stored if _means(text, each)]
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(
            f"{_shown(text)} means {len(found)} snapshots: {_several(found)}",
            field="snapshot",
            remedy="give more digits of the commit, or sha256:…",
        )
    _refuse_malformed(text)
    near = _nearest(text, stored)
    said = f"the nearest: {', '.join(near)}" if near else "the store is empty" if not stored else ""
    raise NotFound(
        f"the store has no {_shown(text)}",
        field="snapshot",
        remedy=f"{said}; medport snapshot pull brings others"
        if said
        else "medport snapshot list shows what it has",
    )


def names_of(stored: Stored) -> list[str]:
    """Every reference by which a snapshot is known, without its sha256."""
    return [reference(stored.model_id, stored.revision), *stored.record.also]


def _means(text: str, stored: Stored) -> bool:
    if digest := _DIGEST.fullmatch(text):
        return stored.snapshot_sha256.startswith(digest[1])
    _, at, revision = text.rpartition("@")
    for name in names_of(stored):
        _, its_at, its_revision = name.rpartition("@")
        if _model(name) != _model(text):
            continue
        if not at or (its_at and _REVISION.fullmatch(revision) and its_revision.startswith(revision)):
            return True
    return False


def _refuse_malformed(text: str) -> None:
    if text.startswith("sha256:") and not _DIGEST.fullmatch(text):
        raise ConfigError("is not sha256: and 12 to 64 hex digits", field="snapshot")
    _, at, revision = text.rpartition("@")
    if at and not _REVISION.fullmatch(revision):
        raise ConfigError(
            "a branch or tag is no snapshot" if revision else "nothing stands behind the @",
            field="snapshot",
            remedy="give 7 to 40 hex digits of the commit behind the @; medport snapshot list shows them",
        )


def _nearest(text: str, stored: Sequence[Stored]) -> list[str]:
    if text.startswith("sha256:"):
        digests = [f"sha256:{each.snapshot_sha256[:12]}" for each in stored]
        return difflib.get_close_matches(text, digests, n=_SHOWN, cutoff=0.6)
    names = sorted({name for each in stored for name in names_of(each)})
    model = _model(text)
    exact = [name for name in names if model in (_model(name), _model(name).rpartition("/")[2])]
    close = difflib.get_close_matches(model, {_model(name) for name in names}, n=_SHOWN, cutoff=0.6)
    near = exact or [name for each in close for name in names if _model(name) == each]
    return [_shorter(name) for name in near[:_SHOWN]]


def _model(reference: str) -> str:
    model, at, _ = reference.rpartition("@")
    return model if at else reference


def _shorter(name: str) -> str:
    model, at, revision = name.rpartition("@")
    return f"{model}@{revision[:12]}" if at else name


def _several(found: Iterable[Stored]) -> str:
    shown = [f"{_shorter(names_of(each)[0])} (sha256:{each.snapshot_sha256[:12]})" for each in found]
    return ", ".join(shown[:_SHOWN]) + (" …" if len(shown) > _SHOWN else "")


def _shown(text: str) -> str:
    return ascii(text[:120])[1:-1]
