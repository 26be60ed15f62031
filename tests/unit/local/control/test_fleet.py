"""Which engine takes a request: turns by the traffic split, cold starts, requests in flight."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medport.errors import Forbidden, NotFound, NotReady, PreconditionFailed
from medport.wire.vertex import ColdStart
from medport_local.control import deployed, records
from medport_local.control.database import Database
from medport_local.control.deployed import Deployment, State
from medport_local.control.fleet import Fleet, _Route
from medport_local.control.host import Intent
from medport_local.control.project import Project

PROJECT = Project("rehearsal", "europe-west4")
ENDPOINT = f"{PROJECT.parent}/endpoints/e"
MODEL = f"{PROJECT.parent}/models/m"


class Site:
    """A state on the disk, a fleet over it, and a clock that a test moves."""

    def __init__(self, directory: Path) -> None:
        self.database = Database(directory, {})
        self.now_s = 0.0
        self.wanted: list[tuple[str, str]] = []
        self.fleet: Fleet[str] = Fleet(
            PROJECT, self.database, wanted=lambda *key: self.wanted.append(key), clock=lambda: self.now_s
        )

    def endpoint(self, split: dict[str, int]) -> None:
        with self.database.writing() as tx:
            record = records.find(tx, ENDPOINT)
            if record is None:
                record = records.insert(tx, ENDPOINT, "endpoint", PROJECT.parent, {})
            records.update(tx, record, {"trafficSplit": split})
        self.fleet.reread(ENDPOINT)

    def model(self, id_: str, state: State = "READY", *, runs: bool = True, **resources: Any) -> None:
        body = {"id": id_, "dedicatedResources": resources or {"minReplicaCount": 1}}
        intent = Intent(
            endpoint=ENDPOINT, deployed_model_id=id_, model=MODEL, model_version_id="1", display_name=""
        )
        row = Deployment(
            endpoint=ENDPOINT, id=id_, model=MODEL, state=state, body=body, intent=intent, operation="o"
        )
        with self.database.writing() as tx:
            before = deployed.find(tx, ENDPOINT, id_)
            deployed.insert(tx, row) if before is None else deployed.update(tx, row)
        if runs and not self.fleet.has(ENDPOINT, id_):
            self.fleet.install(ENDPOINT, id_, f"engine {id_}")
        self.fleet.reread(ENDPOINT)

    def turns(self, count: int) -> list[str]:
        leases = [self.fleet.enter(PROJECT.id, "europe-west4", "e") for _ in range(count)]
        for lease in leases:
            lease.release()
        return [lease.deployed_model_id for lease in leases]


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.database.close()


def test_ten_requests_of_a_split_of_90_to_10_are_nine_and_one(site: Site) -> None:
    site.model("1")
    site.model("2")
    site.endpoint({"1": 90, "2": 10})

    for _ in range(5):
        assert Counter(site.turns(10)) == {"1": 9, "2": 1}


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(1, 50), min_size=2, max_size=5), st.integers(1, 300))
def test_no_model_is_ever_more_than_one_turn_per_model_away_from_its_share(weights: list[int], count: int) -> None:
    scale = 100 / sum(weights)
    split = {str(i): round(weight * scale) for i, weight in enumerate(weights)}
    split["0"] += 100 - sum(split.values())
    route = _Route("e", split, {})

    seen = Counter(route.turn() for _ in range(count))

    for id_, share in split.items():
        assert abs(seen[id_] - count * share / 100) <= len(split)


def test_the_same_split_read_again_does_not_begin_the_turns_anew(site: Site) -> None:
    site.model("1")
    site.model("2")
    site.endpoint({"1": 90, "2": 10})

    taken: list[str] = []
    for _ in range(20):
        taken += site.turns(1)
        site.fleet.reread(ENDPOINT)

    assert Counter(taken) == {"1": 18, "2": 2}


def test_a_request_may_name_the_deployed_model_that_answers_whatever_its_share(site: Site) -> None:
    site.model("1")
    site.model("2")
    site.endpoint({"1": 100})

    lease = site.fleet.enter("-", "-", "e", "2")

    assert (lease.served, lease.deployed_model_id) == ("engine 2", "2")


def test_an_endpoint_without_a_split_says_so_in_the_words_of_vertex(site: Site) -> None:
    site.endpoint({})

    with pytest.raises(PreconditionFailed, match=r"doesn't have traffic_split"):
        site.turns(1)


def test_an_endpoint_whose_models_get_no_traffic_says_the_same(site: Site) -> None:
    site.model("1")
    site.endpoint({})

    with pytest.raises(PreconditionFailed, match=r"doesn't have traffic_split"):
        site.turns(1)


def test_an_endpoint_that_is_not_there_is_not_found(site: Site) -> None:
    with pytest.raises(NotFound, match="endpoints/e` is not found"):
        site.turns(1)


def test_a_deployed_model_that_is_not_there_is_not_found(site: Site) -> None:
    site.endpoint({})
    with pytest.raises(NotFound, match="no deployed model 9"):
        site.fleet.enter("-", "-", "e", "9")
    site.model("1")
    with pytest.raises(NotFound, match="no deployed model 9"):
        site.fleet.enter("-", "-", "e", "9")


@pytest.mark.parametrize(
    ("project", "location", "error"), [("other", "-", Forbidden), ("rehearsal", "us-east1", NotFound)]
)
def test_another_project_or_location_is_refused(
    site: Site, project: str, location: str, error: type[Exception]
) -> None:
    site.model("1")
    site.endpoint({"1": 100})

    with pytest.raises(error):
        site.fleet.enter(project, location, "e")


def test_a_model_that_is_being_loaded_after_a_restart_answers_not_ready_with_a_time(site: Site) -> None:
    site.model("1", runs=False)
    site.endpoint({"1": 100})

    with pytest.raises(NotReady, match="being loaded") as caught:
        site.turns(1)

    assert caught.value.retry_after_s == 5
    assert not isinstance(caught.value, ColdStart)


def test_a_model_that_failed_keeps_its_share_and_the_others_go_on(site: Site) -> None:
    site.model("1")
    site.model("2", runs=False)
    site.endpoint({"1": 50, "2": 50})
    site.fleet.failed(ENDPOINT, "2", "the snapshot is not the approved one", again_s=None)

    said: list[str] = []
    for _ in range(10):
        try:
            said += site.turns(1)
        except NotReady as error:
            said.append(error.message)

    assert said.count("1") == 5
    assert sum("not the approved one" in each for each in said) == 5
    assert site.wanted == []


def test_a_model_that_failed_for_a_passing_reason_is_wanted_again_after_a_while(site: Site) -> None:
    site.model("1", runs=False)
    site.endpoint({"1": 100})
    site.fleet.failed(ENDPOINT, "1", "no memory", again_s=30)
    with pytest.raises(NotReady):
        site.turns(1)
    assert site.wanted == []

    site.now_s = 30
    with pytest.raises(NotReady):
        site.turns(1)

    assert site.wanted == [(ENDPOINT, "1")]


def test_a_request_for_a_sleeping_model_is_a_cold_start_and_wakes_it_once(site: Site) -> None:
    site.model("1", "ASLEEP", runs=False)
    site.endpoint({"1": 100})

    for _ in range(3):
        with pytest.raises(ColdStart):
            site.turns(1)

    assert site.wanted == [(ENDPOINT, "1")]


def test_a_wake_that_failed_is_tried_at_the_next_request(site: Site) -> None:
    site.model("1", "ASLEEP", runs=False)
    site.endpoint({"1": 100})
    with pytest.raises(ColdStart):
        site.turns(1)
    site.fleet.failed(ENDPOINT, "1", "no memory", again_s=0)

    with pytest.raises(ColdStart):
        site.turns(1)

    assert site.wanted == [(ENDPOINT, "1")] * 2


def idle_model(site: Site) -> None:
    site.model("1", scaleToZeroSpec={"idleScaledownPeriod": "300s", "minScaleupPeriod": "600s"})
    site.endpoint({"1": 100})


def test_a_model_is_idle_after_its_period_without_requests_and_its_time_up(site: Site) -> None:
    idle_model(site)
    site.now_s = 599
    assert site.fleet.idle() == []

    site.now_s = 600
    assert site.fleet.idle() == [(ENDPOINT, "1")]

    site.turns(1)
    site.now_s = 899
    assert site.fleet.idle() == []
    site.now_s = 900
    assert site.fleet.idle() == [(ENDPOINT, "1")]


def test_a_model_with_a_request_in_flight_is_not_idle(site: Site) -> None:
    idle_model(site)
    lease = site.fleet.enter("-", "-", "e")
    site.now_s = 10_000

    assert site.fleet.idle() == []
    assert site.fleet.doze(ENDPOINT, "1") is None

    lease.release()
    site.now_s = 20_000
    assert site.fleet.doze(ENDPOINT, "1") == "engine 1"


def test_a_model_with_replicas_that_stay_is_never_idle(site: Site) -> None:
    site.model("1", minReplicaCount=1)
    site.endpoint({"1": 100})
    site.now_s = 10**9

    assert site.fleet.idle() == []


def test_a_model_that_dozes_off_meets_requests_with_a_cold_start_before_the_disk_says_so(site: Site) -> None:
    idle_model(site)
    site.now_s = 10_000
    site.fleet.doze(ENDPOINT, "1")

    with pytest.raises(ColdStart):
        site.turns(1)


def test_a_model_that_drains_takes_no_request_and_is_drained_when_the_last_ends(site: Site) -> None:
    site.model("1")
    site.endpoint({"1": 100})
    lease = site.fleet.enter("-", "-", "e")
    site.model("1", "DRAINING")
    with pytest.raises((NotFound, PreconditionFailed)):
        site.turns(1)
    drained: list[bool] = []
    waiting = threading.Thread(target=lambda: drained.append(site.fleet.drain(ENDPOINT, "1", 10, lambda: False)))
    waiting.start()

    assert waiting.is_alive()
    lease.release()
    waiting.join(5)

    assert drained == [True]
    assert site.fleet.remove(ENDPOINT, "1") == "engine 1"


def test_draining_ends_when_its_time_is_over_or_somebody_is_in_a_hurry(site: Site) -> None:
    site.model("1")
    site.endpoint({"1": 100})
    site.fleet.enter("-", "-", "e")

    assert not site.fleet.drain(ENDPOINT, "1", 0, lambda: False)
    assert not site.fleet.drain(ENDPOINT, "1", 10, lambda: True)


def test_a_lease_given_back_twice_counts_once(site: Site) -> None:
    site.model("1")
    site.endpoint({"1": 100})
    first, second = (site.fleet.enter("-", "-", "e") for _ in range(2))

    first.release()
    first.release()

    assert not site.fleet.drain(ENDPOINT, "1", 0, lambda: False)
    second.release()
    assert site.fleet.drain(ENDPOINT, "1", 0, lambda: False)


def test_each_endpoint_shows_the_engine_with_most_of_its_traffic_that_runs(site: Site) -> None:
    site.model("1")
    site.model("2", runs=False)
    site.endpoint({"1": 20, "2": 80})
    assert site.fleet.showing() == {"e": "engine 1"}

    site.fleet.install(ENDPOINT, "2", "engine 2")

    assert site.fleet.showing() == {"e": "engine 2"}
    assert set(site.fleet.engines()) == {"engine 1", "engine 2"}


def test_many_threads_leave_no_request_in_flight_and_share_by_the_split(site: Site) -> None:
    site.model("1")
    site.model("2")
    site.endpoint({"1": 75, "2": 25})
    taken: Counter[str] = Counter()

    def ask() -> None:
        mine = Counter(site.turns(100))
        with lock:
            taken.update(mine)

    lock = threading.Lock()
    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert taken == {"1": 600, "2": 200}
    assert all(site.fleet.drain(ENDPOINT, id_, 0, lambda: False) for id_ in ("1", "2"))
