"""Labels: a resource's own, those with the provider's defaults, and all that the service has.

Labels of other owners stay and cause no change; our own that the configuration no longer names go.
"""

from __future__ import annotations

from typing import Any

from .schema import Block
from .values import UNKNOWN, holds_unknown

Json = dict[str, Any]
ATTRIBUTION = {"goog-terraform-provisioned": "true"}


def planned(block: Block, value: Json, prior: Json | None, provider: Json) -> Json:
    """What the three maps will be, to be merged into a planned value."""
    if "effective_labels" not in block.attributes:
        return {}
    own = value.get("labels")
    if holds_unknown(own):
        return {"terraform_labels": UNKNOWN, "effective_labels": UNKNOWN}
    ours = {**(provider.get("default_labels") or {}), **(own or {})}
    if provider.get("add_terraform_attribution_label") is not False:
        ours = {**ATTRIBUTION, **ours}
    before = prior or {}
    were_ours = before.get("terraform_labels") or {}
    foreign = {key: text for key, text in (before.get("effective_labels") or {}).items() if key not in were_ours}
    return {"terraform_labels": ours, "effective_labels": {**foreign, **ours}}


def read(block: Block, found: dict[str, str], prior: Json) -> Json:
    """What the three maps are, by what the service has and the state knew."""
    if "effective_labels" not in block.attributes:
        return {}
    known = {name: {key: found[key] for key in prior.get(name) or {} if key in found} for name in _OURS}
    own = known["labels"] if known["labels"] or prior.get("labels") is not None else None
    return {"labels": own, "terraform_labels": known["terraform_labels"], "effective_labels": found}


_OURS = ("labels", "terraform_labels")
