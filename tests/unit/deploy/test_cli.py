"""The commands of ``medport deploy`` at a real control plane: what they print, their codes, what they leave."""

from __future__ import annotations

import json
import re
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from support.desks import MIRROR, VARIABLE, Desk
from support.plane_server import KEY, PlaneServer
from typer.main import get_command

from medport.cli import delegated
from medport.errors import EXIT_CHANGES, EXIT_FAILED, EXIT_USAGE
from medport_deploy.cli import app as cli
from medport_deploy.past import approved, history
from medport_deploy.run import run_lock
from medport_deploy.trial import golden


@pytest.fixture
def desk(
    plane: PlaneServer, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    monkeypatch.setenv(VARIABLE, KEY)
    made = Desk(plane, tmp_path, f"c{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.close()
    assert plane.ok("GET", f"/endpoints?filter=labels.medport-deployment={made.name}").get("endpoints", []) == []


def outcomes(desk: Desk) -> list[tuple[str, str]]:
    return [(each.verb, each.outcome) for each in history.read(desk.state)]


def commands() -> list[Any]:
    app = typer.Typer()
    app.callback()(lambda: None)
    cli.register(app)
    deploy: Any = get_command(app).commands["deploy"]  # type: ignore[attr-defined]
    return list(deploy.commands.values())


@pytest.mark.parametrize("command", commands(), ids=lambda each: str(each.name))
def test_every_command_has_an_example_json_and_a_traceback_on_demand(command: Any) -> None:
    options = {name for each in command.params for name in each.opts}

    assert f"medport deploy {command.name}" in command.epilog
    assert {"--json", "--no-color", "--debug"} <= options
    assert all(each.help for each in command.params)


@pytest.mark.parametrize("name", delegated.COMMANDS)
def test_every_command_that_help_lists_is_brought_by_its_package(name: str) -> None:
    package, _ = delegated.COMMANDS[name]
    app = typer.Typer()
    app.callback()(lambda: None)

    import_module(package.module).register(app)

    found: Any = get_command(app)
    assert name in found.commands


@pytest.mark.parametrize("arguments", [["--help"], ["history"], ["lock", "--offline"]], ids=" ".join)
def test_what_calls_nobody_loads_no_client_of_googles(tmp_path: Path, arguments: list[str]) -> None:
    program = (
        "import sys\nfrom medport.cli import main\n"
        f"try: main(['deploy', *{arguments!r}])\n"
        "except SystemExit: pass\n"
        "print([name for name in ('google.cloud.aiplatform_v1', 'torch', 'medport_local') if name in sys.modules])"
    )
    (tmp_path / "medport.yaml").write_text("version: 1\n")

    ran = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)

    assert ran.stdout.splitlines()[-1] == "[]"


def test_lock_says_what_it_wrote_and_writes_nothing_the_second_time(desk: Desk) -> None:
    desk.write()

    first = desk.run("lock", "--mirror", str(MIRROR), "--offline")
    written = (desk.root / "medport.lock").stat().st_mtime_ns
    second = desk.run("lock", "--mirror", str(MIRROR), "--offline", "--json")

    assert (first.code, second.code) == (0, 0)
    assert "model reader: nothing -> medport/medgemma-phantom@" in first.out
    assert second.json["written"] is False
    assert second.json["changes"] == []
    assert second.json["lock_id"] in first.out
    assert (desk.root / "medport.lock").stat().st_mtime_ns == written


def test_plan_without_a_lock_says_how_to_make_one(desk: Desk) -> None:
    desk.write()

    said = desk.run("plan", "--json")

    assert said.code == EXIT_USAGE
    assert (said.out, said.error["field"], said.error["remedy"]) == ("", "lock", "medport deploy lock")


def test_specification_that_is_not_there_is_named(desk: Desk, tmp_path: Path) -> None:
    said = desk.run("status")

    assert said.code == EXIT_USAGE
    assert "medport.yaml cannot be read" in said.err
    assert "medport deploy init" in said.err


def test_apply_without_a_plan_says_how_to_make_one(desk: Desk) -> None:
    desk.write()
    desk.locked()

    said = desk.run("apply")

    assert said.code == EXIT_USAGE
    assert "plan.json cannot be read" in said.err
    assert "medport deploy plan" in said.err


def test_plan_is_saved_for_its_owner_alone_and_apply_does_it(desk: Desk) -> None:
    plan = desk.planned()
    saved = Path(plan["plan"])

    applied = desk.run("apply")
    again = desk.run("plan")
    nothing = desk.run("apply")

    assert saved == desk.state / "plan.json"
    assert [stat.S_IMODE(each.stat().st_mode) for each in (saved, desk.state)] == [0o600, 0o700]
    assert (plan["changes"], plan["exit_code"]) == (True, EXIT_CHANGES)
    assert (applied.code, again.code, nothing.code, nothing.out) == (0, 0, 0, "nothing to do\n")
    assert f"lock {plan['lock_id'][:12]} serves" in applied.out
    assert "nothing to do: what stands is what the lock says" in again.out
    assert list(desk.split().values()) == [100]
    assert outcomes(desk) == [("apply", "verified")]


def test_stages_are_told_on_stderr_and_not_with_json(desk: Desk) -> None:
    desk.planned()
    told = desk.run("apply")
    desk.planned(number=2)

    silent = desk.run("apply", "--json")

    assert re.search(r"\[ *\d+\.\d s\] create endpoint .* …", told.err)
    assert re.search(r"✓ deploy .*: done \(\d+\.\d s\)", told.err)
    assert "create endpoint" not in told.out
    assert silent.err == ""
    assert (silent.json["outcome"], silent.json["verb"]) == ("verified", "apply")


def test_no_output_and_no_file_of_the_state_holds_the_key(desk: Desk) -> None:
    desk.deployed()
    for command in ("plan", "status", "verify", "history", "sweep"):
        desk.run(command)

    files = [file for file in desk.root.rglob("*") if file.is_file()]
    assert len(files) > 5
    assert not [file.name for file in files if KEY.encode() in file.read_bytes()]
    assert KEY not in "".join(said.out + said.err for said in desk.said)


def test_plan_whose_specification_has_changed_is_not_applied(desk: Desk) -> None:
    desk.planned()
    desk.file.write_text(desk.file.read_text() + "# a comment\n")

    said = desk.run("apply", "--json")

    assert said.code == EXIT_FAILED
    assert said.error["type"] == "PreconditionFailed"
    assert "the specification changed" in said.error["message"]
    assert desk.journals() == []


def test_plan_is_not_applied_once_somebody_else_has_deployed(desk: Desk, plane: PlaneServer) -> None:
    desk.deployed()
    desk.planned(number=2)
    version = f"{plane.parent}/models/{desk.spec.model_id('reader')}"
    by_hand = plane.deployed(
        desk.endpoint, version, displayName="by hand", split={"0": 40, next(iter(desk.split())): 60}
    )
    before = desk.split()

    said = desk.run("apply", "--json")

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "PreconditionFailed")
    assert "what stands for reader changed" in said.error["message"]
    assert (desk.split(), before[by_hand]) == (before, 40)
    desk.run("destroy", "--yes")


