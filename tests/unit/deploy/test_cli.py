"""The commands of ``medport deploy`` at a real control plane: what they print, their codes, what they leave."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
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
from medport_deploy.plan.making import target_of
from medport_deploy.run import run_lock
from medport_deploy.trial import golden
from medport_deploy.work.opening import terraform_environment


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


@pytest.mark.parametrize("name", [None, *(each.name for each in commands())])
def test_help_loads_what_it_shows_and_nothing_that_works(name: str | None) -> None:
    program = (
        "import sys\nfrom medport.cli import main\n"
        f"try: main({['deploy', *([name] if name else []), '--help']!r})\n"
        "except SystemExit: pass\n"
        "ours = {each for each in sys.modules if each.startswith('medport_deploy.')}\n"
        "print(sorted(each for each in ours if not each.startswith('medport_deploy.cli')), "
        "sorted({'numpy', 'medport.lock', 'medport.results', 'orjson', 'httpx'} & set(sys.modules)))"
    )

    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert "Usage: medport deploy" in ran.stdout
    assert ran.stdout.splitlines()[-1] == "[] []"


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


@pytest.mark.parametrize(
    "spoil",
    [
        lambda text: f"<<<<<<< HEAD\n{text}=======\n{text}>>>>>>> theirs\n",
        lambda text: re.sub(r'("revision": ")[0-9a-f]{40}', r"\g<1>main", text, count=1),
        lambda text: re.sub(r'("size_bytes": )(\d+)', r"\g<1>1\2", text, count=1),
        lambda text: json.dumps({**json.loads(text), "deploy": 5}),
    ],
    ids=["merge", "branch", "tampered", "deploy"],
)
def test_lock_that_is_none_any_more_is_made_again_by_the_command_that_is_named(
    desk: Desk, spoil: Callable[[str], str]
) -> None:
    desk.write()
    lock_id = desk.locked()
    file = desk.root / "medport.lock"
    file.write_text(spoil(file.read_text()))

    refused = desk.run("plan", "--json")
    again = desk.run("lock", "--mirror", str(MIRROR), "--offline", "--json")

    assert refused.error["field"]
    assert refused.error["remedy"] == f"make it again: medport deploy lock -f {desk.file}"
    assert (again.code, again.json["written"], again.json["lock_id"]) == (0, True, lock_id)
    assert again.json["discarded"]


def test_lock_that_another_medport_wrote_is_left_as_it_is(desk: Desk) -> None:
    desk.write()
    file = desk.root / "medport.lock"
    file.write_text('{"version": 2}')

    said = desk.run("lock", "--mirror", str(MIRROR), "--offline", "--json")

    assert (said.code, said.error["remedy"]) == (EXIT_USAGE, "use the medport that wrote it")
    assert file.read_text() == '{"version": 2}'


def test_keys_of_other_tools_outlast_what_is_wrong_with_ours(desk: Desk) -> None:
    desk.write()
    desk.locked()
    file = desk.root / "medport.lock"
    file.write_text(json.dumps({**json.loads(file.read_text()), "deploy": 5, "scanner": {"seen": True}}))

    said = desk.run("lock", "--mirror", str(MIRROR), "--offline")

    assert said.code == 0
    assert "holds something else under deploy. It does not count" in said.err
    assert json.loads(file.read_text())["scanner"] == {"seen": True}


def test_plan_without_a_lock_says_how_to_make_one(desk: Desk) -> None:
    desk.write()

    said = desk.run("plan", "--json")

    assert said.code == EXIT_USAGE
    assert (said.out, said.error["field"], said.error["remedy"]) == (
        "", "lock", f"medport deploy lock -f {desk.file}",
    )  # fmt: skip


def test_specification_that_is_not_there_is_named(desk: Desk, tmp_path: Path) -> None:
    said = desk.run("status")

    assert said.code == EXIT_USAGE
    assert f"{desk.file} cannot be read" in said.err
    assert "medport deploy init" in said.err


def test_apply_without_a_plan_says_how_to_make_one(desk: Desk) -> None:
    desk.write()
    desk.locked()

    said = desk.run("apply")

    assert said.code == EXIT_USAGE
    assert "plan.json cannot be read" in said.err
    assert "make one: medport deploy plan" in said.err
    assert "again" not in said.err


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
    assert said.error["remedy"] == f"plan again: medport deploy plan -f {desk.file}"
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

    assert f"medport deploy apply -f {desk.file} {mine}" in planned.err
    assert (planned.code, applied.code) == (EXIT_CHANGES, 0)


def test_plan_of_another_deployment_is_called_that(desk: Desk, tmp_path: Path) -> None:
    desk.planned()
    mine = desk.file.read_bytes()
    other = Desk(desk.server, tmp_path / "other", f"{desk.name}x")
    other.root.mkdir()
    other.write()
    other.locked()

    said = other.run("apply", str(desk.state / "plan.json"), "--json")
    other.file.unlink()

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "PreconditionFailed")
    assert said.error["message"] == (
        f"the plan is of the deployment {desk.name}, and the specification of {other.name}"
    )
    assert (other.journals(), desk.file.read_bytes()) == ([], mine)


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

    assert "has 50 % of the traffic, and the run is open" in held.out
    assert (held.code, share) == (0, [50, 50])
    assert f"medport deploy promote -f {desk.file}, or medport deploy rollback -f {desk.file}" in held.err
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


def test_share_that_is_held_is_said_where_it_is_not_the_one_that_was_asked_for(desk: Desk) -> None:
    desk.deployed()
    desk.planned(number=2)

    above, below = desk.run("apply", "--hold", "70"), desk.run("apply", "--hold", "3", "--json")

    assert "has 50 % of the traffic (the last step not above 70 %), and the run is open" in above.out
    assert (below.code, below.json["share_percent"]) == (0, 50)


def test_open_run_goes_on_by_the_plan_that_was_kept_of_it_once_another_was_made(desk: Desk) -> None:
    desk.deployed()
    plan = desk.planned(number=2)
    desk.typed("apply", "--hold", "50")
    desk.write(number=3)
    desk.locked()
    desk.run("plan")
    refused, status = desk.run("apply", "--json"), desk.run("status", "--json")
    kept = desk.state / "runs" / desk.journals()[-1].header.plan_sha256 / "plan.json"

    applied = desk.run("apply", str(kept), "--json")

    assert f"{kept}, or at once: medport deploy" in refused.error["remedy"]
    assert f" {kept} or" in status.json["runs"][0]["go_on"]
    assert (applied.code, applied.json["outcome"], applied.json["lock_id"]) == (0, "verified", plan["lock_id"])
    assert sorted(desk.split().values()) == [100]


def test_plan_that_began_goes_on_as_it_was_approved_whatever_the_files_say_since(desk: Desk) -> None:
    desk.deployed()
    plan = desk.planned(number=2)
    desk.typed("apply", "--hold", "50")
    desk.write(number=3)
    status = desk.run("status", "--json")

    applied = desk.run("apply", "--json")

    assert str(desk.state) not in status.json["runs"][0]["go_on"]
    assert (applied.code, applied.json["lock_id"]) == (0, plan["lock_id"])


def test_fleet_of_a_held_run_may_stay_when_it_goes_back(desk: Desk) -> None:
    desk.deployed()
    before, fleets = desk.split(), desk.fleets()
    desk.planned(number=2)
    desk.run("apply", "--hold", "50")

    said = desk.run("rollback", "--keep", "--json")
    swept, planned = desk.run("sweep"), desk.run("plan", "--json")

    assert (said.code, said.json["outcome"]) == (0, "taken back")
    assert desk.split() == before
    (rejected,) = desk.fleets().keys() - fleets.keys()
    assert list(history.read(desk.state)[-1].retained) == [rejected]
    assert not [each for each in desk.journals() if each.open]
    assert swept.out == f"nothing is left over of {desk.name}\n"
    assert "was never verified" in next(
        row["why"] for row in planned.json["rows"] if row["address"] == "traffic.reader"
    )
    assert desk.run("promote").code == 0
    assert desk.fleets() == fleets


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
    # As if the server had another address when it was approved.
    kept, told = desk.state / "approved" / old / "medport.yaml", desk.state / history.FILE_NAME
    was = hashlib.sha256(kept.read_bytes()).hexdigest()
    kept.write_text(re.sub(r"https://[\w.:]+", "https://127.0.0.1:9", kept.read_text()))
    told.write_text(told.read_text().replace(was, hashlib.sha256(kept.read_bytes()).hexdigest()))

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
    assert said.error["remedy"] == f"medport deploy history -f {desk.file} shows which were"
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
    assert refused.error["remedy"].startswith(f"put a key that is good into {VARIABLE}, then run")
    assert re.search("the run is open: medport deploy apply .*rollback .*takes it back", refused.error["remedy"])
    assert (shares, fleets) == (before, 2)
    assert (again.code, again.json["resumed"], again.json["outcome"]) == (0, True, "verified")
    assert [outcome for _, outcome in outcomes(desk)] == ["verified", "failed", "verified"]


def test_sweep_lists_what_a_run_left_and_takes_nothing_unless_it_is_agreed_to(desk: Desk) -> None:
    desk.deployed()
    before, fleets = desk.split(), desk.fleets()
    desk.planned(number=2)
    desk.fault({"status": 401}, path="*/endpoints/{endpoint}", method="PATCH")
    desk.run("apply")
    desk.well()

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
    assert outcomes(desk)[-1] == ("sweep", "swept")


@pytest.mark.parametrize("hold", ["0", "50"])
def test_held_run_is_not_swept(desk: Desk, hold: str) -> None:
    desk.deployed()
    desk.planned(number=2)
    desk.run("apply", "--hold", hold)
    before = desk.split(), desk.fleets()

    said = desk.run("sweep", "--yes", "--json")

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "PreconditionFailed")
    assert "is held, and left nothing behind" in said.error["message"]
    assert {"promote", "rollback"} <= set(said.error["remedy"].split())
    assert (desk.split(), desk.fleets()) == before
    assert desk.run("promote").code == 0


def test_held_run_that_does_not_go_back_can_be_swept(desk: Desk) -> None:
    desk.deployed()
    before = desk.split(), desk.fleets()
    desk.planned(number=2)
    desk.run("apply", "--hold", "50")
    desk.fault({"status": 403}, path="*:deleteVersion")
    failed = desk.run("rollback", "--json")
    desk.well()

    said = desk.run("sweep", "--yes")

    assert "medport deploy sweep" in re.sub(" -f [^ ]+", "", failed.error["remedy"])
    assert said.code == 0, said.err
    assert (desk.split(), desk.fleets()) == before


def test_held_run_whose_copy_is_damaged_can_be_swept(desk: Desk) -> None:
    desk.deployed()
    before = desk.split(), desk.fleets()
    desk.planned(number=2)
    desk.run("apply", "--hold", "50")
    (kept,) = (desk.state / "runs").glob("*/plan.json")
    kept.write_text("{}")

    promoted, swept = desk.run("promote"), desk.run("sweep", "--yes")

    assert (promoted.code == 0, swept.code) == (False, 0)
    assert (desk.split(), desk.fleets()) == before


def test_sweep_gives_the_traffic_back_that_a_verified_fleet_has_of_a_dead_run(desk: Desk) -> None:
    desk.deployed()
    desk.deployed(number=2)
    back = desk.split()
    desk.planned(number=1)
    # The gate at the first share cannot judge any more.
    desk.fault({"status": 401}, path="*/endpoints/{endpoint}:predict")
    desk.fault({"status": 401}, path="*/endpoints/{endpoint}/chat/completions")
    stopped, half = desk.run("apply", "--json"), desk.split()
    desk.well()

    listed = desk.run("sweep")
    swept = desk.run("sweep", "--yes", "--json")

    assert (stopped.code, half != back) == (EXIT_FAILED, True)
    assert "back to what it was" in listed.out
    assert [each["kind"] for each in swept.json["found"]] == ["traffic"]
    assert desk.split() == back
    assert not [each for each in desk.journals() if each.open]


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

    assert (asked.code, asked.err, still) == (EXIT_FAILED, "", 200)
    assert (asked.json["deployment"], asked.json["outcome"]) == (desk.name, "not agreed to")
    assert (asked.json["remedy"], asked.json["target"]) == ("give --yes", target_of(desk.spec))
    assert [each for each in asked.json["found"] if "100 % of the traffic" in each]
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


def test_lock_that_is_not_applied_is_one_finding_and_all_else_is_compared_with_what_serves(desk: Desk) -> None:
    old = desk.deployed()
    serves = history.serving(history.read(desk.state))
    desk.write(number=2)
    new = desk.locked()

    said, status = desk.run("verify", "--json"), desk.run("status", "--json")
    shown = desk.run("status")
    (finding,) = said.json["findings"]
    copies = shlex.split(finding["remedy"].partition("keep what serves: ")[2].replace(";", " ;"))

    assert serves is not None
    assert said.code == EXIT_CHANGES
    assert (said.json["lock_id"], said.json["compared_with"]) == (new, old)
    assert (finding["check"], new[:12] in finding["expected"]) == ("lock.applied", True)
    assert f"{old[:12]}, verified at {serves.at}, serves" in finding["found"]
    assert copies[1] == str(desk.state / "approved" / old / "medport.yaml")
    assert "smoke.text" in [each["check"] for each in said.json["passed"]]
    assert status.json["drift"] == ["lock.applied"]
    assert "drift      none but that the lock of now is not applied" in shown.out


def test_drift_of_what_serves_is_told_though_a_newer_lock_is_not_applied(desk: Desk, plane: PlaneServer) -> None:
    desk.deployed()
    desk.write(number=2)
    desk.locked()
    plane.ok("PATCH", f"/endpoints/{desk.endpoint}?updateMask=displayName", {"displayName": "x"})

    said = desk.run("verify", "--no-smoke", "--json")

    checks = [each["check"] for each in said.json["findings"]]
    assert said.code == EXIT_CHANGES
    assert "endpoint.display_name" in checks
    assert "lock.applied" not in checks


@pytest.mark.parametrize("hold", ["0", "50"])
def test_what_a_held_run_is_there_to_change_is_no_drift_in_its_status(desk: Desk, hold: str) -> None:
    desk.deployed()
    desk.planned(number=2)
    desk.run("apply", "--hold", hold)

    said = desk.run("status", "--json")

    assert len(said.json["runs"]) == 1
    assert said.json["drift"] == []


def test_verdict_does_not_hang_on_a_place_to_keep_it(desk: Desk) -> None:
    desk.deployed()
    shutil.move(desk.root / ".medport", desk.root / "elsewhere")
    # Nobody can make a directory there, root no more than others.
    (desk.root / ".medport").symlink_to("/proc/self/fdinfo")

    said = desk.run("verify")
    (desk.root / ".medport").unlink()
    shutil.move(desk.root / "elsewhere", desk.root / ".medport")

    assert said.code == 0, said.err
    assert "what serves is what was approved" in said.out
    assert "what is found is not kept here" in said.err


@pytest.mark.parametrize("key", ["none.pem", "public.pem"])
def test_key_that_cannot_sign_is_refused_before_anything_is_asked(desk: Desk, tmp_path: Path, key: str) -> None:
    desk.planned()
    keys(tmp_path)
    desk.fault({"status": 503})

    said = desk.run("verify", "--report", str(tmp_path / "r.json"), "--sign", str(tmp_path / key), "--json")

    assert (said.code, said.error["field"]) == (EXIT_USAGE, "key")


def test_report_that_cannot_be_written_does_not_take_the_verdict_away(desk: Desk, tmp_path: Path) -> None:
    desk.deployed()

    said = desk.run("verify", "--no-smoke", "--report", str(tmp_path / "none" / "r.json"), "--json")

    assert (said.code, said.error["field"]) == (EXIT_USAGE, "report")
    assert said.json["clean"] is True


def test_what_to_type_next_names_the_files_that_were_given(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    desk.root = tmp_path / "a b"
    desk.root.mkdir()
    desk.write()
    options = ("--lock", "my.lock")

    locked = desk.run("lock", "--mirror", str(MIRROR), "--offline", *options)
    planned = desk.run("plan", *options)
    stopped = desk.run("apply", "none.json", *options)

    named = f"-f '{desk.file}' --lock my.lock"
    assert f"Next: medport deploy plan {named}\n" in locked.err
    assert f"Next: medport deploy apply {named}\n" in planned.err
    assert f"medport deploy plan {named}\n" in stopped.err
    assert desk.run("status", "--lock", "none.lock").code == 0


def test_commands_to_take_the_files_of_what_serves_can_be_pasted(desk: Desk, tmp_path: Path) -> None:
    desk.root = tmp_path / "a b"
    desk.root.mkdir()
    desk.deployed()
    first = desk.file.read_bytes()
    desk.deployed(number=2)

    said = desk.run("rollback")
    command = next(line for line in said.out.splitlines() if line.startswith("  cp "))
    subprocess.run(["bash", "-c", command], check=True)

    assert desk.file.read_bytes() == first
    assert desk.run("verify", "--no-smoke").code == 0


@pytest.mark.parametrize("command", ["status", "plan", "history"])
def test_file_in_the_place_of_the_state_is_named(desk: Desk, command: str) -> None:
    desk.write()
    desk.locked()
    (desk.root / ".medport").write_text("")

    said = desk.run(command, "--json")
    (desk.root / ".medport").unlink()

    assert said.code == EXIT_USAGE
    assert f"{desk.root / '.medport'} is a file" in said.error["message"]
    assert said.error["remedy"] == "move that file away"


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


def test_gate_of_drift_fails_if_what_the_old_fleet_answered_is_gone(desk: Desk) -> None:
    rollout = {"steps": [50, 100], "bake_s": 0, "gates": {"golden_drift": 1}}
    desk.deployed(rollout=rollout)
    before = desk.split()
    desk.planned(number=2, rollout=rollout)
    assert desk.run("apply", "--hold", "50").code == 0
    (kept,) = (desk.state / "golden").glob("standing-*")
    kept.unlink()

    said = desk.run("promote")

    assert (said.code, desk.split()) == (EXIT_FAILED, before)
    assert "golden_drift cannot be measured" in said.err


def test_plan_that_was_kept_of_a_held_run_and_changed_is_not_gone_on_with(desk: Desk) -> None:
    desk.deployed()
    desk.planned(number=2)
    assert desk.run("apply", "--hold", "50").code == 0
    (file,) = (desk.state / "runs").glob("*/plan.json")
    kept, whole = file.read_bytes(), json.loads(file.read_bytes())
    whole["plan"]["notes"] = ["x"]
    canonical = json.dumps(whole["plan"], sort_keys=True, separators=(",", ":")).encode()
    file.write_text(json.dumps(whole | {"sha256": hashlib.sha256(canonical).hexdigest()}))

    changed = desk.run("promote")
    file.write_bytes(kept)

    assert changed.code == EXIT_FAILED
    assert "was changed since" in changed.err
    assert desk.run("promote").code == 0


def test_approved_specification_that_was_changed_is_not_gone_back_to(desk: Desk) -> None:
    first = desk.deployed()
    desk.deployed(number=2)
    before, file = desk.split(), desk.state / "approved" / first / "medport.yaml"
    file.write_text(file.read_text().replace("n1-standard-4", "n1-standard-96"))

    said = desk.run("rollback")

    assert (said.code, desk.split()) == (EXIT_FAILED, before)
    assert "was changed since it was approved" in said.err


@pytest.mark.parametrize("line", [1, 2, -1], ids=["first", "second", "last"])
def test_damaged_journal_stops_all_but_a_sweep_which_says_so_and_sets_it_aside(desk: Desk, line: int) -> None:
    desk.deployed()
    serving = desk.split()
    (file,) = desk.state.glob("apply-*.jsonl")
    lines = file.read_text().splitlines()
    lines[line - (line > 0)] = "{"
    file.write_text("\n".join([*lines, ""]))

    stopped = desk.run("apply", "--json")
    listed = desk.run("sweep")
    swept = desk.run("sweep", "--yes")
    again = desk.run("plan")

    assert (stopped.code, listed.code) == (EXIT_USAGE, EXIT_FAILED)
    assert "medport deploy sweep" in stopped.error["remedy"]
    assert (swept.code, again.code) == (0, 0)
    assert f"{file.name} is damaged in line" in swept.err
    assert desk.split() == serving
    assert [each.name for each in desk.state.glob("apply-*")] == [f"{file.name}.damaged"]


def test_destroy_takes_away_what_damaged_journals_name(desk: Desk, plane: PlaneServer) -> None:
    desk.deployed()
    (file,) = desk.state.glob("apply-*.jsonl")
    file.write_text("{\n" + file.read_text())

    said = desk.run("destroy", "--yes")

    assert said.code == 0, said.err
    assert plane.call("GET", f"/endpoints/{desk.endpoint}").status_code == 404


def test_state_in_which_others_may_write_is_not_used(desk: Desk) -> None:
    desk.deployed()
    desk.state.parent.chmod(0o777)

    said = desk.run("status")
    desk.state.parent.chmod(0o700)

    assert said.code == EXIT_FAILED
    assert "chmod go-w" in said.err


def test_golden_answers_that_are_gone_are_said_to_be_compared_with_nothing(desk: Desk) -> None:
    lock_id = desk.deployed()
    (desk.state / "golden" / f"{lock_id}.json").unlink()

    said = desk.run("verify", "--json")

    assert said.code == 0
    assert "smoke.golden" in [each["check"] for each in said.json["skipped"]]


def test_one_finding_of_a_signed_report_is_one_thing(desk: Desk, plane: PlaneServer, tmp_path: Path) -> None:
    desk.deployed()
    (private, public), report = keys(tmp_path), tmp_path / "report.json"
    labels = plane.endpoint(desk.endpoint)["labels"]
    change = {"displayName": "x", "labels": labels}
    plane.ok("PATCH", f"/endpoints/{desk.endpoint}?updateMask=displayName,labels", change)

    desk.run("verify", "--no-smoke", "--report", str(report), "--sign", str(private))
    code, out = checked_report(report, public, as_json=False)

    assert (code, out.splitlines()[-1]) == (EXIT_CHANGES, "1 thing was not as approved")


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

    assert (said.code, said.error["type"]) == (EXIT_FAILED, "Busy")
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


def test_server_of_the_sites_own_is_called_through_no_proxy(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HTTPS_PROXY", "http://127.0.0.1:9")

    desk.deployed()

    assert desk.run("verify").code == 0
    assert terraform_environment(desk.spec)["NO_PROXY"] == "127.0.0.1"
    monkeypatch.setenv("no_proxy", "example.org")
    assert terraform_environment(desk.spec)["NO_PROXY"] == "example.org,127.0.0.1"


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


def checked_report(report: Path, public: Path, *, as_json: bool = True) -> tuple[int, str]:
    import io
    from contextlib import redirect_stderr, redirect_stdout

    from medport.cli import main

    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(io.StringIO()), pytest.raises(SystemExit) as ended:
        main(["deploy", "check-report", str(report), "--key", str(public), *(["--json"] if as_json else [])])
    return int(str(ended.value.code)), out.getvalue()
