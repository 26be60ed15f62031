"""The audit log: what breaks its chain, what it survives, and what the commands say."""

from __future__ import annotations

import hashlib
import json
import os
import stat
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from medport.errors import ConfigError, NotFound, NotReady
from medport_local import cli_audit
from medport_local.serving import chain
from medport_local.serving.audit import AuditLog
from medport_local.serving.chain import Link

NOVEMBER = datetime(2025, 11, 20, tzinfo=UTC).timestamp()


class Clock:
    def __init__(self, now: float = NOVEMBER) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def new_log(directory: Path) -> Iterator[Callable[..., AuditLog]]:
    opened: list[AuditLog] = []

    def make(**more: Any) -> AuditLog:
        opened.append(AuditLog(directory, **{"clock": Clock(), **more}))
        return opened[-1]

    yield make
    for log in opened:
        log.close()


def fill(directory: Path, count: int = 6, *, start: int = 0, **more: Any) -> None:
    log = AuditLog(directory, **{"clock": Clock(), **more})
    for i in range(start, start + count):
        log.append({"event": "request", "request_id": f"r{i}", "key": "gw", "status": 200})
    log.close()


def only_file(directory: Path) -> Path:
    (path,) = chain.files(directory)
    return path


def rewrite(directory: Path, change: Callable[[list[bytes]], list[bytes]]) -> None:
    path = only_file(directory)
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))


def test_whole_log_is_unbroken(directory: Path) -> None:
    fill(directory)

    report = chain.verify(directory)

    assert (report.unbroken, report.lines, report.notes) == (True, 6, [])
    assert report.last is not None
    assert report.last.seq == 5


def test_hash_is_of_the_line_without_it_and_names_the_line_before(directory: Path) -> None:
    # By hand, so that a file can be checked without our code.
    fill(directory, 3)
    before = "0" * 64
    for i, line in enumerate(only_file(directory).read_text().splitlines()):
        record = json.loads(line)
        said = record.pop("hash")
        canonical = json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
        assert hashlib.sha256(canonical).hexdigest() == said
        assert (record["seq"], record["prev"]) == (i, before)
        before = said


def test_every_single_changed_byte_breaks_the_chain(directory: Path) -> None:
    fill(directory, 3)
    path = only_file(directory)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert not chain.verify(directory).unbroken, place
    path.write_bytes(whole)
    assert chain.verify(directory).unbroken


