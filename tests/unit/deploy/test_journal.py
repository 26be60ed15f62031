"""What is on the disk of a run: before its calls, whole or not at all, and for this user alone."""

from __future__ import annotations

import json
import os
import resource
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from support import deploying

from medport.errors import ConfigError, Conflict
from medport_deploy.run import journal, run_lock
from medport_deploy.run.journal import Journal

ONE = {"step": "endpoint chest", "kind": "endpoint", "name": "chest"}
HOLDER = """
import sys, time
from pathlib import Path
from medport_deploy.run import run_lock
with run_lock.held(Path(sys.argv[1]), "apply"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return deploying.directory(tmp_path, "chest")


@pytest.fixture
def begun(directory: Path) -> Journal:
    return Journal.create(directory, deploying.header("apply", "chest"))


def read(begun: Journal) -> Journal:
    found = Journal.read(begun.path)
    assert found is not None
    return found


def test_journal_is_for_its_user_alone(begun: Journal) -> None:
    assert stat.S_IMODE(begun.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(begun.path.parent.stat().st_mode) == 0o700


def test_record_is_on_the_disk_when_write_returns(begun: Journal) -> None:
    begun.write("before", **ONE, was={"split": {"1": 100}})

    found = read(begun)
    assert found.header == begun.header
    assert found.records == begun.records
    assert found.first_was("endpoint chest") == {"split": {"1": 100}}
    assert found.open


def test_run_that_ended_is_open_no_more(begun: Journal) -> None:
    begun.end("finished")

    assert read(begun).ended == "finished"
    assert not read(begun).open


def test_last_line_that_was_cut_off_counts_as_not_written(begun: Journal) -> None:
    begun.write("before", **ONE)
    with open(begun.path, "ab") as file:
        file.write(b'{"step":"version m","kind":"ver')

    found = read(begun)

    assert [record.name for record in found.records] == ["chest"]
    found.reopen()
    found.write("done", **ONE)
    assert [record.state for record in read(begun).records] == ["before", "done"]
    assert b'"ver\n' not in begun.path.read_bytes()


def test_journal_without_a_whole_first_line_is_of_a_run_that_did_nothing(begun: Journal) -> None:
    begun.path.write_bytes(begun.path.read_bytes()[:-10])

    assert Journal.read(begun.path) is None
    assert journal.all_of(begun.path.parent) == []


def test_damage_in_the_middle_is_told_with_its_line(begun: Journal) -> None:
    begun.write("before", **ONE)
    text = begun.path.read_text().replace('{"step"', '{"st\x00ep')
    begun.path.write_text(text + '{"ended":"finished"}\n')

    with pytest.raises(ConfigError, match="damaged in line 2"):
        Journal.read(begun.path)


def test_record_of_unknown_form_is_refused(begun: Journal) -> None:
    with open(begun.path, "a") as file:
        file.write('{"step":"x","colour":"red"}\n')

    with pytest.raises(ConfigError, match="no record"):
        Journal.read(begun.path)


def test_journal_in_another_form_is_refused_with_the_way_out(begun: Journal) -> None:
    begun.path.write_text(begun.path.read_text().replace('"format":1', '"format":2'))

    with pytest.raises(ConfigError, match="another version of medport") as refused:
        Journal.read(begun.path)

    assert "that version" in str(refused.value.remedy)


@pytest.mark.parametrize("key", ["step", "kind", "name", "at", "operation", "was"])
def test_record_with_a_number_in_the_place_of_a_text_is_damage(begun: Journal, key: str) -> None:
    begun.write("before", **ONE)
    head, line, _ = begun.path.read_text().split("\n")
    begun.path.write_text(f"{head}\n{json.dumps(json.loads(line) | {key: 7})}\n")

    with pytest.raises(journal.Damaged, match="line 2"):
        Journal.read(begun.path)


@pytest.mark.parametrize(("key", "value"), [("run", 7), ("verb", None), ("pid", "x")])
def test_first_line_of_another_form_is_damage(begun: Journal, key: str, value: object) -> None:
    begun.path.write_text(json.dumps(json.loads(begun.path.read_text()) | {key: value}) + "\n")

    with pytest.raises(journal.Damaged):
        Journal.read(begun.path)


def test_whoever_passes_over_damage_is_told_of_it_and_has_the_other_lines(directory: Path, begun: Journal) -> None:
    begun.write("before", **ONE)
    head, line, _ = begun.path.read_text().split("\n")
    begun.path.write_text(f"{head}\nno json\n{line}\n")
    (directory / "apply-2.jsonl").write_text("no json\n")
    told: list[journal.Damaged] = []

    (found,) = journal.all_of(directory, on_damage=told.append)

    assert [each.name for each in found.touched()] == ["chest"]
    assert {each.path for each in told} == {begun.path, directory / "apply-2.jsonl"}
    with pytest.raises(journal.Damaged):
        journal.all_of(directory)


def test_form_of_another_version_is_not_passed_over_as_damage(directory: Path, begun: Journal) -> None:
    begun.path.write_text(json.dumps(json.loads(begun.path.read_text()) | {"format": 2}) + "\n")

    with pytest.raises(ConfigError, match="another version"):
        journal.all_of(directory, on_damage=lambda damage: None)


def test_line_of_which_a_full_disk_took_a_part_is_not_written_and_the_next_one_is_whole(begun: Journal) -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (begun.path.stat().st_size + 40, old[1]))
    try:
        with pytest.raises(ConfigError, match="cannot be written"):
            begun.write("before", **ONE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    begun.write("failed", **ONE, error="no room")

    assert [each.state for each in read(begun).records] == ["failed"]


def test_runs_come_in_the_order_in_which_they_were_begun(directory: Path) -> None:
    made = [Journal.create(directory, deploying.header(verb, "chest")) for verb in ("destroy", "apply", "sweep")]

    assert [each.path for each in journal.all_of(directory)] == [each.path for each in made]


def test_touched_are_those_whose_call_may_have_been_sent(begun: Journal) -> None:
    begun.write("skipped", step="a", kind="endpoint", name="a")
    begun.write("before", step="b", kind="version", name="b")
    begun.write("failed", step="b", kind="version", name="b", error="x")
    begun.write("before", step="b", kind="version", name="b")

    assert [record.name for record in begun.touched()] == ["b"]


def test_directory_that_cannot_be_made_is_a_config_error(tmp_path: Path) -> None:
    (tmp_path / ".medport").write_text("a file")

    with pytest.raises(ConfigError, match="cannot be written"):
        Journal.create(deploying.directory(tmp_path, "chest"), deploying.header("apply", "chest"))


def test_journal_that_is_gone_stops_the_run_before_its_call(begun: Journal) -> None:
    begun.path.unlink()

    with pytest.raises(ConfigError, match="nothing is done without a journal"):
        begun.write("before", **ONE)


def test_second_run_is_told_who_holds_the_first_and_does_nothing(directory: Path) -> None:
    with (
        subprocess.Popen([sys.executable, "-c", HOLDER, directory], stdout=subprocess.PIPE, text=True) as holder,
    ):
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"

        with (
            pytest.raises(Conflict, match=rf"apply, process {holder.pid} on .* works on chest"),
            run_lock.held(directory, "sweep"),
        ):
            pass
        holder.kill()


def test_dead_run_holds_no_lock(directory: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLDER, directory], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()

    with run_lock.held(directory, "sweep"):
        said = json.loads((directory / "run.lock").read_text())
    assert (said["verb"], said["pid"]) == ("sweep", os.getpid())