def test_plan_of_another_version_is_not_applied(desk: Desk) -> None:
    saved = Path(desk.planned()["plan"])
    saved.write_text(json.dumps({**json.loads(saved.read_text()), "medport": "9.9.9"}))

    said = desk.run("apply", "--json")

    assert said.code == EXIT_FAILED
    assert "made by medport 9.9.9" in said.error["message"]
    assert said.error["remedy"] == "plan again: medport deploy plan"
    assert desk.journals() == []


@pytest.mark.parametrize(
    "command", [("lock", "--mirror", str(MIRROR), "--offline"), ("destroy", "--yes")], ids=lambda each: each[0]
)
def test_terraform_root_that_is_not_there_is_named(desk: Desk, command: tuple[str, ...]) -> None:
    desk.write(model={"endpoint": {"id": "4100000012"}}, terraform={"root": "nowhere"})

    said = desk.run(*command, "--json")
    desk.file.unlink()

    assert said.code == EXIT_USAGE
    assert (said.error["message"], said.error["field"]) == ("there is no directory nowhere", "terraform.root")


def test_plan_in_a_file_of_ones_own_is_named_to_apply(desk: Desk, tmp_path: Path) -> None:
    desk.write()
    desk.locked()
    mine = tmp_path / "mine.json"

    planned = desk.run("plan", "-o", str(mine))
    applied = desk.run("apply", str(mine))

    assert f"medport deploy apply {mine}" in planned.err
    assert (planned.code, applied.code) == (EXIT_CHANGES, 0)


