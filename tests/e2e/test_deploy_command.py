"""``medport deploy`` as a program: a whole act, a run that is stopped or killed, a terminal, and Terraform."""

from __future__ import annotations

import fcntl
import json
import os
import pty
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.configurations import copied
from support.desks import COMMAND, MIRROR, VARIABLE, Desk
from support.plane_server import KEY, PlaneServer, plane_server
from support.provider import attached, reaching
from support.provider.needed import schema_or_skip

from medport.errors import EXIT_CHANGES, EXIT_FAILED, EXIT_INTERRUPTED
from medport_deploy.work import opening as work

ID = "4100000011"
ADDRESS = 'module.endpoint["reader"].google_vertex_ai_endpoint.this'
LOCK = {
    "ID": "3b1f-of-another-run",
    "Operation": "OperationTypeApply",
    "Info": "",
    "Who": "ci@build",
    "Version": "1.11.4",
    "Created": "2026-11-27T00:00:00Z",
    "Path": "terraform.tfstate",
}
"""What another terraform writes beside a state that it holds."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane"), "--allow-faults") as server:
        yield server


@pytest.fixture
def desk(
    server: PlaneServer, tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Desk]:
    monkeypatch.setenv(VARIABLE, KEY)
    made = Desk(server, tmp_path, f"d{abs(hash(request.node.name)) % 10**8}")
    yield made
    made.close()


@pytest.fixture
def by_terraform(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    """A desk whose endpoint Terraform makes: the real one, with the stand-in for Google's provider."""
    schema = schema_or_skip()
    copied(desk.root)
    with attached(schema, reaching(desk.server.url, desk.server.line["ca_file"], KEY)) as variables:
        for name in ("TF_REATTACH_PROVIDERS", "TF_CLI_CONFIG_FILE"):
            if name in variables:
                monkeypatch.setenv(name, variables[name])
        desk.write(model={"endpoint": {"id": ID}}, terraform={"root": "terraform/roots/local"})
        yield desk
        desk.close()


def nothing_is_left(desk: Desk) -> bool:
    endpoint, model = desk.spec.endpoint_id("reader"), desk.spec.model_id("reader")
    paths = (f"/endpoints/{endpoint}", f"/models/{model}")
    return [desk.server.call("GET", path).status_code for path in paths] == [404, 404]


def until_it_says(process: subprocess.Popen[str], word: str) -> list[str]:
    """The lines on stderr up to one that holds a word; it must come."""
    assert process.stderr is not None
    lines: list[str] = []
    for line in process.stderr:
        lines.append(line)
        if word in line:
            return lines
    raise AssertionError("".join(lines))


def test_the_whole_act(desk: Desk) -> None:
    desk.write()

    locked = desk.typed("lock", "--mirror", str(MIRROR), "--offline")
    planned = desk.typed("plan")
    applied = desk.typed("apply")
    again = desk.typed("plan")
    verified = desk.typed("verify", "--json")
    destroyed = desk.typed("destroy", "--yes")
    nothing = desk.typed("destroy", "--yes")

    codes = [each.code for each in (locked, planned, applied, again, verified, destroyed, nothing)]
    assert codes == [0, EXIT_CHANGES, 0, 0, 0, 0, 0], "".join(each.err for each in desk.said)
    assert "3 to create, 1 to shift traffic" in planned.out
    assert "verified" in applied.out
    assert "nothing to do" in again.out
    assert verified.json["clean"] is True
    assert nothing.out == f"nothing is there of {desk.name}\n"
    assert nothing_is_left(desk)


def test_ctrl_c_finishes_the_call_under_way_and_the_same_command_goes_on(desk: Desk) -> None:
    desk.planned()
    process = desk.process("apply")
    until_it_says(process, "deploy mp-")

    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    open_runs = [each for each in desk.journals() if each.open]
    again = desk.run("apply", "--json")

    assert process.returncode == EXIT_INTERRUPTED
    assert "Stopping after the call under way" in err
    assert "to go on: medport deploy apply" in err
    assert len(open_runs) == 1
    assert "Traceback" not in err
    assert (again.code, again.json["resumed"], again.json["outcome"]) == (0, True, "verified")


