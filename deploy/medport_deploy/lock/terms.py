"""The terms on which models are given out, who accepted them, and whether that still holds.

Nobody accepts terms but a person: by an id under ``accept_terms``, which is never filled in. What was accepted is
the text with a certain sha256. Where the terms' hash is another later, they are asked for again.
"""

from __future__ import annotations

import difflib
import getpass
import hashlib
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from medport.errors import ConfigError, PolicyError
from medport.lock import Sha256

_ID = re.compile(r"[^a-z0-9.]+")


@dataclass(frozen=True, slots=True)
class Terms:
    """The terms of one model."""

    id: str
    """Under which ``accept_terms`` names them."""
    name: str
    url: str
    gated: bool
    """Whether somebody must accept them."""
    version: str = ""
    """Where there is no text to hash."""
    text_sha256: str | None = None
    """Of the licence's text, where the model comes with it."""

    @property
    def sha256(self) -> str:
        """What is accepted: the text's hash, else that of address and version."""
        said = f"{self.url}\n{self.version}"
        return self.text_sha256 or hashlib.sha256(said.encode()).hexdigest()


class Accepted(BaseModel):
    """Who accepted terms, when, and which."""

    model_config = ConfigDict(extra="allow", frozen=True)

    accepted_by: str
    accepted_at: str
    """UTC, ISO 8601."""
    sha256: Sha256
    """As ``Terms.sha256``."""
    url: str | None = None


HAI_DEF = Terms(
    id="hai-def",
    name="Health AI Developer Foundations Terms of Use",
    url="https://developers.google.com/health-ai-developer-foundations/terms",
    gated=True,
    version="2026-11",
)
"""Of MedGemma and MedSigLIP. Source: Google, Health AI Developer Foundations. ``version`` is the month for which
this program speaks of them: raise it when the text changes, and everybody is asked again."""
_OURS = re.compile(r"google/(medgemma|medsiglip)-.+", re.IGNORECASE)


def known(model_id: str) -> Terms | None:
    """The terms of a published model; ``None`` for all others."""
    return HAI_DEF if _OURS.fullmatch(model_id) else None


def stated(name: str, url: str, *, gated: bool, text_sha256: str | None) -> Terms:
    """Terms as a model's own page states them. Their id is their name in small letters and hyphens."""
    return Terms(_ID.sub("-", name.lower()).strip("-") or "unnamed", name, url, gated, text_sha256=text_sha256)


def of_lock(model_id: str, said: Mapping[str, Any] | None) -> Terms | None:
    """The terms that a lock or the record of a store states; ``None`` where they state none.

    Args:
        said: by the names of ``medport.lock.Terms``.
    """
    plain = known(model_id)
    if plain is not None or not said or (not said.get("gated") and said.get("name") in (None, "", "not stated")):
        return plain
    return stated(
        str(said.get("name") or "not stated"),
        str(said.get("url") or ""),
        gated=bool(said.get("gated")),
        text_sha256=said.get("licence_sha256"),
    )


def accepted(
    terms: Mapping[str, Terms],
    accept: Collection[str],
    *,
    previous: Mapping[str, Accepted],
    again: Collection[str] = (),
    by: str,
    now: datetime,
) -> dict[str, Accepted]:
    """Who accepted the terms of each model, newly or before.

    Args:
        terms: by the model's name in the specification.
        accept: the ids under ``accept_terms``.
        previous: from the lock that is there.
        again: ids of terms that changed since, and that are accepted in their new form.
        by: who accepts what was not accepted before.

    Raises:
        ConfigError: an id is that of no terms.
        PolicyError: terms must be accepted and are not named, changed and are not in ``again``, or nobody accepts
            them.
    """
    ids = {each.id for each in terms.values()}
    _check_known(again, ids, field="--accept")
    # Those of a model that was taken out, or that another mirror does not state, are terms all the same.
    _check_known(accept, ids | {HAI_DEF.id, *previous}, field="accept_terms")
    found: dict[str, Accepted] = {}
    for name, each in terms.items():
        if each.id in found or not (each.gated or each.id in accept):
            continue
        if each.id not in accept:
            raise PolicyError(
                f"the terms of models.{name} are not accepted: {each.name}, {each.url}",
                field="accept_terms",
                remedy=f"read them; then write {each.id} under accept_terms",
            )
        before = previous.get(each.id)
        if before is not None and before.sha256 == each.sha256:
            found[each.id] = before
            continue
        if before is not None and each.id not in again:
            raise PolicyError(
                f"the terms {each.id} are no longer those that {before.accepted_by} accepted: {each.url}",
                field="accept_terms",
                remedy=f"read them again; then: medport deploy lock --accept {each.id}",
            )
        if not by:
            raise PolicyError(
                f"nobody accepts the terms {each.id}",
                field="accept_terms",
                remedy="say who: medport deploy lock --accepted-by NAME",
            )
        at = now.astimezone(UTC).isoformat(timespec="seconds")
        found[each.id] = Accepted(accepted_by=by, accepted_at=at, sha256=each.sha256, url=each.url)
    return found


def _check_known(named: Collection[str], ids: Collection[str], *, field: str) -> None:
    for each in named:
        if each not in ids:
            near = difflib.get_close_matches(each, ids, n=1)
            raise ConfigError(
                f"{each!a:.100} is the id of no terms of these models",
                field=field,
                remedy=f"did you mean {near[0]}?" if near else "take it out",
            )


def this_user() -> str:
    """The name of the system's user; empty where it has none."""
    try:
        return getpass.getuser()
    except (OSError, KeyError, ImportError):
        return ""


def changed(terms: Mapping[str, Terms], previous: Mapping[str, Accepted]) -> list[str]:
    """Ids of terms that were accepted before in another form, sorted: what to show a person before he locks."""
    return sorted(
        {each.id for each in terms.values() if each.id in previous and previous[each.id].sha256 != each.sha256}
    )