def test_failing_gate_gives_the_traffic_back_and_says_what_was_measured(desk: Desk) -> None:
    desk.deployed()
    before, fleets = desk.split(), desk.fleets()
    plan = desk.planned(number=2)
    new = next(row["after"]["id"] for row in plan["rows"] if row["address"] == "deployed_model.reader")
    # Straight it answers, so that it gets its share.
    desk.fault({"status": 500}, path="*/endpoints/{endpoint}:predict", deployedModelId=new)
    desk.fault({"status": 500}, path="*/endpoints/{endpoint}/chat/completions", deployedModelId=new)

    said = desk.run("apply")

    assert said.code == EXIT_FAILED
    assert re.search("^(GateFailed|VerificationError): .*reader", said.err, re.MULTILINE)
    assert "taken back: what served before serves as it did" in said.err
    assert (desk.split(), desk.fleets()) == (before, fleets)
    assert outcomes(desk) == [("apply", "verified"), ("apply", "taken back")]
    assert history.read(desk.state)[-1].why
    assert not list((desk.state / "runs").glob("*"))


def test_held_run_stands_in_the_way_of_another_plan_until_it_is_promoted(desk: Desk) -> None:
    old = desk.deployed()
    plan = desk.planned(number=2)
    held = desk.run("apply", "--hold", "50")
    share = sorted(desk.split().values())
    replanned = desk.run("plan")
    other = desk.run("apply", "--json")

    promoted = desk.run("promote", "--json")

    assert (held.code, share) == (0, [50, 50])
    assert "medport deploy promote, or medport deploy rollback" in held.err
    assert "has not come to its end: medport deploy status" in replanned.err
    assert (other.code, other.error["type"]) == (EXIT_FAILED, "Conflict")
    assert "medport deploy promote" in other.error["remedy"]
    assert (promoted.code, promoted.json["outcome"]) == (0, "verified")
    assert promoted.json["lock_id"] == plan["lock_id"] != old
    assert max(desk.split().values()) == 100
    assert desk.run("plan").code == 0


def test_held_run_is_gone_on_with_as_it_was_approved_whatever_the_files_say_since(desk: Desk) -> None:
    desk.deployed()
    plan = desk.planned(number=2)
    desk.run("apply", "--hold", "50")
    desk.write(number=3)
    desk.locked()

    promoted = desk.run("promote")

    assert promoted.code == 0
    assert f"lock {plan['lock_id'][:12]} serves" in promoted.out
    assert f"approved/{plan['lock_id']}/medport.lock" in promoted.out


def test_held_run_goes_back(desk: Desk) -> None:
    old = desk.deployed()
    before, fleets = desk.split(), desk.fleets()
    desk.planned(number=2)
    desk.run("apply", "--hold", "50")

    said = desk.run("rollback", "--json")

    assert (said.code, said.json["outcome"], said.json["lock_id"]) == (0, "taken back", old)
    assert (desk.split(), desk.fleets()) == (before, fleets)
    assert not [each for each in desk.journals() if each.open]


