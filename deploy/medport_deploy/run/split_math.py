"""How the traffic of an endpoint is shared out when a deployed model comes or goes. Pure; whole percents."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

NEW = "0"
"""Stands in a call that deploys for the model it deploys. Source: Vertex AI, DeployModelRequest.traffic_split."""


def with_new(split: Mapping[str, int], share: int = 0) -> dict[str, int]:
    """The split that a deployment asks for.

    Args:
        split: as it is; empty: an endpoint without traffic, whose first model gets all of it.
        share: of the new model.
    """
    if not split:
        return {NEW: 100}
    return {**scaled(split, 100 - share), NEW: share}


def without(split: Mapping[str, int], gone: str, others: Sequence[str]) -> dict[str, int] | None:
    """The split when a deployed model goes; ``None`` if it does not change, or nobody is left.

    Args:
        others: ids of those that stay. If none of them has traffic, the first gets all.
    """
    if not split.get(gone) or not others:
        return None
    rest = {id_: share for id_, share in split.items() if id_ in others and share}
    return scaled(rest, 100) if rest else {others[0]: 100}


def possible(split: Mapping[str, int], there: Collection[str]) -> bool:
    """Whether all that have a share are deployed."""
    return all(id_ in there for id_, share in split.items() if share)


def scaled(split: Mapping[str, int], total: int) -> dict[str, int]:
    """The same proportions with another sum, by the method of largest remainders; without shares of zero."""
    whole = sum(split.values())
    parts = {id_: share * total // whole for id_, share in split.items()} if whole else {}
    by_remainder = sorted(parts, key=lambda id_: (-(split[id_] * total % whole), id_))
    for id_ in by_remainder[: total - sum(parts.values())]:
        parts[id_] += 1
    return {id_: share for id_, share in parts.items() if share}
