"""Whether vLLM may serve a model: only after a test of this very version, device, number type and snapshot.

An engine that masks the tokens of an image wrongly answers without an error, and most of its tokens stay the same.
So the test compares each greedy token and its logprob with transformers' own forward, and measures what a wrong
mask would have done to the same logprobs: a test that could not have told is no pass. Plain Python.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from pydantic import BaseModel, ConfigDict, ValidationError

from medport.errors import ConfigError
from medport_local.engine.sequence import GenerationRequest
from medport_local.engine.vllm_probes import Probe, image_probes, text_probes
from medport_local.snapshot import Snapshot

if TYPE_CHECKING:
    from medport_local.engine.engine import Engine

TOLERANCE = {"float32": 1e-3, "bfloat16": 0.15}
"""The largest difference of logprobs that arithmetic alone explains, in nats."""
SENSITIVITY = 5.0
"""A wrong mask must move some logprob by so many tolerances, or the test proves nothing."""


class Place(BaseModel):
    """Where a test holds: another version, device, number type or setting may compute something else."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    version: str
    """vLLM's."""
    device: str
    dtype: Literal["float32", "bfloat16"]
    eager: bool
    prefix_cache: bool


@dataclass(frozen=True, slots=True)
class Score:
    """What the reference thinks of one token of an answer, given all tokens before it."""

    logprob: float
    best: int
    best_logprob: float


class Judge(Protocol):
    """The reference path: scores a given answer token by token."""

    def __call__(
        self, request: GenerationRequest, tokens: Sequence[int], *, blind: bool = False
    ) -> Sequence[Score]:
        """``blind``: with the wrong mask, in which an image's tokens see only what stands before them."""


class Case(BaseModel):
    """One prompt, asked alone and once more beside the others."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    images: int
    tokens: int
    """How many were asked for."""
    equal: int
    """How often the reference's most likely token is the one that came."""
    ties: int
    """How often it is not, but the two were as good as equally likely."""
    gap: float
    """The largest difference of a token's logprob from the reference's; infinite where one is no number."""
    blind_gap: float | None = None
    """The same between the reference's right and wrong mask; ``None`` without images."""


class GateReport(BaseModel):
    """The record of a test. It holds counts, and nothing of any prompt."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    place: Place
    snapshot_sha256: str
    model_id: str
    images: bool
    """Whether it is the test with images."""
    cases: tuple[Case, ...]
    agreement: float
    """The share of tokens that are the reference's or tie with them."""
    gap: float
    passed: bool
    reason: str


def verify_text(engine: Engine, reference: Judge, snapshot: Snapshot, place: Place) -> GateReport:
    """Compare an engine with the reference on text, short and longer than the sliding window."""
    return _verify(engine, reference, snapshot, place, text_probes(engine))


def verify_images(engine: Engine, reference: Judge, snapshot: Snapshot, place: Place) -> GateReport:
    """The same, and one and three images at several places of the prompt."""
    assert engine.images is not None
    return _verify(engine, reference, snapshot, place, [*text_probes(engine), *image_probes(engine)])


def offered(snapshot: Snapshot, record: GateReport | None, place: Place) -> tuple[bool, str]:
    """Whether vLLM may serve this snapshot here, and why or why not."""
    if record is None:
        return False, f"vLLM {place.version} was not tested with this snapshot on {place.device}"
    if record.snapshot_sha256 != snapshot.snapshot_sha256:
        return False, "the record of vLLM's test is of another snapshot"
    if record.place != place:
        names = [name for name in Place.model_fields if getattr(record.place, name) != getattr(place, name)]
        return False, f"the record of vLLM's test is of another {', '.join(names)}"
    if snapshot.takes_images and not record.images:
        return False, "vLLM was tested with text only, and the model takes images"
    if not record.passed:
        return False, f"vLLM {place.version} failed its test on {place.device}: {record.reason}"
    return True, f"vLLM {place.version} passed its test on {place.device}"


def require(snapshot: Snapshot, state: Path, place: Place) -> GateReport:
    """The passing record that allows vLLM to serve this snapshot here.

    Args:
        state: the operator's directory of records.

    Raises:
        ConfigError: there is none. Names the command that makes one.
    """
    record = read_record(state, snapshot, place)
    allowed, reason = offered(snapshot, record, place)
    if not allowed or record is None:
        raise ConfigError(
            reason,
            field="engine",
            remedy="run medport engine verify with this snapshot, or serve it with --engine torch",
        )
    return record


def record_path(state: Path, snapshot: Snapshot, place: Place) -> Path:
    """Where the record of a test lies."""
    digest = hashlib.sha256(place.model_dump_json().encode()).hexdigest()
    return state / f"vllm-{snapshot.snapshot_sha256[:16]}-{digest[:16]}.json"


