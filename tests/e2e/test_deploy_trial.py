"""Fleets of real engines are tried at a real control plane: who is well passes, and what is not well fails."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import deploying, trials
from support.plane_server import KEY, PlaneServer, plane_server
from support.stored import bring

from medport.errors import ConfigError, PreconditionFailed, VerificationError
from medport.lock import Lock
from medport_deploy.control.plane import ControlPlane
from medport_deploy.run.interrupts import Stopped
from medport_deploy.spec import reading as specs
from medport_deploy.spec.reading import Spec
from medport_deploy.trial.probing import Straight
from medport_deploy.trial.trial import GateFailed, LiveTrial
from medport_local.serving import accounts, keys
from medport_local.snapshot import MANIFEST
from medport_local.store import Store

FAMILIES: tuple[trials.Family, ...] = ("medgemma", "medsiglip")
NOISE = {"medgemma": 0.3, "medsiglip": 0.3}
KINDS = {
    "medgemma": ["text", "image", "stream", "dicom"],
    "medsiglip": ["text embedding", "image embedding", "dicom embedding"],
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    folder = tmp_path_factory.mktemp("plane")
    store = Store(folder / "store")
    for family in FAMILIES:
        trials.changed(family, folder / family, by=NOISE[family])
        bring(store, folder / family)
    keys.add(folder / "keys.json", "nobody")
    options = ("--allow-faults", "--store", str(store.root), "--keys", str(folder / "keys.json"))
    with plane_server(folder, *options) as server:
        server.line["folder"] = str(folder)
        yield server


@pytest.fixture(autouse=True)
def _key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KEY", KEY)


@pytest.fixture
def control(server: PlaneServer) -> Iterator[ControlPlane]:
    with deploying.plane(server.url, server.line["ca_file"], KEY) as control:
        yield control
    server.http.delete("/medport/v1/faults").raise_for_status()


class Rollout:
    """A standing fleet of a phantom, and a new one beside it with the split that a test gives it."""

    def __init__(
        self, server: PlaneServer, control: ControlPlane, root: Path, name: str, family: trials.Family, gates: str
    ) -> None:
        self.server, self.control, self.root = server, control, root
        limits = json.loads(gates)
        more = {"rollout": {"gates": limits}}
        self.snapshot = trials.manifest(family)
        self.spec = trials.spec_of(server.url, server.line["ca_file"], name, self.snapshot, **more)
        self.standing = trials.deploy(control, self.spec, trials.lock_of(self.snapshot, said="standing"), root)
        self.said: list[str] = []

    def trial(self, lock: Lock) -> LiveTrial:
        return LiveTrial(self.spec, lock, self.root / "kept", self.control, rate_per_s=1000, say=self.said.append)

    def new(self, lock: Lock, share: int) -> str:
        """Deploy it; its id."""
        id_ = trials.fleet(self.spec, lock)
        split = {id_: share, self.standing: 100 - share}
        return trials.deploy(self.control, self.spec, lock, self.root, split)

    def fault(self, **rule: object) -> None:
        self.server.http.post("/medport/v1/faults", json=rule).raise_for_status()


def rollout(server: PlaneServer, control: ControlPlane, tmp_path: Path, name: str, **limits: float) -> Rollout:
    return Rollout(server, control, tmp_path, name, "medsiglip", json.dumps(limits))


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> trials.Family:
    found: trials.Family = request.param
    return found


def test_fleet_that_is_well_passes_straight_through_its_endpoint_and_at_its_gate(
    server: PlaneServer, control: ControlPlane, tmp_path: Path, family: trials.Family
) -> None:
    made = Rollout(
        server,
        control,
        tmp_path,
        f"well-{family}",
        family,
        '{"error_ratio": 0, "p95_ms": 60000, "golden_drift": 0}',
    )
    lock = trials.lock_of(made.snapshot, said="new")
    trial = made.trial(lock)

    trial.baseline("reader")
    new = made.new(lock, 50)
    straight = trial.straight("reader", new)
    results = trial.check("reader", new)
    trial.gate("reader", new, 50, beside=True, watch_s=0, sleep=time.sleep)

    assert straight is None
    assert [each.kind for each in results] == [*KINDS[family], "golden"]
    assert {each.status for each in results[:-1]} == {"ok"}
    assert [each.split(",")[0] for each in made.said[::2]] == [
        "reader at 50 %: error_ratio 0",
        "reader at 50 %: golden_drift 0",
    ]


def test_other_weights_drift_from_the_standing_fleets_answers(
    server: PlaneServer, control: ControlPlane, tmp_path: Path, family: trials.Family
) -> None:
    made = Rollout(server, control, tmp_path, f"drift-{family}", family, '{"golden_drift": 0.25}')
    other = json.loads((Path(server.line["folder"]) / family / MANIFEST).read_bytes())
    lock = trials.lock_of(other)
    trial = made.trial(lock)
    trial.baseline("reader")
    new = made.new(lock, 50)

    with pytest.raises(GateFailed, match=r"reader at 50 % .*golden_drift (0\.\d+|1), limit 0\.25, n = ") as failed:
        trial.gate("reader", new, 50, beside=True, watch_s=0, sleep=time.sleep)

    assert failed.value.field == "rollout.gates.golden_drift"


def test_fleet_that_fails_its_requests_is_stopped_and_the_standing_one_is_not_blamed(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "errors", error_ratio=0.2)
    lock = trials.lock_of(made.snapshot, said="new")
    trial = made.trial(lock)
    trial.baseline("reader")
    new = made.new(lock, 50)
    made.fault(match={"deployedModelId": new}, http={"status": 500})

    with pytest.raises(GateFailed, match=r"error_ratio 1, limit 0\.2, n = "):
        trial.gate("reader", new, 50, beside=True, watch_s=60, sleep=lambda seconds: None)

    met = server.http.get("/medport/v1/faults").json()["faults"][0]["hits"]
    assert met < 20


def test_what_the_standing_fleet_failed_before_is_not_counted_against_the_new_one(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "old-errors", error_ratio=0.2)
    lock = trials.lock_of(made.snapshot, said="new")
    trial = made.trial(lock)
    made.fault(match={"deployedModelId": made.standing}, http={"status": 500})
    trial.baseline("reader")
    new = made.new(lock, 50)

    trial.gate("reader", new, 50, beside=True, watch_s=0, sleep=time.sleep)

    assert made.said[0].startswith("reader at 50 %: error_ratio 0, limit 0.2")


def test_slow_fleet_fails_the_gate_of_latency(server: PlaneServer, control: ControlPlane, tmp_path: Path) -> None:
    made = rollout(server, control, tmp_path, "slow", p95_ms=900)
    lock = trials.lock_of(made.snapshot, said="new")
    trial = made.trial(lock)
    trial.baseline("reader")
    new = made.new(lock, 50)
    made.fault(match={"deployedModelId": new}, http={"delaySeconds": 1})

    with pytest.raises(GateFailed, match=r"p95_ms 1\d\d\d, limit 900, n = 4$"):
        trial.gate("reader", new, 50, beside=True, watch_s=0, sleep=time.sleep)


def test_watch_lasts_as_long_as_asked_for_and_what_stops_it_stops_it_at_once(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "watch")
    slept: list[float] = []
    lock = trials.lock_of(made.snapshot, said="standing")
    trial = LiveTrial(made.spec, lock, tmp_path, control, now=lambda: sum(slept))

    def stop(seconds: float) -> None:
        raise Stopped("by its user")

    trial.gate("reader", made.standing, 100, beside=False, watch_s=240, sleep=slept.append)
    with pytest.raises(Stopped):
        trial.gate("reader", made.standing, 100, beside=False, watch_s=240, sleep=stop)
    with pytest.raises(Stopped):
        trial.smoke("reader", made.standing, sleep=stop)

    assert sum(slept) == pytest.approx(240)
    assert max(slept) <= 15


def test_fleet_that_never_answers_cannot_be_judged(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "silent")
    lock = trials.lock_of(made.snapshot, said="new")

    with pytest.raises(GateFailed, match="error_ratio cannot be judged: 0 samples of the new fleet, 4 are needed"):
        made.trial(lock).gate("reader", "123", 50, beside=False, watch_s=0, sleep=time.sleep)


def test_other_bytes_than_the_lock_names_fail_the_smoke_test_on_both_ways(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "pins")
    wrong = trials.lock_of(made.snapshot, said="another", revision="d" * 40)
    trial = made.trial(wrong)

    with pytest.raises(VerificationError, match=r"it says revision fc86749e8cffcf474881, and the lock dddd"):
        trial.smoke("reader", made.standing)
    with pytest.raises(VerificationError, match=r"3 of 3 kinds.*it says lock id"):
        trial.straight("reader", made.standing)


def test_fleet_is_met_through_a_small_share(server: PlaneServer, control: ControlPlane, tmp_path: Path) -> None:
    made = rollout(server, control, tmp_path, "small")
    lock = trials.lock_of(made.snapshot, said="new")
    new = made.new(lock, 5)

    made.trial(lock).smoke("reader", new)


def test_fleet_that_fails_is_named_by_the_smoke_test_with_its_error(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "broken")
    lock = trials.lock_of(made.snapshot, said="new")
    new = made.new(lock, 0)
    made.fault(match={"deployedModelId": new}, http={"status": 503, "message": "out of memory"})
    trial = made.trial(lock)

    with pytest.raises(VerificationError, match=r"3 of 3 kinds.*text embedding: an error, the last ServerError"):
        trial.straight("reader", new)
    with pytest.raises(PreconditionFailed, match="has no share of the traffic"):
        trial.smoke("reader", new)


@pytest.mark.parametrize("content", [None, b"", b"{}"], ids=["gone", "empty", "another"])
def test_gate_of_drift_does_not_pass_where_the_standing_fleets_answers_are_lost(
    server: PlaneServer, control: ControlPlane, tmp_path: Path, content: bytes | None
) -> None:
    name = "lost-" + {None: "gone", b"": "empty"}.get(content, "other")
    made = rollout(server, control, tmp_path, name, golden_drift=1)
    lock = trials.lock_of(made.snapshot, said="standing")
    trial = made.trial(lock)
    trial.baseline("reader")
    file = tmp_path / "kept" / "golden" / "standing-reader.json"
    file.unlink()
    if content is not None:
        file.write_bytes(content)

    with pytest.raises(GateFailed, match="golden_drift cannot be measured"):
        trial.gate("reader", made.standing, 100, beside=True, watch_s=0, sleep=time.sleep)

    trial.gate("reader", made.standing, 100, beside=False, watch_s=0, sleep=time.sleep)


def test_kept_answers_of_a_lock_that_were_taken_out_of_their_file_are_found(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "emptied")
    lock = trials.lock_of(made.snapshot, said="standing")
    trial = made.trial(lock)
    trial.check("reader", made.standing)
    file = tmp_path / "kept" / "golden" / f"{lock.lock_id}.json"
    file.write_text('{"version": 1, "models": {"reader": {}}}')

    later = trial.check("reader", made.standing)[-1]

    assert (later.status, later.detail) == ("failed", "0 of 4 answers are those that were kept of this lock")


def test_kept_answers_of_a_lock_are_compared_and_others_are_found(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "kept")
    lock = trials.lock_of(made.snapshot, said="standing")
    trial = made.trial(lock)
    first = trial.check("reader", made.standing)[-1]
    again = trial.check("reader", made.standing)[-1]
    file = tmp_path / "kept" / "golden" / f"{lock.lock_id}.json"
    answers = json.loads(file.read_bytes())
    answers["models"]["reader"]["texts-1"] = answers["models"]["reader"]["texts-2"]
    file.write_text(json.dumps(answers))

    later = trial.check("reader", made.standing)[-1]

    assert first.status == "skipped"
    assert first.detail == "no answers of this lock were kept: these 4 are from now on"
    assert (again.status, again.detail) == ("ok", "4 of 4 answers are those that were kept of this lock")
    assert (later.status, later.detail) == ("failed", "3 of 4 answers are those that were kept of this lock")
    assert file.stat().st_mode & 0o777 == 0o600


def test_profile_of_this_machine_does_not_lead_a_trial_elsewhere(
    server: PlaneServer, control: ControlPlane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = rollout(server, control, tmp_path, "profile")
    (tmp_path / "medport.toml").write_text(
        'default_profile = "here"\n[profiles.here]\nsnapshot = { medsiglip = "nowhere" }\n'
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDPORT_URL", "https://127.0.0.1:1")
    spec: Spec = made.spec

    results = made.trial(trials.lock_of(made.snapshot, said="standing")).results("reader", made.standing)

    assert spec.target.url == server.url
    assert os.environ["MEDPORT_URL"] == "https://127.0.0.1:1"
    assert "MEDPORT_CONFIG" not in os.environ
    assert {each.status for each in results} == {"ok"}


def test_target_of_vertexs_kind_is_asked_with_googles_credential_and_has_no_way_straight_to_a_fleet(
    server: PlaneServer, control: ControlPlane, tmp_path: Path
) -> None:
    made = rollout(server, control, tmp_path, "vertex")
    lock = trials.lock_of(made.snapshot, said="new")
    new = made.new(lock, 50)
    pair, email = accounts.key_pair(), "ci@local.iam.gserviceaccount.com"
    file = tmp_path / "ci.json"
    accounts.write_credentials(
        file, project=deploying.PROJECT, email=email, token_uri=f"{server.url}/token", pair=pair
    )
    registered = Path(server.line["folder"]) / "keys.json"
    keys.add_account(registered, "ci", email=email, key_id=pair.id, pem=pair.public_pem)
    target = made.spec.target.model_copy(update={"kind": "vertex", "auth": specs.Auth(credentials_file=str(file))})
    made.spec = made.spec.model_copy(update={"target": target})
    time.sleep(1.2)  # a running server reads its keys once a second

    results = made.trial(lock).results("reader", new)

    assert {each.status for each in results} == {"ok"}
    assert "has no way straight to a fleet" in (made.trial(lock).straight("reader", new) or "")


@pytest.mark.parametrize(
    ("change", "said"), [("key", "KEY is not set"), ("ca_file", "certificate file cannot be read")]
)
def test_setting_that_is_missing_is_named_before_anything_is_sent(
    server: PlaneServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: str, said: str
) -> None:
    snapshot = trials.manifest("medsiglip")
    ca_file = server.line["ca_file"] if change == "key" else str(tmp_path / "nowhere.pem")
    if change == "key":
        monkeypatch.delenv("KEY")
    spec = trials.spec_of(server.url, ca_file, "unset", snapshot)

    with pytest.raises(ConfigError, match=said), Straight(spec, "reader", "1", timeout_s=1):
        pass
