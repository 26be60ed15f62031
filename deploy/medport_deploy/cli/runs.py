"""What the commands that change something share: a run is told of, may be stopped, and says what it came to."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medport import lock as locks
from medport.cli.output import Output
from medport.errors import EXIT_INTERRUPTED
from medport_deploy.cli.progress import telling

if TYPE_CHECKING:
    from medport_deploy.work.opening import Deployment
    from medport_deploy.work.run import Outcome

_SHORT = 12


@contextmanager
def opened(output: Output, spec: Path, lock: Path | None) -> Iterator[Deployment]:
    """A deployment whose runs are told of on stderr."""
    from medport_deploy.work import opening as work

    with telling(output) as told, work.opened(spec, lock, telling=told) as deployment:
        yield deployment


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
    from medport_deploy.spec.reading import FILE_NAME

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
                **more,
            }
        )
        return
    steps = len(outcome.report.done)
    took = f"{steps} {'step' if steps == 1 else 'steps'} in {outcome.seconds:.1f} s"
    output.text(f"{outcome.verb} of {deployment.spec.name}: {outcome.outcome} ({took})")
    if outcome.outcome == "held":
        output.text(f"lock {outcome.lock_id[:_SHORT]} has its share of the traffic, and the run is open")
        output.note("Next: medport deploy promote, or medport deploy rollback")
    elif outcome.lock_id:
        output.text(f"lock {outcome.lock_id[:_SHORT]} serves")
    if files and files["lock"] != str(deployment.lock_file):
        place = Path(files["lock"]).parent
        output.text(f"described by {place}/{FILE_NAME} and {locks.FILE_NAME}")
        output.text("yours are as they were, and say something else; to take those:")
        output.text(
            f"  cp {place}/{FILE_NAME} {deployment.spec_file}; cp {place}/{locks.FILE_NAME} {deployment.lock_file}"
        )


def serving_files(deployment: Deployment, lock_id: str) -> dict[str, str]:
    """Which files describe what serves: those of the specification, else those kept when it was verified."""
    from medport_deploy.past import approved
    from medport_deploy.spec.reading import FILE_NAME

    present = deployment.lock_if_any()
    if present is not None and present.lock_id == lock_id:
        return {"spec": str(deployment.spec_file), "lock": str(deployment.lock_file)}
    place = deployment.directory / approved.DIRECTORY / lock_id
    if not place.is_dir():
        return {}
    return {"spec": str(place / FILE_NAME), "lock": str(place / locks.FILE_NAME)}
