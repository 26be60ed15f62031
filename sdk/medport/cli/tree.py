"""The whole command line: its own commands, and those of the other packages as far as help shows them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from medport import _extras
from medport.cli import commands, delegated, doctor, endpoints, models

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
_endpoints = typer.Typer(help="Endpoints, and what is deployed to them.")
_endpoints.command("list", epilog="Example: medport endpoints list --filter 'labels.team=\"chest\"'")(
    endpoints.list_
)
_endpoints.command("show", epilog="Example: medport endpoints show medgemma --profile onprem")(endpoints.show)
app.add_typer(_endpoints, name="endpoints")
_models = typer.Typer(help="Models and their versions.")
_models.command("list", epilog="Example: medport models list --json")(models.list_)
_models.command("show", epilog="Example: medport models show medgemma@default")(models.show)
app.add_typer(_models, name="models")


def _other(context: typer.Context) -> int:
    return delegated.run(str(context.info_name), context.args)


for _name, (_, _help) in delegated.COMMANDS.items():
    app.command(
        _name,
        help=_help,
        add_help_option=False,
        context_settings={"allow_extra_args": True, "ignore_unknown_options": True},
    )(_other)


@app.command(epilog="Example: medport demo --out out/demo")
def demo(
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where to write its files.")] = Path("out/demo"),
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> int:
    """Show the whole on drawn X-rays and phantom models. Needs no account, GPU or network."""
    return int(_extras.load("medport_local.phantom.demo", extra="local").run(out))
