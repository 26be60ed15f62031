"""How an endpoint's traffic is shared out: maps of deployed model id to percent, checked and worked out. Pure.

The rules are Vertex's. A split holds whole percents that add up to 100, or nothing: no model gets traffic. Shares
of zero are dropped.

Source: Vertex AI REST reference, Endpoint.trafficSplit, endpoints.deployModel, endpoints.undeployModel.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from medport.errors import Conflict, InputError, PreconditionFailed

Split = dict[str, int]
NEW = "0"
"""Stands in a request to deploy for the model that it deploys."""


def check(split: Mapping[str, int], ids: Collection[str], *, field: str = "traffic_split") -> Split:
    """The split as it is kept.

    Args:
        ids: of the models that are deployed.

    Raises:
        InputError: a share is not a whole percent, an id is not deployed, or the sum is not 100.
    """
    for id_, share in split.items():
        if isinstance(share, bool) or not isinstance(share, int) or not 0 <= share <= 100:
            raise InputError(
                f"the share of {id_:.40} is not a whole percent", field=field, remedy="give 0 to 100 for each id"
            )
        # A share of zero may name one that is gone: clients send back what they read.
        if share and id_ not in ids:
            known = ", ".join(sorted(ids)) or "none"
            raise InputError(f"{id_:.40} is not deployed here", field=field, remedy=f"deployed are: {known}")
    total = sum(split.values())
    if split and total != 100:
        raise InputError(f"the shares add up to {total}", field=field, remedy="let them add up to 100")
    return {id_: share for id_, share in split.items() if share}


def asked_with_new(
    split: Mapping[str, int], new: str, ids: Collection[str], present: Mapping[str, int]
) -> Split | None:
    """What a request to deploy wants the split to be, the new model under its own id; ``None``: it does not say.

    Where there is no traffic yet, ``{"0": 0}`` deploys a first model without any.

    Raises:
        InputError: as ``check``.
    """
    if not split:
        return None
    if not present and split == {NEW: 0}:
        return {}
    named = {new if id_ == NEW else id_: share for id_, share in split.items()}
    if len(named) != len(split):
        raise InputError(f"{new} is named twice", field="traffic_split", remedy=f'give "{NEW}" or its id')
    return check(named, {*ids, new})


def with_new(
    present: Mapping[str, int],
    new: str,
    asked: Mapping[str, int] | None,
    against: Mapping[str, int],
    *,
    alone: bool,
) -> Split:
    """The split once a new model answers.

    If nobody changed the split since the deployment was asked for, it becomes what was asked for. If somebody did,
    neither wish is lost: the new model takes the share that was asked for it, and the others keep the proportions
    of the change.

    Args:
        present: the split at this moment.
        asked: by the request; ``None``: all of it for the first model, else nothing.
        against: the split when that was asked for.
        alone: no other model is deployed.

    Raises:
        Conflict: the others were asked to share what is left, and there is no traffic that they share.
    """
    if asked is None:
        return {new: 100} if alone else dict(present)
    if present == against:
        return dict(asked)
    share = asked.get(new, 0)
    if share == 100:
        return {new: 100}
    if share and not present:
        raise Conflict(
            "the other models lost their traffic while this one was being deployed",
            field="traffic_split",
            remedy="deploy it again with a split of what is deployed",
        )
    return {**_scaled(present, 100 - share), **({new: share} if share else {})}


def without(present: Mapping[str, int], gone: str, asked: Mapping[str, int], others: Collection[str]) -> Split:
    """The split when a model goes.

    Args:
        asked: by the request; empty: as it is.
        others: ids of the models that stay.

    Raises:
        PreconditionFailed: the model would still have traffic.
        InputError: as ``check``.
    """
    if asked.get(gone):
        raise PreconditionFailed(
            f"the split gives traffic to {gone}, which is to be undeployed",
            field="traffic_split",
            remedy="share its traffic out among the others",
        )
    if any(asked.values()):
        return check(asked, others)
    if present.get(gone) and others:
        raise PreconditionFailed(
            f"DeployedModel {gone} has {present[gone]} % of the traffic",
            field="traffic_split",
            remedy="share it out among the others in the same call, or before",
        )
    return {id_: share for id_, share in present.items() if id_ != gone}


def handed_over(present: Mapping[str, int], old: str, new: str) -> Split:
    """The split when a new model takes an old one's place."""
    total = present.get(old, 0) + present.get(new, 0)
    rest = {id_: share for id_, share in present.items() if id_ not in (old, new)}
    return {**rest, **({new: total} if total else {})}


def _scaled(split: Mapping[str, int], total: int) -> Split:
    """The same proportions with another sum, in whole percents by the method of largest remainders."""
    whole = sum(split.values())
    shares = {id_: share * total // whole for id_, share in split.items()} if whole else {}
    by_remainder = sorted(split, key=lambda id_: (-(split[id_] * total % whole), id_))
    for id_ in by_remainder[: total - sum(shares.values())]:
        shares[id_] += 1
    return {id_: share for id_, share in shares.items() if share}