def reseal(line: bytes, **changes: object) -> bytes:
    """A line with a right hash of its own, as somebody would make it who knows the form."""
    record = {**json.loads(line), **changes}
    del record["hash"]
    digest = hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
    return json.dumps({**record, "hash": digest}, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@pytest.mark.parametrize(
    ("change", "line", "said"),
    [
        (lambda x: [*x[:2], x[2].replace(b"200", b"500"), *x[3:]], 3, "changed"),
        (lambda x: [*x[:2], x[2].replace(b'"status":200', b'"status":200,"status":200'), *x[3:]], 3, "changed"),
        (lambda x: [*x[:2], x[2].replace(b":", b": ", 1), *x[3:]], 3, "changed"),
        (lambda x: [*x[:2], reseal(x[2], status=500), *x[3:]], 4, "does not follow"),
        (lambda x: [*x[:2], *x[3:]], 3, "lines 2 to 2 are missing"),
        (lambda x: x[1:], 1, "lines 0 to 0 are missing"),
        (lambda x: [*x[:2], x[3], x[2], *x[4:]], 3, "missing"),
        (lambda x: [*x[:3], x[2], *x[3:]], 4, "does not follow"),
        (lambda x: [*x[:3], b"{}\n", *x[3:]], 4, "no place"),
        (lambda x: [*x[:3], b"\n", *x[3:]], 4, "no record"),
        (lambda x: [*x[:5], x[5][:-9]], 6, "cut off"),
        (lambda x: x[:4], None, "the end is missing: lines 4 to 5"),
        (lambda x: [], None, "the end is missing: lines 0 to 5"),
        (lambda x: [*x[:5], reseal(x[5], status=500)], None, "line 5 is not the one that head names"),
    ],
    ids=[
        "byte", "twice", "blank", "resealed", "removed", "first", "swapped", "repeated", "foreign", "empty",
        "torn", "tail", "emptied", "last",
    ],
)  # fmt: skip
def test_broken_chain_names_the_first_bad_line(
    directory: Path, change: Callable[[list[bytes]], list[bytes]], line: int | None, said: str
) -> None:
    fill(directory)

    rewrite(directory, change)

    report = chain.verify(directory)
    assert not report.unbroken
    assert report.line == line
    assert said in (report.fault or "")
    assert report.file == (only_file(directory).name if line else None)


def test_log_made_anew_as_a_whole_is_found_by_the_anchor(directory: Path, tmp_path: Path) -> None:
    fill(directory)
    anchor = chain.verify(directory).last
    fill(tmp_path / "other", start=100)
    for path in directory.iterdir():
        path.write_bytes((tmp_path / "other" / path.name).read_bytes())

    assert chain.verify(directory).unbroken
    assert "the anchor" in (chain.verify(directory, anchor=anchor).fault or "")


def test_anchor_stays_good_while_the_log_grows(directory: Path) -> None:
    fill(directory)
    anchor = chain.verify(directory).last
    fill(directory, start=6)

    assert chain.verify(directory, anchor=anchor).unbroken
    assert not chain.verify(directory, anchor=Link(99, "0" * 64)).unbroken


def test_restart_goes_on_with_the_chain(directory: Path) -> None:
    for i in range(4):
        fill(directory, 3, start=3 * i)

    report = chain.verify(directory)
    assert (report.unbroken, report.lines, report.notes) == (True, 12, [])


def test_line_cut_off_by_a_crash_is_dropped_and_noted_at_the_next_start(directory: Path) -> None:
    fill(directory)
    with only_file(directory).open("ab") as file:
        file.write(b'{"event":"request","key":"g')

    assert not chain.verify(directory).unbroken
    fill(directory, 1, start=6)

    report = chain.verify(directory)
    assert (report.unbroken, report.lines) == (True, 8)
    assert [(note["note"], note["bytes"]) for note in report.notes] == [("a crash had cut off a line", 27)]


def test_first_line_cut_off_leaves_a_log_that_begins_anew(directory: Path) -> None:
    fill(directory, 0)
    (directory / "audit-2025-11-0001.jsonl").write_bytes(b'{"eve')

    fill(directory, 2)

    report = chain.verify(directory)
    assert (report.unbroken, report.lines) == (True, 3)


def test_lost_lines_stay_a_break_after_a_restart(directory: Path) -> None:
    fill(directory)
    rewrite(directory, lambda lines: lines[:4])

    fill(directory, 2)

    report = chain.verify(directory)
    assert not report.unbroken
    assert report.line == 5
    assert "lines 4 to 5 were lost" in (report.fault or "")


def test_log_goes_on_where_the_process_was_killed(directory: Path) -> None:
    program = (
        "import sys, os, pathlib\n"
        "from medport_local.serving.audit import AuditLog\n"
        "log = AuditLog(pathlib.Path(sys.argv[1]))\n"
        "for i in range(50): log.append({'event': 'request', 'request_id': f'r{i}'})\n"
        "os.kill(os.getpid(), 9)\n"
    )
    done = subprocess.run([sys.executable, "-c", program, str(directory)], timeout=60)
    assert done.returncode == -9

    fill(directory, 1, clock=Clock(datetime.now(UTC).timestamp()))

    report = chain.verify(directory)
    assert (report.unbroken, report.lines, report.notes) == (True, 51, [])


def test_lines_of_many_threads_make_one_chain(directory: Path, new_log: Callable[..., AuditLog]) -> None:
    log = new_log()

    def write(thread: int) -> None:
        for i in range(100):
            log.append({"event": "request", "request_id": f"{thread}-{i}"})

    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    log.close()

    assert (chain.verify(directory).unbroken, chain.verify(directory).lines) == (True, 800)
    assert len(chain.find(directory, "7-99")) == 1


def test_log_can_be_checked_while_it_is_written(directory: Path, new_log: Callable[..., AuditLog]) -> None:
    log = new_log(max_file_bytes=2000)
    reports = []
    for i in range(60):
        log.append({"event": "request", "request_id": f"r{i}"})
        if i % 7 == 0:
            log.sync()
        reports.append(chain.verify(directory).unbroken)

    assert all(reports)


def test_second_writer_is_refused_and_the_first_goes_on(directory: Path, new_log: Callable[..., AuditLog]) -> None:
    first = new_log()
    with pytest.raises(ConfigError, match="another server"):
        new_log()

    first.append({"event": "request"})
    first.close()

    new_log().append({"event": "request"})


def test_chain_goes_over_files_by_size(directory: Path) -> None:
    fill(directory, 40, max_file_bytes=2000)
    fill(directory, 10, start=40, max_file_bytes=2000)

    paths = chain.files(directory)
    assert len(paths) > 3
    assert all(path.stat().st_size <= 2000 for path in paths)
    assert chain.verify(directory).lines == 50
    assert chain.verify(directory).unbroken


def test_file_taken_out_of_the_middle_is_a_break(directory: Path) -> None:
    fill(directory, 40, max_file_bytes=2000)

    chain.files(directory)[1].unlink()

    assert "are missing" in (chain.verify(directory).fault or "")


def test_each_month_has_its_file_and_a_clock_set_back_does_not_go_into_an_old_one(directory: Path) -> None:
    clock = Clock()
    log = AuditLog(directory, clock=clock)
    for day in (datetime(2025, 11, 30), datetime(2025, 12, 1), datetime(2025, 11, 30), datetime(2026, 1, 2)):
        clock.now = day.replace(tzinfo=UTC).timestamp()
        log.append({"event": "request"})
    log.close()

    assert [path.name for path in chain.files(directory)] == [
        "audit-2025-11-0001.jsonl", "audit-2025-12-0001.jsonl", "audit-2026-01-0001.jsonl",
    ]  # fmt: skip
    assert chain.verify(directory).unbroken


def test_check_since_a_month_needs_no_earlier_file(directory: Path) -> None:
    clock = Clock()
    log = AuditLog(directory, clock=clock)
    for day in (datetime(2025, 10, 3), datetime(2025, 11, 1), datetime(2026, 1, 2)):
        clock.now = day.replace(tzinfo=UTC).timestamp()
        log.append({"event": "request"})
    log.close()
    chain.files(directory)[0].unlink()

    assert not chain.verify(directory).unbroken
    assert chain.verify(directory, since=date(2025, 11, 15)).lines == 2
    # December has no line of its own: it is checked from the file before it.
    assert chain.verify(directory, since=date(2025, 12, 5)).lines == 2
    assert chain.verify(directory, since=date(2025, 12, 5)).unbroken


def test_order_of_files_is_by_number_and_not_by_letters(tmp_path: Path) -> None:
    for number in (9999, 10000, 1):
        (tmp_path / chain.file_name("2025-11", number)).touch()

    assert [chain.place_of(path)[1] for path in chain.files(tmp_path)] == [1, 9999, 10000]


def test_files_are_for_their_owner_alone(directory: Path) -> None:
    fill(directory)

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    for path in directory.iterdir():
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path.name


def test_digest_of_a_text_is_not_its_plain_hash_and_differs_between_logs(tmp_path: Path) -> None:
    digests = set()
    for name in ("a", "b"):
        log = AuditLog(tmp_path / name)
        digest = log.digest()
        digest.update(b"yes")
        log.close()
        digests.add(digest.hexdigest())
        assert chain.keyed(tmp_path / name, b"yes") == digest.hexdigest()

    assert len(digests) == 2
    assert hashlib.sha256(b"yes").hexdigest() not in digests


def test_line_that_cannot_be_written_is_refused_and_leaves_nothing(
    directory: Path, new_log: Callable[..., AuditLog], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(0.0)
    log = new_log(monotonic=clock)
    log.append({"event": "request", "request_id": "before"})
    real = os.write

    def full(handle: int, data: bytes) -> int:
        return real(handle, data[:10])  # a disk that fills up in the middle of a line

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(NotReady, match="audit log"):
            log.append({"event": "request", "request_id": "lost"})
        with pytest.raises(NotReady):
            log.check()
    clock.now += 6
    log.check()
    log.append({"event": "request", "request_id": "after"})
    log.close()

    report = chain.verify(directory)
    assert (report.unbroken, report.lines) == (True, 2)
    assert chain.find(directory, "lost") == []


def test_directory_that_cannot_be_made_is_a_setting_at_fault(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(ConfigError, match="cannot be used"):
        AuditLog(tmp_path / "file" / "audit")


def test_command_verifies_with_the_promised_codes(directory: Path) -> None:
    fill(directory)
    run = CliRunner()

    good = run.invoke(cli_audit.app, ["verify", str(directory), "--json"])
    rewrite(directory, lambda lines: [*lines[:2], *lines[3:]])
    bad = run.invoke(cli_audit.app, ["verify", str(directory)])
    bad_json = json.loads(run.invoke(cli_audit.app, ["verify", str(directory), "--json"]).stdout)

    assert good.exit_code == 0
    assert json.loads(good.stdout)["lines"] == 6
    assert bad.exit_code == 1
    assert "audit-2025-11-0001.jsonl, line 3" in bad.stdout
    assert (bad_json["unbroken"], bad_json["line"]) == (False, 3)


def test_command_takes_the_anchor_that_it_printed(directory: Path) -> None:
    fill(directory)
    run = CliRunner()
    anchor = run.invoke(cli_audit.app, ["verify", str(directory)]).stdout.split()[-1]

    assert run.invoke(cli_audit.app, ["verify", str(directory), "--anchor", anchor]).exit_code == 0
    changed = anchor[:-1] + ("0" if anchor[-1] != "0" else "1")
    assert run.invoke(cli_audit.app, ["verify", str(directory), "--anchor", changed]).exit_code == 1
    wrong = run.invoke(cli_audit.app, ["verify", str(directory), "--anchor", "x"])
    assert isinstance(wrong.exception, ConfigError)


def test_command_shows_a_request_and_proves_what_was_sent(
    directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = AuditLog(directory)
    digest = log.digest()
    digest.update(b"the body")
    log.append({"event": "request", "request_id": "r1", "key": "gw", "input_hmac_sha256": digest.hexdigest()})
    log.append({"event": "request", "request_id": "r11", "key": "other"})
    log.close()
    monkeypatch.setenv("MEDPORT_AUDIT_DIR", str(directory))
    (tmp_path / "sent").write_bytes(b"the body")
    (tmp_path / "other").write_bytes(b"another body")
    run = CliRunner()

    shown = run.invoke(cli_audit.app, ["show", "r1", "--json", "--input", str(tmp_path / "sent")])
    denied = run.invoke(cli_audit.app, ["show", "r1", "--input", str(tmp_path / "other")])

    assert shown.exit_code == 0
    (record,) = json.loads(shown.stdout)["records"]
    assert (record["request_id"], record["key"]) == ("r1", "gw")
    assert json.loads(shown.stdout)["matches"] == {"input": True}
    assert denied.exit_code == 1
    assert "this is not what was sent" in denied.stdout
    assert isinstance(run.invoke(cli_audit.app, ["show", "r9"]).exception, NotFound)


def test_text_put_into_a_line_cannot_move_the_cursor(directory: Path) -> None:
    log = AuditLog(directory)
    log.append({"event": "request", "request_id": "r1", "key": "\x1b[2Jgone"})
    log.close()

    assert "\x1b" not in CliRunner().invoke(cli_audit.app, ["show", "r1", "--dir", str(directory)]).stdout


def test_commands_load_neither_torch_nor_a_web_framework(directory: Path, tmp_path: Path) -> None:
    fill(directory)
    program = (
        "import sys\nfrom medport.cli import main\n"
        "log, keys = sys.argv[1:]\n"
        "for args in (['audit', 'verify', log], ['keys', 'add', 'a', '--keys', keys]):\n"
        "    try: main(args)\n"
        "    except SystemExit as end: assert not end.code, args\n"
        "print('\\n'.join(sys.modules), file=sys.stderr)\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program, str(directory), str(tmp_path / "keys")],
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert done.returncode == 0, done.stderr
    assert "unbroken" in done.stdout
    assert not {"torch", "starlette", "uvicorn", "transformers"} & set(done.stderr.split())
