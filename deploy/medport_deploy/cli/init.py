"""``medport deploy init``: asks on a terminal, takes options elsewhere, writes a commented ``medport.yaml``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TypeVar

import typer

from medport.cli.output import Output
from medport.errors import ConfigError
from medport_deploy.cli import options

if TYPE_CHECKING:
    from medport_deploy.first_run.init import Answers

T = TypeVar("T")
_KINDS = ("vertex", "local")
_TARGET, _MACHINE, _COMMON = "Target", "Models", "Common options"


def init(
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="What to write.")] = options.SPEC,
    force: Annotated[bool, typer.Option("--force", help="Replace the file if it is there.")] = False,
    name: Annotated[
        str | None, typer.Option(help="Of the deployment. Default: medport.", rich_help_panel=_TARGET)
    ] = None,
    target: Annotated[
        str | None, typer.Option(metavar="vertex|local", help="Where to deploy to.", rich_help_panel=_TARGET)
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(help="Id or number. Default for local: local.", rich_help_panel=_TARGET),
    ] = None,
    location: Annotated[
        str | None,
        typer.Option(help="Of the endpoints. Default for local: europe-west4.", rich_help_panel=_TARGET),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="Base URL of a local control plane.", rich_help_panel=_TARGET)
    ] = None,
    ca_file: Annotated[
        str | None, typer.Option(metavar="PEM", help="Who signed its certificate.", rich_help_panel=_TARGET)
    ] = None,
    api_key_env: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The environment variable with its API key.", rich_help_panel=_TARGET),
    ] = None,
    terraform_root: Annotated[
        str | None,
        typer.Option(metavar="DIR", help="A Terraform root that makes the endpoints.", rich_help_panel=_TARGET),
    ] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(metavar="OWNER/NAME", help="On the hub; again for another.", rich_help_panel=_MACHINE),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            metavar="HOST/PATH[:TAG][@sha256:…]", help="The serving container.", rich_help_panel=_MACHINE
        ),
    ] = None,
    machine: Annotated[
        str | None,
        typer.Option(metavar="TYPE", help="Default: what suits each model.", rich_help_panel=_MACHINE),
    ] = None,
    accelerator: Annotated[
        str | None, typer.Option(metavar="TYPE", help="Of --machine.", rich_help_panel=_MACHINE)
    ] = None,
    count: Annotated[int, typer.Option(min=0, max=16, help="Of the accelerators.", rich_help_panel=_MACHINE)] = 0,
    json: Annotated[
        bool, typer.Option("--json", help="JSON on stdout; nothing is asked.", rich_help_panel=_COMMON)
    ] = False,
    no_color: Annotated[
        bool, typer.Option("--no-color", help="No colour, as NO_COLOR=1.", rich_help_panel=_COMMON)
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel=_COMMON)
    ] = False,
) -> int:
    """Write a commented medport.yaml to begin with. On a terminal what is not given is asked for."""
    from medport_deploy.first_run import init as first

    if accelerator is not None and machine is None:
        raise ConfigError("goes with --machine", field="--accelerator", remedy="give --machine too")
    asking = _Asking(terminal=sys.stdin.isatty() and sys.stderr.isatty() and not json)
    if output.exists() and not force:
        first.refuse_to_replace(output)  # before anything is asked
    place = {"local": {"--url": url}, "vertex": {"--project": project, "--location": location}}
    needed = {"--target": target, **place.get(target or "", {}), "--model": model or None, "--image": image}
    asking.require(needed)
    kind = asking.choice("--target", target, "Where to deploy to", _KINDS, "vertex")
    local = kind == "local"
    for flag, given in (("--url", url), ("--api-key-env", api_key_env)):
        if given is not None and not local:
            raise ConfigError("is for --target local", field=flag, remedy="leave it out")
    if local:
        url = asking.text("--url", url, "URL of the control plane", suggested=first.LOCAL_URL)
        if url.startswith("https:"):
            ca_file = asking.file("--ca-file", ca_file, "Who signed its certificate, a PEM file", output.parent)
    at_home = {"--project": first.LOCAL_PROJECT, "--location": first.LOCAL_LOCATION} if local else {}
    answers = first.Answers(
        target="local" if local else "vertex",
        name=asking.text("--name", name, "Name of the deployment", suggested="medport", default="medport"),
        project=asking.text("--project", project, "Project", default=at_home.get("--project")),
        location=asking.text("--location", location, "Location", default=at_home.get("--location")),
        url=url,
        ca_file=ca_file,
        api_key_env=asking.optional("--api-key-env", api_key_env, "Variable with its API key") if local else None,
        models=asking.models(model),
        image=asking.text("--image", image, "Serving container, HOST/PATH[:TAG][@sha256:…]"),
        machine=first.Choice(machine, accelerator, count) if machine else None,
        terraform_root=terraform_root,
    )
    first.write(output, first.render(answers, file_name=output.name), force=force)
    _tell(Output(json=json, color=not no_color), output, answers)
    return 0


def _tell(out: Output, path: Path, answers: Answers) -> None:
    from medport_deploy.first_run import init as first

    terms = first.terms_of(answers.models)
    after = [f"medport doctor --deploy -f {path}", f"medport deploy lock -f {path}"]
    if out.json:
        read = [{"id": each.id, "name": each.name, "url": each.url} for each in terms]
        out.data({"file": str(path), "models": list(answers.models), "terms_to_read": read, "next": after})
        return
    out.text(f"wrote {path}")
    for each in terms:
        out.text(f"Read the {each.name}: {each.url}\n  then write {each.id} under accept_terms")
    out.text("Next: " + "\n      ".join(after))


class _Asking:
    """Takes what was given; asks a person for the rest, on stderr; refuses where there is none."""

    def __init__(self, *, terminal: bool) -> None:
        self._terminal = terminal

    def require(self, given: Mapping[str, object]) -> None:
        """Refuse at once, where nobody can be asked, if one of these options is not given."""
        missing = [flag for flag, value in given.items() if value is None]
        if missing and not self._terminal:
            _missing(*missing)

    def choice(self, flag: str, given: str | None, question: str, known: tuple[str, ...], suggested: str) -> str:
        def check(text: str) -> str:
            if text not in known:
                raise ConfigError(f"is none of {', '.join(known)}", field=flag, remedy=f"give one of them: {flag}")
            return text

        return self._answer(flag, given, f"{question} ({', '.join(known)})", check, suggested, None)

    def text(
        self, flag: str, given: str | None, question: str, *, suggested: str | None = None,
        default: str | None = None,
    ) -> str:  # fmt: skip
        """One answer.

        Args:
            suggested: to a person.
            default: where nobody can be asked; without one the option must be given.
        """
        return self._answer(
            flag, given, question, lambda text: _checked(flag, text), suggested or default, default
        )

    def optional(self, flag: str, given: str | None, question: str) -> str | None:
        """One answer that may be empty."""
        if given is None and not self._terminal:
            return None
        return self._answer(
            flag, given, f"{question} (empty: none)", lambda t: _checked(flag, t) if t else t, "", ""
        )

    def file(self, flag: str, given: str | None, question: str, root: Path) -> str | None:
        """A file that is there, or none.

        Args:
            root: where its path begins.
        """

        def check(text: str) -> str | None:
            if text and not (root / text).is_file():
                raise ConfigError(f"there is no file {root / text}", field=flag, remedy=f"give another {flag}")
            return text or None

        if given is not None or not self._terminal:
            return given
        return self._answer(flag, None, f"{question} (empty: a public authority)", check, "", "")

    def models(self, given: list[str] | None) -> tuple[str, ...]:
        """At least one; a person names them with blanks between."""
        from medport_deploy.first_run import init as first

        def check(text: str) -> tuple[str, ...]:
            return tuple(_checked("--model", each) for each in text.split()) or _missing("--model")

        question = f"Models, with blanks between ({', '.join(first.KNOWN)})"
        return self._answer("--model", " ".join(given) if given else None, question, check, first.KNOWN[0], None)

    def _answer(
        self, flag: str, given: str | None, question: str, check: Callable[[str], T], suggested: str | None,
        default: str | None,
    ) -> T:  # fmt: skip
        if given is not None:
            return check(given)
        if not self._terminal:
            return check(default) if default is not None else _missing(flag)
        while True:
            said = typer.prompt(question, default=suggested or "", err=True, show_default=bool(suggested))
            text = str(said).strip()
            if not text and suggested != "":
                typer.echo("  an answer is needed", err=True)
                continue
            try:
                return check(text)
            except ConfigError as wrong:
                typer.echo(f"  {wrong.message}", err=True)


def _checked(flag: str, text: str) -> str:
    """An answer in the form that it must have, so that a wrong one is asked for again at once."""
    from pydantic import TypeAdapter, ValidationError

    from medport_deploy.spec import values as spec_values

    forms: dict[str, Any] = {
        "--project": spec_values.ProjectId, "--location": spec_values.Location, "--url": spec_values.Url,
        "--api-key-env": spec_values.VariableName, "--model": spec_values.ModelId, "--image": spec_values.Image,
        "--name": spec_values.Name,
    }  # fmt: skip
    try:
        return str(TypeAdapter(forms[flag]).validate_python(text))
    except ValidationError as fault:
        said = str(fault.errors(include_url=False, include_input=False)[0]["msg"])
        raise ConfigError(said.removeprefix("Value error, "), field=flag, remedy=f"give another {flag}") from None


def _missing(*flags: str) -> NoReturn:
    raise ConfigError(
        f"{'is' if len(flags) == 1 else 'are'} missing, and there is no terminal to ask on",
        field=", ".join(flags),
        remedy=f"give {', '.join(flags)}",
    )
