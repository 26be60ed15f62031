"""The command line: ``medport chat | embed | classify | endpoints | models | doctor | serve | deploy …``."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]

_INTERRUPTED = 130
"""``errors.EXIT_INTERRUPTED``, which may not be loaded yet."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        # Here, so that a Ctrl-C while modules load ends as one later does.
        from medport.cli.program import run

        code = run(given)
    except KeyboardInterrupt:
        if "--json" not in given:
            sys.stderr.write("interrupted\n")
        code = _INTERRUPTED
    sys.exit(code)