def test_rollback_lets_the_fleet_that_was_kept_serve_again(desk: Desk) -> None:
    old = desk.deployed()
    before, fleets = desk.split(), desk.fleets()
    new = desk.deployed(number=2)
    kept = desk.file.read_bytes(), (desk.root / "medport.lock").read_bytes()

    said = desk.run("rollback", "--json")

    assert (said.code, said.json["outcome"], said.json["lock_id"]) == (0, "verified", old)
    assert not [title for title in said.json["done"] if title.startswith("deploy ")]
    assert (desk.split(), desk.fleets()) == (before, fleets)
    assert said.json["described_by"]["lock"] == str(desk.state / "approved" / old / "medport.lock")
    assert (desk.file.read_bytes(), (desk.root / "medport.lock").read_bytes()) == kept
    last = history.read(desk.state)[-1]
    assert (last.verb, last.outcome, last.rejected) == ("rollback", "verified", new)


def test_rollback_goes_to_where_the_target_is_now(desk: Desk) -> None:
    old = desk.deployed()
    before = desk.split()
    desk.deployed(number=2)
    approved = desk.state / "approved" / old / "medport.yaml"
    approved.write_text(re.sub(r"https://[\w.:]+", "https://127.0.0.1:9", approved.read_text()))

    said = desk.run("rollback")

    assert said.code == 0, said.err
    assert desk.split() == before


def test_rejected_fleet_may_stay(desk: Desk) -> None:
    desk.deployed()
    before = desk.split()
    desk.deployed(number=2)

    said = desk.run("rollback", "--keep")

    assert said.code == 0
    assert desk.split() == before
    assert len(desk.fleets()) == 2


def test_rollback_deploys_anew_what_is_gone(desk: Desk) -> None:
    rollout = {"steps": [50, 100], "bake_s": 0, "retain_s": 0}
    old = desk.deployed(rollout=rollout)
    desk.deployed(number=2, rollout=rollout)

    said = desk.run("rollback", "--to", old[:8], "--json")

    assert (said.code, said.json["outcome"], said.json["lock_id"]) == (0, "verified", old)
    assert [title for title in said.json["done"] if title.startswith("deploy ")]
    assert len(desk.fleets()) == 1
    assert history.read(desk.state)[-1].rejected


def test_rollback_with_nothing_to_go_back_to_changes_nothing(desk: Desk) -> None:
    desk.deployed()
    before = desk.split()

    said = desk.run("rollback", "--json")

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "NotFound")
    assert said.error["remedy"] == "medport deploy history shows which were"
    assert desk.split() == before


def test_promote_lets_go_of_what_is_kept_and_then_has_nothing_to_do(desk: Desk) -> None:
    desk.deployed()
    desk.deployed(number=2)
    two = len(desk.fleets())

    first, second = desk.run("promote"), desk.run("promote")

    assert (first.code, second.code, two, len(desk.fleets())) == (0, 0, 2, 1)
    assert second.out == "nothing to do\n"
    assert desk.run("plan").code == 0


def test_credentials_that_expire_half_way_leave_the_run_open_and_a_later_apply_ends_it(desk: Desk) -> None:
    desk.deployed()
    before = desk.split()
    desk.planned(number=2)
    # From the smoke test on; what was deployed before that stays.
    desk.fault({"status": 401}, path="*/endpoints/{endpoint}", method="PATCH")

    refused = desk.run("apply", "--json")
    shares, fleets = desk.split(), len(desk.fleets())
    desk.well()
    again = desk.run("apply", "--json")

    assert (refused.code, refused.error["type"]) == (EXIT_FAILED, "AuthError")
    assert refused.error["remedy"]
    assert (shares, fleets) == (before, 2)
    assert (again.code, again.json["resumed"], again.json["outcome"]) == (0, True, "verified")
    assert [outcome for _, outcome in outcomes(desk)] == ["verified", "failed", "verified"]


