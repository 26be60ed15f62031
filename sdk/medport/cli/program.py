"""One run of the program: the command that was typed, and the exit code of whatever became of it."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence

import typer

from medport.cli import delegated
from medport.cli.output import Output
from medport.errors import EXIT_FAILED, EXIT_INTERRUPTED, MedportError

# typer brings click along since 0.24 and used the package before: the class is reached the same way in both.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def run(given: Sequence[str]) -> int:
    """Run one command; gives its exit code, and says on stderr what went wrong."""
    output = Output.foretold(given)
    try:
        code = delegated.run(given[0], given[1:]) if given[:1] and given[0] in delegated.COMMANDS else _own(given)
        sys.stdout.flush()
    except MedportError as error:
        _trace(given)
        code = output.failure(error)
    except _UsageError as error:
        code = _usage(output, error)
    except (KeyboardInterrupt, typer.Abort):
        code = EXIT_INTERRUPTED
    except BrokenPipeError:
        # What reads our output has gone, as `head` does. The interpreter would complain when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = EXIT_FAILED
    except Exception as error:
        _trace(given)
        code = output.unexpected(error, EXIT_FAILED)
    if code == EXIT_INTERRUPTED:
        output.note("interrupted")
    return code


def _own(given: Sequence[str]) -> int:
    # Half a second of imports, which the commands of the other packages need not wait for.
    from medport.cli.tree import app

    return delegated.invoke(app, given)


def _usage(output: Output, error: Exception) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "medport"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return output.usage(message, f"see {path} --help")


def _trace(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        traceback.print_exc()
