"""Trying a fleet before it gets more of the traffic: straight, through its endpoint, and for a while at a share.

    trial = LiveTrial(spec, lock, directory, control)
    trial.smoke("reader", id_)
    trial.gate("reader", id_, 25, watch_s=300, sleep=time.sleep)

What is sent costs money and takes a place in the queue, so it is little: one request at a time, at most two a
second at Vertex AI (twenty at a local control plane), each of a few tokens. Nothing of it is a patient's.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from pydantic import ValidationError

from medport.errors import PreconditionFailed
from medport.lock import Lock, LockedModel
from medport.wire.vertex import Pins
from medport_deploy import provenance, state_files
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.spec.reading import Spec
from medport_deploy.trial import gates, golden, smoke, smoke_inputs
from medport_deploy.trial.gates import GateFailed, Samples
from medport_deploy.trial.golden import Golden
from medport_deploy.trial.probing import Straight, ThroughEndpoint
from medport_deploy.trial.sampling import Baseline, Tally, pace_of
from medport_deploy.trial.smoke import SmokeResult
from medport_deploy.trial.smoke_inputs import Case

__all__ = ["GateFailed", "LiveTrial", "SmokeResult", "Trial"]

RATES_PER_S = {"vertex": 2.0, "local": 20.0}
Sleep = Callable[[float], None]
_SMOKE_S, _PROBE_S = 300.0, 60.0
_BASELINE_ROUNDS = 2
"""Each golden question is asked so often, which shows those that the standing fleet answers now so, now so."""


class Trial(Protocol):
    """What a rollout asks for.

    ``name`` is always the model's in the specification. ``sleep`` lets time pass between requests; what it raises
    ends the trial.
    """

    def straight(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> str | None:
        """A smoke test of a fleet without traffic.

        Returns:
            ``None``: it passed. A text: the target has no way straight to a fleet, and why.

        Raises:
            VerificationError: a kind failed.
        """
        ...

    def smoke(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> None:
        """A smoke test through the endpoint, of all kinds, until that fleet has answered each.

        Raises:
            VerificationError: a kind failed, or the fleet did not answer.
        """
        ...

    def baseline(self, name: str, *, sleep: Sleep = time.sleep) -> None:
        """See what the standing fleet does, before the new one has a share."""
        ...

    def gate(
        self, name: str, deployed_model_id: str, share: int, *, beside: bool, watch_s: float, sleep: Sleep
    ) -> None:
        """Watch a fleet at its share, in per cent, and judge it.

        Args:
            beside: it takes over from fleets that ``baseline`` saw: a drift from what that kept is judged, and if
                it is not there any more, nothing passes.
            watch_s: for how long; 0: no longer than a few requests take.

        Raises:
            GateFailed: a gate did not pass, or there were too few samples to say.
        """
        ...


class LiveTrial:
    """By requests to what is deployed.

    Args:
        directory: of the deployment; golden answers and what the standing fleet does are kept in it.
        control: tells who has which share.
        rate_per_s: requests at most; by the target's kind if none.
        say: is told what was measured.
        now: seconds of a clock that never goes back.
    """

    def __init__(
        self,
        spec: Spec,
        lock: Lock,
        directory: Path,
        control: ControlPlane,
        *,
        rate_per_s: float | None = None,
        say: Callable[[str], None] = lambda text: None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._spec = spec
        self._lock = lock
        self._directory = directory
        self._control = control
        self._gap_s = 1 / (rate_per_s or RATES_PER_S[spec.target.kind])
        self._say = say
        self._now = now

    def straight(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> str | None:
        """As ``Trial``."""
        if self._spec.target.kind != "local":
            # A version has a predict route or lets all routes through, not both (ModelContainerSpec).
            return "Vertex AI has no way straight to a fleet whose model has a predict route"
        if not self._spec.models[name].endpoint.dedicated:
            return "an endpoint that is not dedicated has no way straight to a fleet"
        with Straight(self._spec, name, deployed_model_id, timeout_s=self._timeout_s(name, _SMOKE_S)) as door:
            results = smoke.run(
                door, self._cases(name), self._pins(name), deployed_model_id, pause=self._pause(sleep)
            )
        smoke.check(results, name=name)
        return None

    def smoke(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> None:
        """As ``Trial``."""
        smoke.check(self.results(name, deployed_model_id, sleep=sleep), name=name)

    def results(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> list[SmokeResult]:
        """A smoke test through the endpoint as data: a failed kind raises nothing.

        Raises:
            PreconditionFailed: the fleet has no share of the traffic.
            AuthError, ConfigError, PolicyError: it is the caller who may not ask.
        """
        share = self._share(name, deployed_model_id)
        with self._through(name, _SMOKE_S) as door:
            return smoke.run(
                door,
                self._cases(name),
                self._pins(name),
                deployed_model_id,
                share=share,
                pause=self._pause(sleep),
            )

    def check(
        self, name: str, deployed_model_id: str, *, record: bool = True, sleep: Sleep = time.sleep
    ) -> list[SmokeResult]:
        """A smoke test as data, and at its end ``golden``: the answers against those kept of this lock.

        Args:
            record: keep the answers if there are none and all else is well.

        Raises:
            As ``results``; ConfigError too if the kept answers cannot be read.
        """
        results = self.results(name, deployed_model_id, sleep=sleep)
        well = all(each.status != "failed" for each in results)
        pause = self._pause(sleep)
        return [*results, self._golden(name, deployed_model_id, record=record and well, pause=pause)]

    def remember(self, name: str, deployed_model_id: str, *, sleep: Sleep = time.sleep) -> SmokeResult:
        """Keep the golden answers of a fleet that was found good; or compare them, if this lock's are kept.

        Raises:
            As ``results``; ConfigError too if the kept answers cannot be read.
        """
        return self._golden(name, deployed_model_id, record=True, pause=self._pause(sleep))

    def baseline(self, name: str, *, sleep: Sleep = time.sleep) -> None:
        """As ``Trial``. It is kept on the disk, so that a run that goes on in another process has it.

        Raises:
            AuthError, ConfigError, PolicyError: it is the caller who may not ask.
        """
        self._forget(name)
        if not self._split(name):
            return
        tally, pause = Tally(), self._pause(sleep)
        with self._through(name, _PROBE_S) as door:
            for case in smoke_inputs.golden(self._model(name)) * _BASELINE_ROUNDS:
                if tally.asked:
                    pause()
                tally.ask(door, case, None, Pins())
        samples = tally.samples(float(tally.unknown))
        kept = Baseline(
            lock_id=self._lock.lock_id,
            answered=len(samples.latencies_ms),
            failed=tally.unknown,
            golden={key: list(each) for key, each in samples.golden.items()},
        )
        golden.write(self._baseline_file(name), kept)

    def gate(
        self, name: str, deployed_model_id: str, share: int, *, beside: bool, watch_s: float, sleep: Sleep
    ) -> None:
        """As ``Trial``."""
        limits, standing = self._spec.rollout.gates, self._standing(name) if beside else None
        if beside and standing is None and limits.golden_drift is not None:
            raise GateFailed(
                f"{name} at {share} % of the traffic: golden_drift cannot be measured:"
                " what the standing fleet answered is not kept any more",
                field="rollout.gates.golden_drift",
                remedy="roll out again: medport deploy plan, then medport deploy apply",
            )
        cases, pins = smoke_inputs.golden(self._model(name)), self._pins(name)
        pace = pace_of(len(cases), share, watch_s, self._gap_s)
        tally = Tally()

        def seen() -> Samples:
            ratio = standing.error_ratio if standing else 0.0
            own = gates.own_errors(tally.unknown, asked=tally.asked, share=share, standing_ratio=ratio)
            return tally.samples(own)

        began = self._now()
        with self._through(name, _PROBE_S) as door:
            while tally.asked < pace.planned or (tally.asked < pace.most and seen().n < pace.needed):
                sleep(max(0.0, began + tally.asked * pace.gap_s - self._now()))
                tally.ask(door, tally.next_of(cases), deployed_model_id, pins)
                to_come = math.ceil(max(0, pace.planned - tally.asked) * share / 100) + 1
                if gates.hopeless(limits, seen(), standing, to_come=to_come):
                    break
            else:
                sleep(max(0.0, began + watch_s - self._now()))
        verdicts = gates.judge(limits, seen(), standing)
        for each in verdicts:
            self._say(f"{name} at {share} %: {each.said}")
        gates.check(verdicts, name=name, share=share)

    def _golden(
        self, name: str, deployed_model_id: str, *, record: bool, pause: Callable[[], None]
    ) -> SmokeResult:
        kept = golden.load(self._directory, self._lock.lock_id, name)
        if kept is None and not record:
            return SmokeResult("golden", "skipped", "no answers of this lock are kept")
        most = smoke.tries(self._share(name, deployed_model_id))
        answers: dict[str, Golden] = {}
        cases = smoke_inputs.golden(self._model(name))
        with self._through(name, _PROBE_S) as door:
            for case in cases:
                pause()
                found = smoke.until(door, case, deployed_model_id, most=most, pause=pause)
                if found.answer is not None:
                    answers[case.name] = Golden.of(found.answer)
        if len(answers) < len(cases):
            said = f"the fleet answered {len(answers)} of {len(cases)} golden questions"
            return SmokeResult("golden", "failed", said)
        if kept is None:
            golden.keep(self._directory, self._lock.lock_id, name, answers)
            said = f"no answers of this lock were kept: these {len(answers)} are from now on"
            return SmokeResult("golden", "skipped", said)
        others = [*golden.contradictions(kept, answers), *(each for each in answers if each not in kept)]
        said = f"{len(answers) - len(others)} of {len(answers)} answers are those that were kept of this lock"
        return SmokeResult("golden", "failed" if others else "ok", said)

    def _standing(self, name: str) -> Samples | None:
        try:
            kept = Baseline.model_validate_json(state_files.read(self._baseline_file(name)))
        except (OSError, ValidationError):
            return None
        if kept.lock_id != self._lock.lock_id:
            return None
        return kept.samples()

    def _forget(self, name: str) -> None:
        with suppress(OSError):
            self._baseline_file(name).unlink()

    def _baseline_file(self, name: str) -> Path:
        return self._directory / "golden" / f"standing-{name}.json"

    def _through(self, name: str, timeout_s: float) -> ThroughEndpoint:
        return ThroughEndpoint(self._spec, self._model(name), name, timeout_s=self._timeout_s(name, timeout_s))

    def _timeout_s(self, name: str, most: float) -> float:
        return min(most, self._spec.models[name].endpoint.inference_timeout_s)

    def _cases(self, name: str) -> list[Case]:
        return smoke_inputs.smoke(self._model(name))

    def _model(self, name: str) -> LockedModel:
        provenance.pins_of(self._lock, name)  # says what to do if it is not there
        return self._lock.models[name]

    def _pins(self, name: str) -> Pins:
        return provenance.pins_of(self._lock, name)

    def _split(self, name: str) -> dict[str, int]:
        return split_of(self._control.get_endpoint(self._spec.endpoint_id(name)))

    def _share(self, name: str, deployed_model_id: str) -> int:
        split = self._split(name)
        if deployed_model_id not in split:
            raise PreconditionFailed(
                f"the fleet {deployed_model_id} has no share of the traffic of {self._spec.endpoint_id(name)}",
                field="trafficSplit",
                remedy="see who has it: medport deploy status",
            )
        return split[deployed_model_id]

    def _pause(self, sleep: Sleep) -> Callable[[], None]:
        """Waits between two requests, so that they begin no sooner one after the other than the rate allows."""
        last = self._now()

        def pause() -> None:
            nonlocal last
            # Also where nothing is left to wait for: whoever sleeps for us may have been asked to stop.
            sleep(max(0.0, last + self._gap_s - self._now()))
            last = self._now()

        return pause
