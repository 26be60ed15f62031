"""Where everything goes: results on stdout, all else on stderr; errors as two lines or as one JSON object.

What writes loads what it writes with: help needs none of it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Timer
from typing import TYPE_CHECKING, Any

from medport.errors import EXIT_USAGE, MedportError, errors_dict, row_of

if TYPE_CHECKING:
    from rich.console import Console

PROGRESS_AFTER_S = 1.0
_PIPE_WIDTH = 1000
"""Columns where there is no terminal: a table is then as wide as its content."""
# All that can move a cursor or rename a window. A model's answer and a server's message are not ours.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Output:
    """Both streams of one command. ``json`` gives objects and no colour, else text for people."""

    def __init__(self, *, json: bool = False, color: bool = True) -> None:
        self.json = json
        self._color = color

    @classmethod
    def foretold(cls, arguments: Sequence[str]) -> Output:
        """The form that ``arguments`` ask for, before they are parsed: wrong usage is reported in it too."""
        given = set(arguments[: arguments.index("--")] if "--" in arguments else arguments)
        return cls(json="--json" in given, color="--no-color" not in given)

    @property
    def is_terminal(self) -> bool:
        """Whether a person reads stdout."""
        return sys.stdout.isatty()

    def data(self, value: Mapping[str, Any]) -> None:
        """One JSON object on a line of stdout."""
        import orjson

        self.text(orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS).decode())

    def text(self, text: str, end: str = "\n") -> None:
        """Text on stdout as it is, unwrapped and without control characters."""
        sys.stdout.write(printable(text) + end)
        sys.stdout.flush()

    def dim(self, line: str) -> None:
        """A line beside the result on stdout, such as where it came from."""
        self._stdout().print(printable(line), style="dim", markup=False, highlight=False, soft_wrap=True)

    def row(self, mark: str, style: str, rest: str) -> None:
        """A line on stdout that begins with a coloured word."""
        from rich.text import Text

        self._stdout().print(Text.assemble((mark, style), " ", printable(rest)), soft_wrap=True)

    def table(
        self,
        columns: Sequence[str],
        rows: Sequence[Sequence[str]],
        *,
        title: str | None = None,
        numbers: bool = False,
    ) -> None:
        """A table on stdout; with ``numbers``, all but the first column hold some.

        Where it is so narrow that words would be broken, each row is lines of names and values.
        """
        from rich import box
        from rich.table import Table
        from rich.text import Text

        if title:
            self._stdout().print(Text(printable(title), "bold"), soft_wrap=True)
        table = Table(box=box.SIMPLE)
        for i, column in enumerate(columns):
            table.add_column(column, justify="right" if numbers and i else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        console = self._stdout()
        if console.measure(table, options=console.options.update(max_width=_PIPE_WIDTH)).minimum <= console.width:
            console.print(table)
            return
        for row in rows:
            self.fields(dict(zip(columns, row, strict=True)))
            self.text("")

    def fields(self, values: Mapping[str, str]) -> None:
        """Names and values on stdout, a line each; without those that have no value."""
        width = max(map(len, values), default=0)
        for name, value in values.items():
            if value:
                self.text(f"  {name:<{width}}  {value}")

    def warnings(self, lines: Sequence[str]) -> None:
        """What is to be said against the result, a line each, on stdout with it."""
        for line in lines:
            self.row("  !", "yellow", line)

    def note(self, line: str) -> None:
        """A line for people on stderr; nothing with ``json``, where stderr holds errors alone."""
        if not self.json:
            sys.stderr.write(printable(line) + "\n")

    def aside(self, text: str) -> None:
        """Dim text on stderr, only where a person sees it: it may hold what no log should."""
        if sys.stderr.isatty() and not self.json:
            self._stderr().print(printable(text), style="dim", end="", markup=False, highlight=False)

    def failure(self, error: MedportError) -> int:
        """Say on stderr what is wrong and what to do. Gives the exit code of the error."""
        code = row_of(error).exit_code
        self._fault({**errors_dict(error), "exit_code": code}, _what(error), error.remedy)
        return code

    def usage(self, message: str, remedy: str) -> int:
        """The same for a wrong command line."""
        fault = {
            "type": "UsageError", "message": message, "field": None, "remedy": remedy, "backend": None,
            "request_id": None, "retryable": False, "exit_code": EXIT_USAGE,
        }  # fmt: skip
        self._fault(fault, message, remedy)
        return EXIT_USAGE

    def unexpected(self, error: Exception, code: int) -> int:
        """A fault of medport itself. Its text is left out: it may quote what it stumbled over."""
        kind, remedy = type(error).__name__, "run it again with --debug and report what it shows"
        fault = {
            "type": kind, "message": "medport failed unexpectedly", "field": None, "remedy": remedy,
            "backend": None, "request_id": None, "retryable": False, "exit_code": code,
        }  # fmt: skip
        self._fault(fault, f"medport failed unexpectedly ({kind})", remedy)
        return code

    def failed_items(self, errors: Mapping[int, MedportError]) -> int:
        """Not one item could be used: say why, for each. Gives the exit code of the first error."""
        first = errors[min(errors)]
        if len(errors) == 1:
            return self.failure(first)
        code = row_of(first).exit_code
        if self.json:
            every = {str(position): errors_dict(error) for position, error in errors.items()}
            self._fault({**errors_dict(first), "exit_code": code, "errors": every}, "", None)
        else:
            for error in errors.values():
                self.note(str(error))
        return code

    @contextmanager
    def progress(self, what: str, total: int | None = None) -> Iterator[Callable[[int], None]]:
        """A bar on stderr once it takes longer than a second; yields what to call with the number done."""
        if not self._stderr().is_terminal:
            yield lambda done: None
            return
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        counts = (MofNCompleteColumn(),) if total is not None else ()
        # stdout stays as it is: the result may go through a pipe while the bar is on the terminal.
        bar = Progress(
            TextColumn("{task.description}"), BarColumn(), *counts, TimeElapsedColumn(),
            console=self._stderr(), transient=True, redirect_stdout=False, redirect_stderr=False,
        )  # fmt: skip
        task = bar.add_task(what, total=total)
        timer = Timer(PROGRESS_AFTER_S, bar.start)
        timer.daemon = True
        timer.start()
        try:
            yield lambda done: bar.advance(task, done)
        finally:
            timer.cancel()
            timer.join()
            bar.stop()

    def _fault(self, fault: Mapping[str, Any], what: str, remedy: str | None) -> None:
        if self.json:
            import orjson

            sys.stderr.write(orjson.dumps({"error": fault}).decode() + "\n")
            return
        sys.stderr.write(printable(what) + "\n")
        if remedy:
            sys.stderr.write(f"  remedy: {printable(remedy)}\n")

    def _stdout(self) -> Console:
        from rich.console import Console

        width = None if self.is_terminal else _PIPE_WIDTH
        return Console(no_color=None if self._color else True, width=width)

    def _stderr(self) -> Console:
        from rich.console import Console

        return Console(stderr=True, no_color=None if self._color else True)


def printable(text: str) -> str:
    """``text`` without control characters, so that it cannot act on the terminal that shows it."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text)


def _what(error: MedportError) -> str:
    """The first line: class, place, what is wrong, who said so."""
    place = f"{error.field}: " if error.field and not _is_named(error.field, error.message) else ""
    known = {"profile": error.backend, "request": error.request_id}
    said = ", ".join(f"{key} {value}" for key, value in known.items() if value)
    return f"{type(error).__name__}: {place}{error.message}" + (f" ({said})" if said else "")


def _is_named(field: str, message: str) -> bool:
    """Whether a message names a field itself.

    A name of several parts, such as ``model.safetensors``, does anywhere in it. A plain word, such as ``key`` or
    ``ca``, does at its start alone: further on, as in "public key", it is a word like others.
    """
    found = re.search(rf"(?<!\w){re.escape(field)}(?!\w)", message)
    return found is not None and (found.start() == 0 or not field.isalpha())
