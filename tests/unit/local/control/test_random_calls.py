"""Calls in random orders, some at once, with failures and restarts, against a plain model of what must hold."""

from __future__ import annotations

import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from tests.support.planes import Json, Standing, standing

from medport.errors import AlreadyExists, InputError, MedportError, NotFound, PreconditionFailed, VerificationError

IDS = ("1", "2", "3", "4")
SHARES = st.sampled_from((0, 1, 20, 50, 100))


class RandomCalls(RuleBasedStateMachine):
    """One endpoint; ``deployed`` and ``split`` are what a caller may expect."""

    @initialize()
    def start(self) -> None:
        self.directory = Path(tempfile.mkdtemp())
        self.deployed: set[str] = set()
        self.split: dict[str, int] = {}
        self.open()
        self.site.endpoint()
        self.site.model()

    def open(self) -> None:
        self.stack = ExitStack()
        self.site: Standing = self.stack.enter_context(standing(self.directory))

    def teardown(self) -> None:
        if hasattr(self, "stack"):
            self.stack.close()
            shutil.rmtree(self.directory)

    @rule(id_=st.sampled_from(IDS), share=SHARES, fails=st.booleans())
    def deploy(self, id_: str, share: int, fails: bool) -> None:
        split = self.with_share(id_, share)
        if fails:
            self.site.host.failures[id_] = VerificationError("no")
        try:
            operation = self.site.call.done(self.site.deploying(id_, split=split))
        except AlreadyExists:
            assert id_ in self.deployed
            return
        except InputError:
            assert sum(split.values()) != 100
            return
        finally:
            self.site.host.failures.clear()
        assert id_ not in self.deployed
        assert ("error" in operation) == fails
        if not fails:
            self.deployed.add(id_)
            self.split = {(id_ if key == "0" else key): value for key, value in split.items() if value}

    def with_share(self, id_: str, share: int) -> dict[str, int]:
        """The new model's share, and the rest for one that has traffic."""
        others = sorted(self.split)
        if not others:
            return {"0": share}
        return {"0": share, others[0]: 100 - share}

    @rule(id_=st.sampled_from(IDS), heir=st.sampled_from(IDS))
    def undeploy(self, id_: str, heir: str) -> None:
        split = {heir: 100} if self.split.get(id_) and self.deployed - {id_} else None
        try:
            operation = self.site.call.done(self.site.undeploying(id_, split=split))
        except NotFound:
            assert id_ not in self.deployed
            return
        except (InputError, PreconditionFailed):
            assert split
            assert heir not in self.deployed - {id_}
            return
        assert "error" not in operation
        self.deployed.remove(id_)
        self.split = split or {key: value for key, value in self.split.items() if key != id_}

    @rule(first=st.sampled_from(IDS), second=st.sampled_from(IDS), share=SHARES)
    def share(self, first: str, second: str, share: int) -> None:
        split = {first: share} | {second: 100 - share}
        try:
            self.site.share(split)
        except InputError:
            named = {id_ for id_, value in split.items() if value}
            assert sum(split.values()) != 100 or not named <= self.deployed
            return
        self.split = {id_: value for id_, value in split.items() if value}

    @rule(calls=st.lists(st.tuples(st.booleans(), st.sampled_from(IDS)), min_size=2, max_size=4))
    def several_at_once(self, calls: list[tuple[bool, str]]) -> None:
        begun: list[Json] = []
        for deploys, id_ in calls:
            try:
                begun.append(self.site.deploying(id_) if deploys else self.site.undeploying(id_))
            except MedportError:
                continue
        for operation in begun:
            self.site.call.done(operation)
        self.deployed = set(self.site.shown())
        self.split = self.site.split()

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.open()
        assert self.site.plane.quiet(10)

    @invariant()
    def everything_fits(self) -> None:
        if not hasattr(self, "site"):
            return
        assert self.site.split() == self.split
        assert sum(self.split.values()) in (0, 100)
        assert self.split.keys() <= self.deployed
        assert set(self.site.shown()) == self.deployed
        assert {(row.id, row.state) for row in self.site.rows()} == {(id_, "READY") for id_ in self.deployed}
        assert self.site.host.keys() == sorted(f"e/{id_}" for id_ in self.deployed)
        assert all(operation["done"] for operation in self.site.call("GET", "operations")["operations"])
        if self.split:
            taken = [self.site.enter() for _ in range(100)]
            assert {id_: taken.count(id_) for id_ in set(taken)} == self.split


TestRandomCalls = RandomCalls.TestCase
TestRandomCalls.settings = settings(
    max_examples=15, stateful_step_count=12, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
