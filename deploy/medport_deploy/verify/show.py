"""A verification on a screen: what is not as it was approved first, a line of numbers last."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from medport.cli.output import printable
from medport_deploy.verify.result import Check, Report

# As with plans: words and weight, and no red against green.
_STYLES: Mapping[str, str] = {"drift": "bold yellow", "passed": "dim", "skipped": "dim", "note": ""}
_MARKS: Mapping[str, str] = {"drift": "!", "passed": "✓", "skipped": "-", "note": "·"}
_LONGEST = 160


def lines(report: Report, *, every: bool = False) -> list[tuple[str, str]]:
    """A report as lines of text, each with its style of rich.

    Args:
        every: also what passed.
    """
    found = [(f"{report.deployment} on {report.target}, lock {report.lock_id[:12]}, at {report.made_at}", "bold")]
    if report.compared_with:
        found.append((f"compared with lock {report.compared_with[:12]}, which was verified last", ""))
    order = (*report.findings, *report.notes, *report.skipped, *(report.passed if every else ()))
    found += [(text, _STYLES[each.status]) for each in order for text in _check(each)]
    found += [("", ""), (summary(report), "bold")]
    return [(printable(text), style) for text, style in found]


def summary(report: Report) -> str:
    """The report in one line."""
    count = len(report.findings)
    looked = f"{len(report.passed) + count} checks, {len(report.skipped)} not made"
    if count:
        return f"{count} {'thing is' if count == 1 else 'things are'} not as approved ({looked})"
    return f"what serves is what was approved ({looked})"


def _check(each: Check) -> Iterator[str]:
    where = f"{each.model} " if each.model else ""
    head = f"  {_MARKS[each.status]} {where}{each.check}"
    if each.status == "drift":
        yield head
        yield f"      approved  {_text(each.expected)}"
        yield f"      found     {_text(each.found)}"
        if each.remedy:
            yield f"      → {each.remedy}"
    elif each.status == "passed":
        yield f"{head}  {_text(each.found)}"
    else:
        yield f"{head}  {each.why}" + (f"  ({_text(each.found)})" if each.found is not None else "")


def _text(value: Any) -> str:
    text = _plain(value)
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST - 1]}…"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_plain(each)}" for key, each in value.items()) or "nothing"
    if isinstance(value, list | tuple):
        return " ".join(map(_plain, value)) or "nothing"
    if value is None or value == "":
        return "nothing"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = str(value)
    # A digest is known by its beginning.
    return text[:12] if len(text) in (40, 64) and all(each in "0123456789abcdef" for each in text) else text
