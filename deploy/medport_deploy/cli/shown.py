"""Lines on stdout that have a style, as plans, reports and states are shown."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from medport.cli.output import printable


def styled(lines: Iterable[tuple[str, str]], *, no_color: bool, named: Callable[[str], str] = str) -> None:
    """Print lines, each with its style of rich, unwrapped and without control characters.

    Args:
        named: gives a line with commands that name their files; see ``given``.
    """
    from rich.console import Console
    from rich.text import Text

    console = Console(no_color=True if no_color else None)
    for text, style in lines:
        console.print(Text(printable(named(text)), style), soft_wrap=True, highlight=False)
