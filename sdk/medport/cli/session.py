"""What all commands share: the options for where to ask and in which form to answer."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Concatenate, ParamSpec

import typer

from medport.cli.output import Output
from medport.client import Client

P = ParamSpec("P")
_PANEL = "Common options"


@dataclass(frozen=True, slots=True)
class Session:
    """One run of one command."""

    output: Output
    profile: str | None = None
    settings: Mapping[str, Any] | None = None
    """Keys of a profile, over file and environment. ``None`` stands for what was not given."""

    def client(self) -> Client:
        return Client(self.profile, **(self.settings or {}))


def _session(
    profile: Annotated[
        str | None, typer.Option("--profile", "-p", help="A profile of medport.toml.", rich_help_panel=_PANEL)
    ] = None,
    backend: Annotated[
        str | None,
        typer.Option(metavar="in-process|local|vertex", help="Where the models run.", rich_help_panel=_PANEL),
    ] = None,
    url: Annotated[str | None, typer.Option(help="Address of a local server.", rich_help_panel=_PANEL)] = None,
    ca_file: Annotated[
        str | None, typer.Option(metavar="FILE", help="CA that signed its certificate.", rich_help_panel=_PANEL)
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(metavar="SECONDS", help="Deadline of a call, with retries.", rich_help_panel=_PANEL),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="One JSON object; errors too, on stderr.", rich_help_panel=_PANEL)
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colour, as NO_COLOR=1.", rich_help_panel=_PANEL)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_PANEL)
    ] = False,
) -> Session:
    # The API key is no option: a command line can be read by everybody on the machine. `debug` is read in main.
    # A URL alone means the server there: to answer from this process instead would be a surprise.
    where = backend or ("local" if url else None)
    settings = {"backend": where, "url": url, "ca_file": ca_file, "timeout_s": timeout}
    return Session(Output(json=json, color=not no_color), profile, settings)


def with_session(command: Callable[Concatenate[Session, P], int]) -> Callable[..., int]:
    """Give a command the common options as one value: its own parameters stay, ``session`` is filled in."""
    shared = inspect.signature(_session, eval_str=True).parameters
    own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]

    @functools.wraps(command)
    def run(**values: Any) -> int:
        session = _session(**{name: values.pop(name) for name in shared})
        return command(session, **values)  # type: ignore[call-arg]

    del run.__wrapped__  # typer would read the signature of `command` through it
    parameters = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in (*own, *shared.values())]
    run.__signature__ = inspect.Signature(parameters, return_annotation=int)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
