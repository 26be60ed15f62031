"""A plan on a screen: marks before colours, one line a thing, the numbers below."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from medport.cli.output import printable
from medport_deploy.plan.cost import Amount, Cost
from medport_deploy.plan.estimates import words
from medport_deploy.plan.making import Plan
from medport_deploy.plan.quota import Headroom
from medport_deploy.plan.rows import MARKS, Row

# Told apart without red against green: blue, yellow and weight; the mark says the same.
STYLES: Mapping[str, str] = {
    "create": "bold blue", "update": "yellow", "replace": "bold yellow", "destroy": "bold magenta",
    "traffic": "cyan", "none": "dim",
}  # fmt: skip
_LONGEST = 44


def lines(plan: Plan, *, every: bool = False) -> list[tuple[str, str]]:
    """A plan as lines of text, each with its style of rich.

    Args:
        every: also what stays as it is, without anything to say about it.
    """
    told = [row for row in plan.rows if row.changes or row.why or every]
    head = f"{plan.deployment} on {plan.target}, lock {plan.inputs.lock_id[:12]}"
    found = [(head, "bold")]
    for row in told:
        found += [(text, STYLES[row.action]) for text in _row(row)]
    found += [(each, "") for each in _totals(plan)]
    found += [(f"  ! {each}", "yellow") for each in _warnings(plan)]
    return [(printable(text), style) for text, style in found]


def print_to(console: Any, plan: Plan, *, every: bool = False) -> None:
    """Write a plan to a console of rich."""
    from rich.text import Text

    for text, style in lines(plan, every=every):
        console.print(Text(text, style), soft_wrap=True, highlight=False)


def summary(plan: Plan) -> str:
    """The plan in one line: ``2 to create, 1 to destroy``."""
    counts = {action: sum(row.action == action for row in plan.rows) for action in MARKS if action != "none"}
    words_of = {"traffic": "to shift traffic"}
    told = [f"{count} {words_of.get(action, f'to {action}')}" for action, count in counts.items() if count]
    return ", ".join(told) or "nothing to do: what stands is what the lock says"


def _row(row: Row) -> Iterator[str]:
    marks = [f"{words(row.duration_s)}"] if row.changes and row.duration_s else []
    if row.downtime_s:
        marks.append(f"DOWN {words(row.downtime_s)}")
    if row.blocked:
        marks.append("BLOCKED")
    tail = f"  [{', '.join(marks)}]" if marks else ""
    why = f"  {row.why}" if row.why else ""
    yield f"  {MARKS[row.action]:>3} {row.address}{why}{tail}"
    if row.changes:
        fields = (
            _split(row)
            if row.action == "traffic"
            else _fields(row.before, {} if row.action == "destroy" else row.after)
        )
        if fields:
            yield f"        {fields}"


def _split(row: Row) -> str:
    return " → ".join(
        ", ".join(f"{id_}: {share} %" for id_, share in split.items()) or "nobody's"
        for split in (row.before, row.after)
    )


def _fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> str:
    told = []
    for key in dict.fromkeys((*after, *before)):
        if key in before and key in after:
            if before[key] != after[key]:
                told.append(f"{key} {_value(before[key])} → {_value(after[key])}")
        elif key in after and after[key] not in (None, "", [], {}):
            told.append(f"{key} {_value(after[key])}" if not before else f"{key} → {_value(after[key])}")
        elif key in before and not after:
            told.append(f"{key} {_value(before[key])}")
    return ", ".join(told)


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        text = " ".join(f"{key}={_value(each)}" for key, each in value.items()) or "nothing"
    elif isinstance(value, list | tuple):
        text = " ".join(map(_value, value)) or "nothing"
    else:
        text = "nothing" if value is None else str(value)
    # A digest is known by its beginning.
    if len(text) in (40, 64) and all(each in "0123456789abcdef" for each in text):
        return text[:12]
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _totals(plan: Plan) -> Iterator[str]:
    yield ""
    yield summary(plan)
    if plan.changes:
        down = f"about {words(plan.downtime_s)}" if plan.downtime_s else "none expected"
        yield f"time      about {words(plan.duration_s)} (estimate); downtime {down}"
    yield f"cost      {_money(plan.cost)}"
    yield from (f"          {note}" for note in plan.cost.notes)
    yield from _quotas(plan.quotas)


def _money(cost: Cost) -> str:
    if not any((cost.now.most_hour, cost.during.most_hour, cost.after.most_hour)):
        return "nothing" if not cost.after.unpriced else "not known"
    now, after = (_amount(cost, each) for each in (cost.now, cost.after))
    sign = "+" if cost.delta_hour >= 0 else "−"
    delta = f"{sign}{abs(cost.delta_hour):.2f}/h, {sign}{abs(cost.delta_month):,.0f}/month"
    told = f"{now}, as before" if cost.now == cost.after else f"{now} → {after} ({delta})"
    during = ""
    if cost.during.hour > max(cost.now.hour, cost.after.hour):
        during = f"; {cost.during.hour:.2f}/h while both fleets run"
    return f"{cost.currency} {told}{during}"


def _amount(cost: Cost, amount: Amount) -> str:
    most = f", at most {amount.most_hour:.2f}/h" if amount.most_hour > amount.hour else ""
    return f"{amount.hour:.2f}/h ({cost.month(amount.hour):,.0f}/month{most})"


def _quotas(found: Iterable[Headroom]) -> Iterator[str]:
    for each in found:
        if each.unread:
            limit = f"limit not read: {each.unread}"
        else:
            limit = "no limit" if each.limit is None else f"limit {each.limit}"
        short = "  SHORT" if each.short else ""
        name = each.metric.rpartition("/")[2]
        yield f"quota     {name}: {each.now} now, {each.peak} at the peak; {limit}{short}"


def _warnings(plan: Plan) -> Iterator[str]:
    yield from plan.notes
    for each in plan.quotas:
        if each.short:
            yield f"{each.metric}: {each.peak} needed, {each.limit} allowed: this plan cannot be done"
        elif each.limit is not None and each.most > each.limit:
            yield f"{each.metric}: {each.most} if every fleet grows to its maximum, {each.limit} allowed"
    for row in plan.rows:
        if row.blocked:
            yield f"{row.address}: medport will not do this"