def test_sweep_lists_what_a_run_left_and_takes_nothing_unless_it_is_agreed_to(desk: Desk) -> None:
    desk.deployed()
    before, fleets = desk.split(), desk.fleets()
    desk.planned(number=2)
    desk.run("apply", "--hold", "49")

    listed = desk.run("sweep")
    still = len(desk.fleets())
    swept = desk.run("sweep", "--yes", "--json")
    again = desk.run("sweep")

    assert (listed.code, still) == (EXIT_FAILED, 2)
    assert "deployed_model" in listed.out
    assert "give --yes" in listed.err
    assert swept.code == 0
    assert {each["kind"] for each in swept.json["found"]} == {"deployed_model", "version"}
    assert (desk.split(), desk.fleets()) == (before, fleets)
    assert again.out == f"nothing is left over of {desk.name}\n"


def test_sweep_leaves_what_is_kept_for_a_way_back(desk: Desk) -> None:
    desk.deployed()
    desk.deployed(number=2)

    said = desk.run("sweep", "--yes")

    assert said.out == f"nothing is left over of {desk.name}\n"
    assert len(desk.fleets()) == 2


def test_destroy_asks_first_takes_all_and_says_what_stays(desk: Desk, plane: PlaneServer) -> None:
    desk.deployed()
    endpoint = desk.endpoint

    asked = desk.run("destroy", "--json")
    still = plane.call("GET", f"/endpoints/{endpoint}").status_code
    gone = desk.run("destroy", "--yes")
    again = desk.run("destroy")

    assert (asked.code, asked.error["remedy"], still) == (EXIT_FAILED, "give --yes", 200)
    assert gone.code == 0
    assert "stays: snapshots in the server's store" in gone.out
    assert plane.call("GET", f"/endpoints/{endpoint}").status_code == 404
    assert plane.call("GET", f"/models/{desk.spec.model_id('reader')}").status_code == 404
    assert (again.code, again.out) == (0, f"nothing is there of {desk.name}\n")
    assert outcomes(desk)[-1] == ("destroy", "destroyed")
    assert desk.run("rollback").code == EXIT_FAILED


def test_what_was_destroyed_can_be_deployed_again(desk: Desk) -> None:
    desk.deployed()
    desk.run("destroy", "--yes")

    again = desk.deployed()

    assert history.read(desk.state)[-1].lock_id == again
    assert list(desk.split().values()) == [100]


def test_verify_is_a_report_that_can_be_signed_and_checked(desk: Desk, tmp_path: Path) -> None:
    lock_id = desk.deployed()
    private, public = keys(tmp_path)
    report = tmp_path / "report.json"

    verified = desk.run("verify", "--report", str(report), "--sign", str(private), "--json")
    checked = checked_report(report, public)
    report.write_text(report.read_text().replace(lock_id, "0" * 64))
    changed = checked_report(report, public)

    assert (verified.code, verified.json["findings"]) == (0, [])
    assert "smoke.text" in [each["check"] for each in verified.json["passed"]]
    assert (checked[0], json.loads(checked[1])["lock_id"]) == (0, lock_id)
    assert changed[0] == EXIT_FAILED


def test_drift_is_a_code_of_its_own(desk: Desk, plane: PlaneServer, tmp_path: Path) -> None:
    desk.deployed()
    labels = {**plane.endpoint(desk.endpoint)["labels"], "medport-deployment": desk.name, "by": "hand"}
    plane.ok(
        "PATCH",
        f"/endpoints/{desk.endpoint}?updateMask=displayName,labels",
        {"displayName": "x", "labels": labels},
    )

    said = desk.run("verify", "--no-smoke", "--report", str(tmp_path / "report.json"))

    assert said.code == EXIT_CHANGES
    assert "display_name" in said.out
    assert json.loads((tmp_path / "report.json").read_text())["exit_code"] == EXIT_CHANGES


