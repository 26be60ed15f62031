"""``medport deploy``: its commands, in the order of their use. Each imports what it does when it runs."""

from __future__ import annotations

import typer

from medport_deploy.cli import apply as cli_apply
from medport_deploy.cli import away as cli_away
from medport_deploy.cli import init as cli_init
from medport_deploy.cli import look as cli_look
from medport_deploy.cli import plan as cli_plan

_EPILOG = "\n\n".join(
    (
        "The specification (medport.yaml) says what is wanted, the lock (medport.lock) which bytes that is. Both "
        "are for your repository. What was done is kept beside them under .medport/deploy/NAME.",
        "Stages are told on stderr, results on stdout; with --json stdout holds one object.",
        "Exit codes: 0 done, 1 failed, 2 there are changes or drift, 64 wrong usage or configuration, "
        "130 interrupted.",
        "Ctrl-C once finishes the call under way and says how to go on; the same command goes on.",
    )
)


def register(app: typer.Typer) -> None:
    """Add ``deploy``."""
    deploy = typer.Typer(
        help="Plan, apply, verify and roll back pinned endpoints, on Vertex AI or a local control plane.",
        epilog=_EPILOG,
        no_args_is_help=True,
    )
    example = "Example: medport deploy"
    deploy.command("init", epilog=f"{example} init --target local --image REGISTRY/serving@sha256:…")(
        cli_init.init
    )
    deploy.command("lock", epilog=f"{example} lock --mirror ~/.local/share/medport/store --offline")(cli_plan.lock)
    deploy.command("plan", epilog=f"{example} plan")(cli_plan.plan)
    deploy.command("apply", epilog=f"{example} apply --hold 25")(cli_apply.apply)
    deploy.command("verify", epilog=f"{example} verify --report report.json --sign key.pem")(cli_look.verify)
    deploy.command("check-report", epilog=f"{example} check-report report.json --key public.pem")(
        cli_look.check_report
    )
    deploy.command("promote", epilog=f"{example} promote")(cli_apply.promote)
    deploy.command("rollback", epilog=f"{example} rollback --to 3f9c21d0")(cli_apply.rollback)
    deploy.command("status", epilog=f"{example} status --json")(cli_look.status)
    deploy.command("history", epilog=f"{example} history")(cli_look.history)
    deploy.command("sweep", epilog=f"{example} sweep --yes")(cli_away.sweep)
    deploy.command("destroy", epilog=f"{example} destroy --yes")(cli_away.destroy)
    app.add_typer(deploy, name="deploy")
