"""What the commands that change something share: a run is told of, may be stopped, and says what it came to."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medport.cli.output import Output
from medport.errors import EXIT_INTERRUPTED
from medport_deploy.cli.given import Given
from medport_deploy.cli.progress import telling

if TYPE_CHECKING:
    from medport_deploy.work.opening import Deployment
    from medport_deploy.work.run import Outcome

_SHORT = 12


@contextmanager
def opened(output: Output, spec: Path, lock: Path | None, *, will_call: bool = True) -> Iterator[Deployment]:
    """A deployment whose runs are told of on stderr. What is said to type next names its files.

    Args:
        will_call: as ``work.opening.opened``.
    """
    from medport_deploy.work import opening as work

    given = Given(spec, lock)
    with (
        given.in_errors(),
        telling(output, given) as told,
        work.opened(spec, lock, telling=told, will_call=will_call) as deployment,
    ):
        yield deployment


def given_of(deployment: Deployment) -> Given:
    """The files that ``opened`` was given."""
    from medport import lock as locks

    beside = deployment.lock_file == deployment.root / locks.FILE_NAME
    return Given(deployment.spec_file, None if beside else deployment.lock_file)


def run(output: Output, deployment: Deployment, do: Callable[[], Outcome | None], **more: Any) -> int:
    """Do it and say what came of it; gives the exit code.

    Args:
        do: gives ``None`` if there was nothing to do.
        more: keys of the JSON object.
    """
    from medport_deploy.run.interrupts import Stopped
    from medport_deploy.terraform.errors import Interrupted

    try:
        outcome = do()
    except (Stopped, Interrupted) as stopped:
        given_of(deployment).name_in(stopped)
        output.failure(stopped)
        return EXIT_INTERRUPTED
    if outcome is None:
        if output.json:
            output.data(
                {"deployment": deployment.spec.name, "outcome": "nothing to do", "done": [], "skipped": []}
            )
        else:
            output.text("nothing to do")
        return 0
    _told(output, deployment, outcome, more)
    return 0


def _told(output: Output, deployment: Deployment, outcome: Outcome, more: Mapping[str, Any]) -> None:
    files = serving_files(deployment, outcome.lock_id) if outcome.lock_id else {}
    if output.json:
        output.data(
            {
                "deployment": deployment.spec.name,
                "verb": outcome.verb,
                "outcome": outcome.outcome,
                "lock_id": outcome.lock_id or None,
                "resumed": outcome.report.resumed,
                "done": list(outcome.report.done),
                "skipped": list(outcome.report.skipped),
                "journal": str(outcome.report.journal),
                "seconds": round(outcome.seconds, 3),
                "described_by": files,
                **({"share_percent": outcome.share} if outcome.share is not None else {}),
                **more,
            }
        )
        return
    steps = len(outcome.report.done)
    took = f"{steps} {'step' if steps == 1 else 'steps'} in {outcome.seconds:.1f} s"
    output.text(f"{outcome.verb} of {deployment.spec.name}: {outcome.outcome} ({took})")
    if outcome.outcome == "held":
        step = f" (the last step not above {outcome.asked} %)" if outcome.share != outcome.asked else ""
        output.text(
            f"lock {outcome.lock_id[:_SHORT]} has {outcome.share} % of the traffic{step}, and the run is open"
        )
        output.note(given_of(deployment).told("Next: medport deploy promote, or medport deploy rollback"))
    elif outcome.lock_id:
        output.text(f"lock {outcome.lock_id[:_SHORT]} serves")
    if files and files["lock"] != str(deployment.lock_file):
        output.text(f"described by {files['spec']} and {Path(files['lock']).name}")
        output.text("yours are as they were, and say something else; to take those:")
        taken = ((files["spec"], deployment.spec_file), (files["lock"], deployment.lock_file))
        output.text("  " + "; ".join(shlex.join(["cp", there, str(ours)]) for there, ours in taken))


def serving_files(deployment: Deployment, lock_id: str) -> dict[str, str]:
    """Which files describe what serves: those of the specification, else those kept when it was verified."""
    from medport import lock as locks
    from medport_deploy.past import approved
    from medport_deploy.spec.reading import FILE_NAME

    present = deployment.lock_if_any()
    if present is not None and present.lock_id == lock_id:
        return {"spec": str(deployment.spec_file), "lock": str(deployment.lock_file)}
    place = deployment.directory / approved.DIRECTORY / lock_id
    if not place.is_dir():
        return {}
    return {"spec": str(place / FILE_NAME), "lock": str(place / locks.FILE_NAME)}
