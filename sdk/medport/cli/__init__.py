"""The command line: ``medport chat | embed | classify | doctor | serve | snapshot | bundle | audit | keys …``."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.main import get_command

from medport import _extras
from medport.cli import commands, doctor
from medport.cli.output import Output
from medport.errors import EXIT_FAILED, EXIT_INTERRUPTED, MedportError

__all__ = ["main"]

# typer brings click along since 0.24 and used the package before: the class is reached the same way in both.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]

# One line a paragraph: the help is wrapped to the terminal's width.
_EPILOG = "\n\n".join(
    (
        "Results are printed on stdout, all else on stderr. With --json stdout holds one object (chat --stream: "
        "one a line, type delta or result). A command that fails prints its error on stderr, with --json as one "
        'object {"error": {...}}.',
        "Exit codes: 0 done, 1 failed (or one image of several did), 2 there are changes or drift, 64 wrong usage "
        "or configuration, 130 interrupted.",
        "The API key is read from MEDPORT_API_KEY or from where the profile says. Every answer is preliminary and "
        "needs independent verification by a qualified person.",
        'Example: medport chat "Describe this X-ray" -i cxr.dcm',
    )
)

app = typer.Typer(
    name="medport",
    help="MedGemma and MedSigLIP in this process, on your server, or on Vertex AI.",
    epilog=_EPILOG,
    pretty_exceptions_enable=False,  # they would show local variables: prompts and names of files
)
app.command(epilog='Example: medport chat "Describe this X-ray" -i cxr.dcm')(commands.chat)
app.command(epilog="Example: medport embed cxr/*.png -o vectors.npz")(commands.embed)
app.command(epilog='Example: medport classify cxr/*.png --label pneumothorax --label "no acute finding"')(
    commands.classify
)
app.command(epilog="Example: medport doctor --profile cloud")(doctor.doctor)
app.command(epilog="Example: medport version --json")(commands.version)
_config = typer.Typer(help="The settings in force.")
_config.command("show", epilog="Example: medport config show --profile onprem")(doctor.show)
app.add_typer(_config, name="config")


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def serve(context: typer.Context) -> int:
    """Serve both models on this machine: medport serve --help."""
    return _run_local("serve", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def snapshot(context: typer.Context) -> int:
    """Fetch, verify, lock and keep models in a store: medport snapshot --help."""
    return _run_local("snapshot", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bundle(context: typer.Context) -> int:
    """Pack all that a site without a network needs into one signed file: medport bundle --help."""
    return _run_local("bundle", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def audit(context: typer.Context) -> int:
    """Check or read a server's audit log: medport audit --help."""
    return _run_local("audit", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def keys(context: typer.Context) -> int:
    """Make, list or revoke a server's API keys: medport keys --help."""
    return _run_local("keys", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def quantize(context: typer.Context) -> int:
    """Make a snapshot with int8 weights: medport quantize --help."""
    return _run_local("quantize", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def engine(context: typer.Context) -> int:
    """Test another engine with a snapshot: medport engine --help."""
    return _run_local("engine", context)


@app.command(add_help_option=False, context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def bench(context: typer.Context) -> int:
    """Measure the engine on this machine: medport bench --help."""
    return _run_local("bench", context)


@app.command(epilog="Example: medport demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write its files.")] = Path("out/demo"),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> int:
    """Show the whole on drawn X-rays and phantom models. Needs no account, GPU or network."""
    return int(_extras.load("medport_local.phantom.demo", extra="local").run(out))


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command and exit with its code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    output = Output.foretold(given)
    try:
        code = _run(app, given)
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
    sys.exit(code)


def _run_local(command: str, context: typer.Context) -> int:
    local = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
    local.callback()(lambda: None)  # so that one command stays a command and does not become the whole app
    _extras.load("medport_local.cli", extra="local").register(local)
    return _run(local, [command, *context.args])


def _run(group: typer.Typer, arguments: list[str]) -> int:
    # Not standalone: errors come to `main`, which gives them the exit codes of the table.
    return int(get_command(group).main(arguments, prog_name="medport", standalone_mode=False) or 0)


def _usage(output: Output, error: Exception) -> int:
    context = getattr(error, "ctx", None)
    path = context.command_path if context is not None else "medport"
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    return output.usage(message, f"see {path} --help")


def _trace(arguments: Sequence[str]) -> None:
    if "--debug" in arguments:
        traceback.print_exc()
