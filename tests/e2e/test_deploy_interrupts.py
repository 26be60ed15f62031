"""A run of ``medport deploy`` that is stopped at every line of its journal, and gone on with or swept: no orphans.

The control plane is a real one, the engine too. A line that a run writes comes before or after a call, so that
stopping before and after each line stops it on both sides of each call.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from support import deploying
from support.deploy_walk import NEVER_CAME
from support.plane_server import KEY, PlaneServer, plane_server

from medport.errors import EXIT_INTERRUPTED
from medport_deploy import names
from medport_deploy.control.plane import ControlPlane, split_of
from medport_deploy.run import apply, destroy, journal, sweep
from medport_local.phantom import weights_dir

MODEL = json.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())["repo_id"]
HEADER, STEPS, RUNNING, END = 1, 6, 2, 1
LINES = HEADER + 2 * STEPS + RUNNING + END
ALIAS_GIVEN = LINES - END - 1
"""The line that says that the last step is done: the version is called good by then."""
WRITTEN = {False: "before", True: "after"}


@dataclass
class Walk:
    """Applies a deployment in a process that is stopped."""

    program: subprocess.Popen[str]
    server: PlaneServer
    root: Path
    control: ControlPlane
    names: list[str] = field(default_factory=list)
    """Of the deployments that a test began."""

    def stopped_at(self, name: str, line: int, *, written: bool, by: str) -> int:
        job = {
            "url": self.server.url, "ca_file": self.server.line["ca_file"], "key": KEY, "root": str(self.root),
            "name": name, "model_id": MODEL, "line": line, "written": written, "signal": by,
        }  # fmt: skip
        self.names.append(name)
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(json.dumps(job) + "\n")
        self.program.stdin.flush()
        return int(self.program.stdout.readline())

    def directory(self, name: str) -> Path:
        return deploying.directory(self.root, name)

    def journals(self, name: str) -> list[journal.Journal]:
        return journal.all_of(self.directory(name)) if self.directory(name).exists() else []

    def resume(self, name: str) -> apply.Report:
        todo = deploying.steps(self.control, name, MODEL)
        return apply.run(todo, deploying.header("apply", name), self.directory(name), control=self.control)

    def swept(self, name: str) -> list[sweep.Leftover]:
        found = sweep.find(self.control, name, self.journals(name))
        apply.run(sweep.steps(found), deploying.header("sweep", name), self.directory(name), control=self.control)
        return found

    def destroyed(self, name: str) -> None:
        todo = destroy.steps(self.control, name, self.journals(name))
        apply.run(todo, deploying.header("destroy", name), self.directory(name), control=self.control)


@pytest.fixture(scope="module")
def walk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Walk]:
    root = tmp_path_factory.mktemp("walk")
    program = subprocess.Popen(
        [sys.executable, "-m", "support.deploy_walk"],
        cwd=Path(__file__).parents[1],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert program.stdin is not None
    assert program.stdout is not None
    with plane_server(root) as server, deploying.plane(server.url, server.line["ca_file"], KEY) as control:
        assert program.stdout.readline() == "ready\n"
        walk = Walk(program, server, root, control)
        # The first engine loads what all later ones share; a timeout belongs to the walk and not to that.
        walk.resume("warm")
        walk.destroyed("warm")
        yield walk
        program.stdin.close()
        program.wait(30)
        program.stdout.close()


@pytest.fixture(autouse=True)
def tidy(walk: Walk) -> Iterator[None]:
    """What a test that fails leaves is not the next one's."""
    yield
    while walk.names:
        walk.destroyed(walk.names.pop())


def assert_whole(walk: Walk, name: str) -> None:
    """Exactly what the steps make is there, once."""
    id_, model = names.endpoint_id(name, "reader"), names.model_id(name, "reader")
    endpoint = walk.control.get_endpoint(id_)
    assert {each["id"] for each in endpoint["deployedModels"]} == set(deploying.deployed_ids(name))
    assert split_of(endpoint) == dict.fromkeys(deploying.deployed_ids(name), 50)
    versions = walk.control.list_versions(model)
    assert [each["versionId"] for each in versions] == ["1"]
    assert set(versions[0]["versionAliases"]) == {
        "default",
        names.version_alias(deploying.lock_id("one")),
        names.good_alias(deploying.lock_id("one")),
    }
    assert deploying.everything(walk.control) == ({id_}, {model})


@pytest.mark.parametrize("written", [False, True], ids=WRITTEN.get)
@pytest.mark.parametrize("line", range(LINES))
def test_killed_run_is_gone_on_with_and_leaves_nothing_twice(walk: Walk, line: int, written: bool) -> None:
    name = f"on-{line}-{WRITTEN[written]}"

    status = walk.stopped_at(name, line, written=written, by="SIGKILL")
    walk.resume(name)

    assert status == -signal.SIGKILL
    assert_whole(walk, name)
    assert sweep.find(walk.control, name, walk.journals(name)) == []
    walk.destroyed(name)
    assert deploying.everything(walk.control) == (set(), set())


@pytest.mark.parametrize("written", [False, True], ids=WRITTEN.get)
@pytest.mark.parametrize("line", range(LINES))
def test_killed_run_is_swept_and_leaves_nothing_but_what_was_verified(
    walk: Walk, line: int, written: bool
) -> None:
    name = f"away-{line}-{WRITTEN[written]}"

    status = walk.stopped_at(name, line, written=written, by="SIGKILL")
    walk.swept(name)

    assert status == -signal.SIGKILL
    if (line, written) < (ALIAS_GIVEN, False):
        assert deploying.everything(walk.control) == (set(), set())
    else:
        assert_whole(walk, name)
    assert not [each for each in walk.journals(name) if each.open]


@pytest.mark.parametrize("line", range(LINES))
def test_interrupted_run_ends_between_two_steps_and_is_gone_on_with(walk: Walk, line: int) -> None:
    name = f"asked-{line}"

    status = walk.stopped_at(name, line, written=True, by="SIGINT")

    # The last step's two lines and the end are past the last place to stop.
    assert status == (EXIT_INTERRUPTED if line < LINES - END - 2 else 0)
    states = [record.state for each in walk.journals(name) for record in each.records]
    assert states.count("before") == states.count("done")
    walk.resume(name)
    assert_whole(walk, name)
    walk.destroyed(name)
    assert deploying.everything(walk.control) == (set(), set())


def test_walk_has_stopped_at_every_line_there_is(walk: Walk) -> None:
    status = walk.stopped_at("past", LINES, written=True, by="SIGKILL")

    assert status == NEVER_CAME
