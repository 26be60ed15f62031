"""Whatever is done to a store, in whatever order, and killed at whatever point: it stays right."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from support.snapshots import manifest_of, write_small
from support.store_worker import Worker

from medport_local.store import Store

SEEDS = st.integers(0, 2)
NAMES = st.sampled_from(["ward", "site"])
# None: it is not killed.
KILLS = st.none() | st.integers(1, 90)


class StoreMachine(RuleBasedStateMachine):
    """A store beside a model of it: what must be in it, what may be, and what is damaged."""

    worker: Worker

    def __init__(self) -> None:
        super().__init__()
        memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
        self.place = Path(tempfile.mkdtemp(prefix="medport-store-law-", dir=memory))
        self.folders = [write_small(self.place / str(seed), seed=seed) for seed in range(3)]
        self.sha256 = [manifest_of(folder).snapshot_sha256 for folder in self.folders]
        self.root = self.place / "store"

    @initialize()
    def make(self) -> None:
        Store(self.root)
        self.present: set[str] = set()
        self.pins: dict[str, set[str]] = {}
        self.damaged = False

    @rule(seed=SEEDS, kill_at=KILLS, no_links=st.booleans())
    def pull(self, seed: int, kill_at: int | None, no_links: bool) -> None:
        outcome = self.do(
            "add", kill_at=kill_at, folders=[str(self.folders[seed])], no_links=no_links, identity=str(seed)
        )
        self.see({self.sha256[seed]} if outcome["killed"] or self.refused(outcome) else set(), set())
        if "result" in outcome:
            assert self.sha256[seed] in self.present

    @rule(kill_at=KILLS)
    def collect(self, kill_at: int | None) -> None:
        kept = set().union(*self.pins.values())
        outcome = self.do("collect", kill_at=kill_at)
        loose = self.present - kept
        if outcome["killed"]:
            self.see(set(), loose)
        else:
            assert set(outcome["result"]) == loose
            self.see(set(), loose)
            assert self.present <= kept

    @rule(name=NAMES, kill_at=KILLS)
    def pin(self, name: str, kill_at: int | None) -> None:
        outcome = self.do("pin", kill_at=kill_at, name=name, snapshots=sorted(self.present))
        if not outcome["killed"] or name in Store(self.root).pins():
            self.pins[name] = set(Store(self.root).pins()[name].snapshots)
        if not outcome["killed"]:
            assert self.pins[name] == self.present

    @rule(name=NAMES, kill_at=KILLS)
    def unpin(self, name: str, kill_at: int | None) -> None:
        self.do("unpin", kill_at=kill_at, name=name)
        if name not in Store(self.root).pins():
            self.pins.pop(name, None)

    @rule(which=st.randoms(use_true_random=False))
    def damage(self, which: Any) -> None:
        blobs = sorted((self.root / "blobs").glob("*/*"))
        if blobs and not self.damaged:
            blob = which.choice(blobs)
            data = bytearray(blob.read_bytes())
            data[0] ^= 1
            blob.chmod(0o644)
            blob.write_bytes(data)
            blob.chmod(0o444)
            self.damaged = True

    @rule()
    def repair(self) -> None:
        """Take out what is damaged, and bring it again."""
        self.do("verify", repair=True)
        assert "result" in self.do("add", folders=[str(folder) for folder in self.folders], identity="repair")
        self.damaged = False
        self.see(set(self.sha256), set())
        assert self.present == set(self.sha256)

    @invariant()
    def everything_is_right_unless_something_was_damaged(self) -> None:
        if (self.root / "format").exists() and not self.damaged:
            assert Store(self.root).verify() == []

    @invariant()
    def what_is_listed_opens_unless_something_was_damaged(self) -> None:
        if (self.root / "format").exists() and not self.damaged:
            store = Store(self.root)
            assert {store.open(each).snapshot_sha256 for each in store.list()} == self.present

    def teardown(self) -> None:
        for folder, _, _ in os.walk(self.place):
            os.chmod(folder, 0o700)
        shutil.rmtree(self.place)

    def do(self, action: str, *, kill_at: int | None = None, **order: Any) -> dict[str, Any]:
        outcome = self.worker.run(action, self.root, kill_at=kill_at or 0, **order)
        if "error" in outcome:
            kind = outcome["error"][0]
            assert kind == "NotFound" if action == "unpin" else self.refused(outcome), outcome
        return outcome

    def refused(self, outcome: dict[str, Any]) -> bool:
        """A pull may be refused, if it meets what was damaged."""
        return self.damaged and "error" in outcome and outcome["error"][0] == "VerificationError"

    def see(self, may_have_come: set[str], may_have_gone: set[str]) -> None:
        there = {each.snapshot_sha256 for each in Store(self.root).list()}
        if not may_have_come:
            may_have_come = set(self.sha256)
        assert there - self.present <= may_have_come
        assert self.present - there <= may_have_gone
        self.present = there


def test_store_stays_right_whatever_is_done_to_it(worker: Worker) -> None:
    class Machine(StoreMachine):
        pass

    Machine.worker = worker

    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        Machine,
        settings=settings(
            max_examples=25,
            stateful_step_count=15,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_law_notices_a_store_that_loses_files(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    """The law itself can fail: here a file is lost each time that the store is looked at."""
    look = Store.verify

    def losing(self: Store, *args: Any, **options: Any) -> Any:
        for path in (self.root / "snapshots").glob("*/config.json"):
            path.parent.chmod(0o755)
            path.unlink()
        return look(self, *args, **options)

    class Machine(StoreMachine):
        pass

    Machine.worker = worker
    monkeypatch.setattr(Store, "verify", losing)

    with pytest.raises(AssertionError):
        run_state_machine_as_test(  # type: ignore[no-untyped-call]
            Machine,
            settings=settings(
                max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None
            ),
        )