def write_record(state: Path, snapshot: Snapshot, report: GateReport) -> Path:
    """Keep a record, whether it passed or not. It replaces the last one at once and whole."""
    state.mkdir(parents=True, exist_ok=True)
    path = record_path(state, snapshot, report.place)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(report.model_dump(), indent=1) + "\n")
    draft.replace(path)
    return path


def read_record(state: Path, snapshot: Snapshot, place: Place) -> GateReport | None:
    """The record of a test; ``None`` where there is none that can be read."""
    try:
        return GateReport.model_validate_json(record_path(state, snapshot, place).read_bytes())
    except (OSError, ValidationError):
        return None


@dataclass(frozen=True, slots=True)
class _Answer:
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]


def _verify(
    engine: Engine, reference: Judge, snapshot: Snapshot, place: Place, probes: Sequence[Probe]
) -> GateReport:
    alone, together = asyncio.run(_ask(engine, probes))
    cases = [
        _case(probe, answers, reference, TOLERANCE[place.dtype])
        for probe, answers in zip(probes, zip(alone, together, strict=True), strict=True)
    ]
    reason = _fault(cases, TOLERANCE[place.dtype])
    good = sum(case.equal + case.ties for case in cases)
    return GateReport(
        place=place,
        snapshot_sha256=snapshot.snapshot_sha256,
        model_id=snapshot.model_id,
        images=any(case.images for case in cases),
        cases=tuple(cases),
        agreement=good / sum(case.tokens for case in cases),
        gap=max(case.gap for case in cases),
        passed=reason is None,
        reason=reason or "all tokens and logprobs are the reference's",
    )


async def _ask(engine: Engine, probes: Sequence[Probe]) -> tuple[list[_Answer], list[_Answer]]:
    """Each alone, and then as many at once as the engine takes: what shares a step must not change."""
    alone = [await _answer(engine, probe) for probe in probes]
    places = asyncio.Semaphore(engine.limits.max_running)

    async def beside(probe: Probe) -> _Answer:
        async with places:
            return await _answer(engine, probe)

    return alone, list(await asyncio.gather(*map(beside, probes)))


async def _answer(engine: Engine, probe: Probe) -> _Answer:
    told = [token async for event in engine.submit(probe.request) for token in event.tokens]
    return _Answer(tuple(each.token for each in told), tuple(each.logprob for each in told))


def _case(probe: Probe, answers: Sequence[_Answer], reference: Judge, tolerance: float) -> Case:
    equal = ties = 0
    gap, blind_gap = 0.0, 0.0
    scored: dict[tuple[int, ...], Sequence[Score]] = {}
    for answer in answers:
        if answer.tokens not in scored:
            scores = scored[answer.tokens] = reference(probe.request, answer.tokens)
            if probe.request.images:
                wrong = reference(probe.request, answer.tokens, blind=True)
                moved = [abs(a.logprob - b.logprob) for a, b in zip(scores, wrong, strict=True)]
                blind_gap = max([blind_gap, *moved])
        scores = scored[answer.tokens]
        assert len(scores) == len(answer.tokens) == len(answer.logprobs)
        for token, logprob, score in zip(answer.tokens, answer.logprobs, scores, strict=True):
            equal += token == score.best
            # Each of the two logprobs may be off by the tolerance.
            ties += token != score.best and score.best_logprob - score.logprob <= 2 * tolerance
            off = abs(logprob - score.logprob)
            gap = max(gap, math.inf if math.isnan(off) else off)
    return Case(
        name=probe.name,
        images=len(probe.request.images),
        # What does not come is not equal either.
        tokens=len(answers) * probe.request.sampling.max_tokens,
        equal=equal,
        ties=ties,
        gap=gap,
        blind_gap=blind_gap if probe.request.images else None,
    )


def _fault(cases: Sequence[Case], tolerance: float) -> str | None:
    """Why the cases are no pass; ``None`` if they are one."""
    for case in cases:
        if wrong := case.tokens - case.equal - case.ties:
            return f"{case.name}: {wrong} of {case.tokens} tokens are not the reference's"
        if case.gap > tolerance:
            return f"{case.name}: logprobs differ by {case.gap:.2g}, and {tolerance:g} is allowed"
    seen = [case.blind_gap for case in cases if case.blind_gap is not None]
    if seen and max(seen) < SENSITIVITY * tolerance:
        return (
            f"a wrong image mask would change logprobs by {max(seen):.2g} only: the test cannot tell; use float32"
        )
    return None
