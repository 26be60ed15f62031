"""Whether a fleet answers at all, and rightly as to form: one request of each kind, read closely.

What is asked is drawn by us (``smoke_inputs``). What an answer means is nobody's business here: that it is there,
whole, without tokens that are not for readers, and of the bytes that the lock names.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from medport.errors import AuthError, ConfigError, MedportError, PolicyError, VerificationError
from medport.wire.vertex import Pins
from medport_deploy.trial.probing import Answer, Door
from medport_deploy.trial.smoke_inputs import Case

Status = Literal["ok", "failed", "skipped"]
UNIT_TOLERANCE = 1e-3
"""By which the length of an embedding may differ from one."""
_MISSED = 1e-3
"""The chance at which so many tries miss a fleet that is there."""
_MOST_TRIES, _MOST_ERRORS = 700, 5
_NOT_FOR_READERS = re.compile(r"<unused\d+>|<(?:start|end)_of_(?:turn|image)>|<(?:bos|eos|pad|image_soft_token)>")
_SANE_ENDS = ("stop", "length")
_PINS = {
    "model_id": "model",
    "revision": "revision",
    "image_digest": "image digest",
    "snapshot_sha256": "snapshot sha256",
    "lock_id": "lock id",
}


@dataclass(frozen=True, slots=True)
class SmokeResult:
    """How one kind went."""

    kind: str
    """Such as ``image``, or ``golden`` for the answers that are kept."""
    status: Status
    detail: str
    """In words; holds nothing of an answer."""
    latency_ms: float | None = None
    """Of the answer that counted."""


@dataclass(slots=True)
class Found:
    """What a case brought, over all its tries."""

    answer: Answer | None = None
    """Of the fleet that was wanted."""
    untold: list[Answer] = field(default_factory=list)
    """Answers that name no fleet."""
    others: int = 0
    """Answers of other fleets."""
    errors: list[MedportError] = field(default_factory=list)


def tries(share: int) -> int:
    """How often to ask at most, so that a fleet with this share of the traffic, in per cent, is met."""
    if share >= 100:
        return 1
    return min(_MOST_TRIES, math.ceil(math.log(_MISSED) / math.log(1 - max(share, 1) / 100)))


def run(
    door: Door,
    cases: Iterable[Case],
    pins: Pins,
    deployed_model_id: str,
    *,
    share: int = 100,
    pause: Callable[[], None] = lambda: None,
) -> list[SmokeResult]:
    """Ask each case until the fleet has answered it.

    Args:
        pins: what the lock says of the fleet.
        share: of the fleet in the traffic that ``door`` sends to, in per cent.
        pause: is called between two requests.

    Raises:
        AuthError, ConfigError, PolicyError: it is the caller who may not, or cannot, ask.
    """
    results = []
    for number, case in enumerate(cases):
        if number:
            pause()
        results.append(_one(door, case, pins, deployed_model_id, share, pause))
    return results


def check(results: Sequence[SmokeResult], *, name: str) -> None:
    """Raise ``VerificationError`` if a kind failed; says which, and how.

    Args:
        name: of the model in the specification.
    """
    failed = [each for each in results if each.status == "failed"]
    if failed:
        said = "; ".join(f"{each.kind}: {each.detail}" for each in failed)
        raise VerificationError(
            f"{name} failed its smoke test ({len(failed)} of {len(results)} kinds): {said}",
            remedy="see the server's log of that time",
        )


def until(
    door: Door, case: Case, deployed_model_id: str, *, most: int, pause: Callable[[], None] = lambda: None
) -> Found:
    """Ask until a fleet has answered, ``most`` times at most. Raises as ``run``."""
    found = Found()
    for number in range(most):
        if number:
            pause()
        try:
            answer = door.ask(case)
        except (AuthError, ConfigError, PolicyError):
            raise
        except MedportError as error:
            found.errors.append(error)
            if len(found.errors) >= _MOST_ERRORS:
                break
            continue
        if answer.deployed_model_id == deployed_model_id:
            found.answer = answer
            break
        if answer.deployed_model_id is None:
            found.untold.append(answer)
        else:
            found.others += 1
    return found


def faults(case: Case, answer: Answer, pins: Pins) -> list[str]:
    """What is wrong with an answer; empty if nothing."""
    return [*(_of_vectors(case, answer) if case.items else _of_text(case, answer)), *_of_pins(answer.pins, pins)]


def _one(
    door: Door, case: Case, pins: Pins, deployed_model_id: str, share: int, pause: Callable[[], None]
) -> SmokeResult:
    if case.missing:
        return SmokeResult(case.kind, "skipped", case.missing)
    found = until(door, case, deployed_model_id, most=tries(share), pause=pause)
    if found.answer is not None:
        answer, place = found.answer, ""
        wrong = faults(case, answer, pins)
    elif found.untold and not found.others:
        # Which fleet gave a stream is not told by every target: all of them must be right, then.
        answer, place = found.untold[-1], f", as {len(found.untold)} answers were that name no fleet"
        none = Pins()  # of which fleet, nobody knows
        wrong = sorted({said for each in found.untold for said in faults(case, each, none)})
    else:
        return SmokeResult(case.kind, "failed", _unmet(found, deployed_model_id))
    if wrong:
        return SmokeResult(case.kind, "failed", ", ".join(wrong) + place, answer.latency_ms)
    lost = f", after {_counted(found.errors)}" if found.errors else ""
    return SmokeResult(case.kind, "ok", f"{_shape(answer)}{place}{lost}; drawn input", answer.latency_ms)


def _unmet(found: Found, deployed_model_id: str) -> str:
    if found.errors and not found.others:
        last = found.errors[-1]
        return f"{_counted(found.errors)}, the last {type(last).__name__}: {last.message}"
    asked = found.others + len(found.untold) + len(found.errors)
    lost = f", {_counted(found.errors)}" if found.errors else ""
    return f"the fleet {deployed_model_id} answered 0 of {asked} requests{lost}"


def _counted(errors: Sequence[MedportError]) -> str:
    return "an error" if len(errors) == 1 else f"{len(errors)} errors"


def _of_text(case: Case, answer: Answer) -> Iterable[str]:
    if answer.thought:
        yield "it thinks aloud, unasked"
    if not answer.text:
        yield "the answer is empty"
    elif _NOT_FOR_READERS.search(answer.text) and not answer.thought:
        yield "the answer holds control tokens"
    if answer.finish_reason not in _SANE_ENDS:
        yield f"it ended by {answer.finish_reason or 'nothing that it names'}"
    if case.streams and not answer.streamed:
        yield "the answer came as a whole, not as a stream"


def _of_vectors(case: Case, answer: Answer) -> Iterable[str]:
    vectors = answer.vectors
    if vectors is None or vectors.shape[0] != case.items or vectors.shape[1] < 2:
        yield f"there are not {case.items} embeddings"
        return
    if not np.isfinite(vectors).all():
        yield "an embedding holds a value that is no finite number"
        return
    lengths = np.linalg.norm(vectors, axis=1)
    if (off := float(np.abs(lengths - 1).max())) > UNIT_TOLERANCE:
        yield f"the length of an embedding differs from one by {off:.2g}"
    if len({row.tobytes() for row in vectors}) != len(vectors):
        yield "different inputs got the same embedding"


def _of_pins(told: Pins, wanted: Pins) -> Iterable[str]:
    for key, label in _PINS.items():
        said, right = getattr(told, key), getattr(wanted, key)
        if said is not None and right is not None and said != right:
            yield f"it says {label} {said:.20}, and the lock {right:.20}"


def _shape(answer: Answer) -> str:
    if answer.vectors is not None:
        count, width = answer.vectors.shape
        return f"{count} embeddings of {width}"
    return f"{len(answer.text or '')} characters, ended by {answer.finish_reason}"