def test_state_that_was_lost_is_made_up_for_by_verifying(desk: Desk) -> None:
    first = desk.deployed()
    shutil.rmtree(desk.state)

    verified = desk.run("verify")
    again = desk.run("verify")

    assert (verified.code, again.code) == (0, 0)
    assert [(each.verb, each.outcome, each.lock_id) for each in history.read(desk.state)] == [
        ("verify", "verified", first)
    ]
    assert approved.load(desk.state, first)[1].lock_id == first


def test_what_was_not_asked_for_everything_is_not_called_verified(desk: Desk) -> None:
    desk.deployed()
    shutil.rmtree(desk.state)

    desk.run("verify", "--no-smoke")

    assert not desk.state.exists() or history.read(desk.state) == []


def test_run_keeps_the_golden_answers_that_it_found_good(desk: Desk) -> None:
    lock_id = desk.deployed()

    assert golden.load(desk.state, lock_id, "reader")


def test_signature_without_a_report_is_wrong_usage(desk: Desk) -> None:
    desk.write()

    assert desk.run("verify", "--sign", "key.pem").code == EXIT_USAGE


def test_status_and_history_say_what_serves(desk: Desk) -> None:
    lock_id = desk.deployed()

    status, told = desk.run("status", "--json"), desk.run("history", "--json")

    assert (status.code, told.code) == (0, 0)
    assert status.json["lock_id"] == lock_id
    assert [each["outcome"] for each in told.json["entries"]] == ["verified"]
    assert lock_id[:12] in desk.run("status").out
    assert lock_id[:12] in desk.run("history").out


def test_one_run_at_a_time(desk: Desk) -> None:
    desk.planned()

    with run_lock.held(desk.state, "apply"):
        said = desk.run("apply", "--json")

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "Conflict")
    assert desk.journals() == []


def test_lock_may_be_elsewhere(desk: Desk, tmp_path: Path) -> None:
    desk.write()
    elsewhere = str(tmp_path / "of-the-team.lock")

    locked = desk.run("lock", "--mirror", str(MIRROR), "--offline", "--lock", elsewhere)
    missing, planned = desk.run("plan"), desk.run("plan", "--lock", elsewhere)

    assert (locked.code, missing.code, planned.code) == (0, EXIT_USAGE, EXIT_CHANGES)


def test_google_without_a_login_says_how_to_log_in(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(desk.root / "none"))
    monkeypatch.delenv("GOOGLE_APPLICATION_CREDENTIALS", raising=False)
    desk.write()
    whole = yaml.safe_load(desk.file.read_text())
    whole["target"] = {"kind": "vertex", "project": "radiology", "location": "europe-west4"}
    desk.file.write_text(yaml.safe_dump(whole))
    desk.locked()

    said = desk.run("plan", "--json")
    desk.file.unlink()

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "AuthError")
    assert said.error["remedy"] == "gcloud auth application-default login"


def test_paths_of_a_specification_begin_where_it_is(desk: Desk, tmp_path: Path) -> None:
    desk.write()
    whole = yaml.safe_load(desk.file.read_text())
    (tmp_path / "ca.pem").write_bytes(Path(whole["target"]["ca_file"]).read_bytes())
    whole["target"]["ca_file"] = "ca.pem"
    desk.file.write_text(yaml.safe_dump(whole))
    desk.locked()

    said = desk.run("plan")

    assert said.code == EXIT_CHANGES


def keys(folder: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.generate()
    private, public = folder / "key.pem", folder / "public.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    private.chmod(0o600)
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


def checked_report(report: Path, public: Path) -> tuple[int, str]:
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from medport.cli import main

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as ended:
        main(["deploy", "check-report", str(report), "--key", str(public), "--json"])
    return int(str(ended.value.code)), out.getvalue()