def test_a_second_ctrl_c_waits_no_longer_and_the_operation_goes_on_at_the_server(desk: Desk) -> None:
    desk.planned()
    slow = {"operation": {"kind": "deployModel", "slowSeconds": 6}}
    desk.server.http.post("/medport/v1/faults", json=slow).raise_for_status()
    process = desk.process("apply")
    until_it_says(process, "deploy mp-")

    process.send_signal(signal.SIGINT)
    said = until_it_says(process, "Stopping after")
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    left = [each.ended for each in desk.journals()]
    again = desk.run("apply", "--json")

    assert process.returncode == EXIT_INTERRUPTED
    assert "Ctrl-C again: do not wait for it" in said[-1]
    assert "the server goes on by itself" in err
    assert "deploy mp-" not in err.partition("by itself")[2]
    assert left == [None]
    assert (again.code, again.json["resumed"], again.json["outcome"]) == (0, True, "verified")
    assert len(desk.fleets()) == 1


def test_run_that_was_killed_is_gone_on_with(desk: Desk) -> None:
    desk.planned()
    process = desk.process("apply")
    until_it_says(process, "deploy mp-")

    process.kill()
    process.communicate(timeout=30)
    status = desk.run("status")
    again = desk.run("apply", "--json")

    assert "has not come to its end" in status.out
    assert "medport deploy apply" in status.out
    assert (again.code, again.json["outcome"]) == (0, "verified")
    assert list(desk.split().values()) == [100]


def test_what_a_run_left_that_was_killed_can_be_swept(desk: Desk) -> None:
    desk.planned()
    process = desk.process("apply")
    until_it_says(process, "deploy mp-")

    process.kill()
    process.communicate(timeout=30)
    swept = desk.run("sweep", "--yes")

    assert swept.code == 0, swept.err
    assert nothing_is_left(desk)
    assert desk.run("sweep").out == f"nothing is left over of {desk.name}\n"


def test_on_a_terminal_it_asks_and_a_no_changes_nothing(desk: Desk) -> None:
    desk.deployed()
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*COMMAND, "destroy"], cwd=desk.root, env={**os.environ, "TERM": "xterm"}, stdin=theirs, stderr=theirs,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(theirs)
    shown: list[bytes] = []
    reader = threading.Thread(target=_drained, args=(ours, shown))
    reader.start()

    os.write(ours, b"n\n")
    out, _ = process.communicate(timeout=60)
    reader.join(10)
    os.close(ours)

    assert process.returncode == EXIT_FAILED
    assert f"Destroy {desk.name} on projects/local/locations/" in b"".join(shown).decode()
    assert "undeploy" in out
    assert not nothing_is_left(desk)


def test_endpoint_of_terraforms_is_planned_made_and_destroyed_with_the_rest(by_terraform: Desk) -> None:
    desk = by_terraform
    desk.locked()

    planned = desk.run("plan", "--json")
    applied = desk.run("apply")
    again = desk.run("plan")
    made = desk.server.endpoint(ID)
    verified = desk.run("verify", "--no-smoke", "--json")
    destroyed = desk.run("destroy", "--yes")
    nothing = desk.run("destroy")

    rows = {row["address"]: row["action"] for row in planned.json["rows"]}
    codes = [each.code for each in (planned, applied, again, verified, destroyed, nothing)]
    assert codes == [EXIT_CHANGES, 0, 0, 0, 0, 0], "".join(each.err for each in desk.said)
    assert rows[f"terraform:{ADDRESS}"] == "create"
    assert made["labels"]["goog-terraform-provisioned"] == "true"
    assert "terraform" in [each["check"] for each in verified.json["passed"]]
    assert ADDRESS in destroyed.out
    assert nothing.out == f"nothing is there of {desk.name}\n"
    assert nothing_is_left(desk)
    assert not list(desk.state.glob("*.tfplan"))


def test_state_that_another_run_holds_is_named_with_the_command_and_nothing_is_unlocked(
    by_terraform: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = by_terraform
    desk.locked()
    monkeypatch.setattr(work, "STATE_WAIT", "0s")
    root = desk.root / "terraform" / "roots" / "local"
    held, said_by = root / "terraform.tfstate", root / ".terraform.tfstate.lock.info"
    said_by.write_text(json.dumps(LOCK))
    with held.open("a+") as file:
        fcntl.lockf(file, fcntl.LOCK_EX)

        # fcntl's locks are of processes: terraform is another one, so this one may hold it.
        refused = desk.run("plan", "--json")

    assert (refused.code, refused.error["type"]) == (EXIT_FAILED, "StateLocked")
    assert LOCK["ID"] in refused.error["message"]
    assert f"force-unlock {LOCK['ID']}" in refused.error["remedy"]
    assert said_by.exists()
    assert not desk.journals()
    said_by.unlink()
    assert desk.run("plan").code == EXIT_CHANGES


def _drained(handle: int, into: list[bytes]) -> None:
    while True:
        try:
            data = os.read(handle, 4096)
        except OSError:
            return
        if not data:
            return
        into.append(data)
