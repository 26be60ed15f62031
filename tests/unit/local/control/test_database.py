"""The control plane's state: what it promises, and what becomes of it when disk, file or neighbours are bad."""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from medport.errors import ConfigError, MedportError, NotReady, ServerError
from medport_local.control import database as module
from medport_local.control import records
from medport_local.control.database import Database, Transaction

META = {"project": "radiology", "location": "europe-west4"}
SUPPORT = Path(__file__).parents[3] / "support"
OPEN = (
    "import sys; from pathlib import Path; from medport_local.control.database import Database; "
    "Database(Path(sys.argv[1]), {})"
)
"""A program that opens the state in a directory."""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "plane"


@pytest.fixture
def database(place: Path) -> Iterator[Database]:
    opened = Database(place, META)
    yield opened
    opened.close()


def put(database: Database, key: str, value: str = "kept") -> None:
    with database.writing() as tx:
        tx.run("INSERT INTO meta VALUES (?, ?)", key, value)


def keys(database: Database) -> set[str]:
    with database.reading() as tx:
        return {row["key"] for row in tx.all("SELECT key FROM meta")} - META.keys()


def filled(place: Path, count: int = 300) -> None:
    opened = Database(place, META)
    with opened.writing() as tx:
        for i in range(count):
            records.insert(
                tx, f"models/m{i}", "model", "models", {"displayName": f"model {i}", "labels": {"n": "x"}}
            )
    opened.close()


class TestTransactions:
    def test_what_was_written_is_there_after_the_next_start(self, database: Database, place: Path) -> None:
        put(database, "a")
        database.close()

        again = Database(place, META)

        assert keys(again) == {"a"}
        again.close()

    def test_an_exception_takes_back_all_of_a_transaction(self, database: Database) -> None:
        def write_and_fail() -> None:
            with database.writing() as tx:
                tx.run("INSERT INTO meta VALUES ('a', '1')")
                tx.run("INSERT INTO meta VALUES ('b', '1')")
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            write_and_fail()

        put(database, "c")
        assert keys(database) == {"c"}

    def test_a_commit_is_on_the_disk_and_not_in_its_cache(self, database: Database) -> None:
        with database.writing() as tx, database.reading() as reader:
            said = [(each.one("PRAGMA journal_mode"), each.one("PRAGMA synchronous")) for each in (tx, reader)]

        assert [(mode[0], level[0]) for mode, level in said if mode and level] == [("wal", 2)] * 2

    def test_a_reader_sees_the_moment_at_which_it_began(self, database: Database) -> None:
        put(database, "a")

        with database.reading() as tx:
            before = tx.all("SELECT key FROM meta")
            with ThreadPoolExecutor(1) as pool:
                pool.submit(put, database, "b").result(10)
            after = tx.all("SELECT key FROM meta")

        assert [*map(tuple, after)] == [*map(tuple, before)]
        assert keys(database) == {"a", "b"}

    def test_a_reader_does_not_wait_for_a_writer(self, database: Database) -> None:
        with database.writing() as tx:
            tx.run("INSERT INTO meta VALUES ('a', '1')")
            with ThreadPoolExecutor(1) as pool:
                seen = pool.submit(keys, database).result(10)

        assert seen == set()

    def test_a_reader_cannot_write(self, database: Database) -> None:
        with pytest.raises(MedportError), database.reading() as tx:
            tx.run("INSERT INTO meta VALUES ('a', '1')")

        assert keys(database) == set()

    def test_writers_of_many_threads_take_turns_and_none_is_lost(self, database: Database) -> None:
        def count(_: int) -> int:
            with database.writing() as tx:
                return tx.next("shared")

        with ThreadPoolExecutor(8) as pool:
            numbers = [*pool.map(count, range(200))]

        assert sorted(numbers) == [*range(1, 201)]

    def test_a_transaction_inside_another_is_a_fault_of_ours_and_takes_both_back(self, database: Database) -> None:
        def nest() -> None:
            with database.writing() as tx:
                tx.run("INSERT INTO meta VALUES ('a', '1')")
                put(database, "b")

        with pytest.raises(AssertionError, match="inside another"):
            nest()

        put(database, "c")
        assert keys(database) == {"c"}

    def test_a_number_that_was_taken_back_is_given_again_and_none_twice(self, database: Database) -> None:
        with database.writing() as tx:
            first = tx.next("n")
            with tx.rehearsal():
                rehearsed = tx.next("n")
            second = tx.next("n")

        assert (first, rehearsed, second) == (1, 2, 2)

    def test_a_rehearsal_leaves_nothing_whether_it_works_or_not(self, database: Database) -> None:
        def rehearse(tx: Transaction, fault: type[Exception] | None) -> None:
            with tx.rehearsal():
                tx.run("INSERT INTO meta VALUES ('rehearsed', '1')")
                if fault is not None:
                    raise fault

        with database.writing() as tx:
            tx.run("INSERT INTO meta VALUES ('a', '1')")
            rehearse(tx, None)
            with pytest.raises(ZeroDivisionError):
                rehearse(tx, ZeroDivisionError)

        assert keys(database) == {"a"}

    def test_threads_that_came_and_went_leave_no_open_files(self, database: Database, place: Path) -> None:
        def opened() -> int:
            links = Path("/proc/self/fd")
            return sum(
                str(link.readlink()) == str(place / "state.db") for link in links.iterdir() if link.exists()
            )

        for _ in range(40):
            thread = threading.Thread(target=keys, args=(database,))
            thread.start()
            thread.join(10)

        assert opened() <= 3

    def test_a_body_that_is_no_json_is_not_kept(self, database: Database) -> None:
        with pytest.raises(MedportError), database.writing() as tx:
            tx.run("INSERT INTO resource VALUES ('n', 'model', 'p', 1, '{', '', '', 1)")


class TestClosing:
    def test_calls_after_the_end_are_refused_and_open_nothing(self, database: Database, place: Path) -> None:
        put(database, "a")
        database.close()

        for use in (keys, lambda closed: put(closed, "b")):
            with pytest.raises(NotReady, match="stopping"):
                use(database)

        again = Database(place, META)
        assert keys(again) == {"a"}
        again.close()

    def test_closing_waits_for_the_writer(self, database: Database, place: Path) -> None:
        inside, leave = threading.Event(), threading.Event()

        def write() -> None:
            with database.writing() as tx:
                tx.run("INSERT INTO meta VALUES ('slow', '1')")
                inside.set()
                leave.wait(10)

        with ThreadPoolExecutor(2) as pool:
            writing = pool.submit(write)
            inside.wait(10)
            closing = pool.submit(database.close)
            assert not closing.done()
            leave.set()
            writing.result(10)
            closing.result(10)

        again = Database(place, META)
        assert keys(again) == {"slow"}
        again.close()

    def test_a_reader_may_finish_after_the_end(self, database: Database) -> None:
        put(database, "a")

        with database.reading() as tx:
            database.close()
            seen = tx.all("SELECT key FROM meta WHERE value = 'kept'")

        assert [row["key"] for row in seen] == ["a"]

    def test_closing_twice_is_closing(self, database: Database) -> None:
        database.close()
        database.close()


class TestOwners:
    def test_a_second_server_is_refused_and_the_first_goes_on(self, database: Database, place: Path) -> None:
        with pytest.raises(ConfigError, match="another server") as refused:
            Database(place, META)

        put(database, "a")
        assert refused.value.remedy
        assert keys(database) == {"a"}

    def test_a_server_of_another_process_is_refused_too(self, database: Database, place: Path) -> None:
        done = subprocess.run(
            [sys.executable, "-c", OPEN, str(place)], capture_output=True, text=True, timeout=60, check=False
        )

        assert done.returncode == 1
        assert "another server has this state" in done.stderr

    def test_the_state_belongs_to_its_user_alone(self, database: Database, place: Path) -> None:
        put(database, "a")

        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (place, *place.iterdir())}

        assert modes.pop("plane") == 0o700
        assert {"state.db", "state.db-wal", "lock"} <= modes.keys()
        assert set(modes.values()) == {0o600}

    @pytest.mark.parametrize("key", META)
    def test_the_state_of_another_project_or_place_is_refused_by_name(
        self, database: Database, place: Path, key: str
    ) -> None:
        database.close()

        with pytest.raises(ConfigError, match=META[key]) as refused:
            Database(place, {**META, key: "another"})

        assert refused.value.field == key

    def test_a_program_that_writes_makes_writers_wait_and_then_say_so(
        self, database: Database, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        database.close()
        monkeypatch.setattr(module, "_BUSY_S", 0.1)
        opened = Database(place, META)
        with other_program(place, "BEGIN EXCLUSIVE"):
            with pytest.raises(NotReady, match="locked") as refused:
                put(opened, "a")
            seen = keys(opened)

        put(opened, "b")
        assert refused.value.retryable
        assert refused.value.retry_after_s
        assert seen == set()
        assert keys(opened) == {"b"}
        opened.close()

    def test_a_program_that_has_the_whole_file_keeps_the_server_from_starting(
        self, place: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        filled(place, 3)
        monkeypatch.setattr(module, "_BUSY_S", 0.1)
        with (
            other_program(place, "PRAGMA locking_mode=EXCLUSIVE; BEGIN IMMEDIATE"),
            pytest.raises(ConfigError, match="locked"),
        ):
            Database(place, META)

        again = Database(place, META)
        with again.reading() as tx:
            assert len(tx.all("SELECT name FROM resource")) == 3
        again.close()


class other_program:
    """Another process that has the file open, after some SQL and until it is left."""

    def __init__(self, place: Path, sql: str) -> None:
        program = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None); "
            "[c.execute(each) for each in sys.argv[2].split(';')]; print('ready', flush=True); sys.stdin.read()"
        )
        self._process = subprocess.Popen(
            [sys.executable, "-c", program, str(place / "state.db"), sql],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def __enter__(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "ready\n"

    def __exit__(self, *_: object) -> None:
        self._process.communicate(timeout=10)


class TestDisks:
    def test_a_full_disk_refuses_the_write_and_loses_nothing(self, database: Database) -> None:
        put(database, "a")
        with database.writing() as tx:
            pages = tx.one("PRAGMA page_count")
            assert pages is not None
            tx.one(f"PRAGMA max_page_count={pages[0]}")

        with pytest.raises(NotReady, match="full") as refused:
            put(database, "big", "x" * 100_000)

        with database.writing() as tx:
            tx.one("PRAGMA max_page_count=1000000")
        put(database, "b")
        assert refused.value.retryable
        assert keys(database) == {"a", "b"}

    def test_a_really_full_disk_refuses_the_write_and_loses_nothing(self, tmp_path: Path) -> None:
        done = mounted('mount -t tmpfs -o size=512k small "$1"', tmp_path, str(SUPPORT / "full_disk.py"))

        assert done.returncode == 0, done.stderr
        assert done.stdout.split() == ["NotReady", "kept", "again"]

    def test_a_disk_that_may_only_be_read_is_refused(self, place: Path) -> None:
        filled(place, 3)

        done = mounted('mount --bind "$1" "$1"; mount -o remount,bind,ro "$1"', place, "-c", OPEN)

        assert done.returncode == 1
        assert "ConfigError: control-plane: the directory cannot be used (Read-only file system)" in done.stderr

    @pytest.mark.parametrize("where", ["/proc/plane", "/dev/null/plane"])
    def test_a_place_that_cannot_be_written_is_refused(self, where: str) -> None:
        with pytest.raises(ConfigError, match="cannot be used") as refused:
            Database(Path(where), META)

        assert refused.value.field == "control-plane"

    def test_a_file_that_cannot_be_opened_is_refused(self, place: Path) -> None:
        (place / "state.db").mkdir(parents=True)

        with pytest.raises(ConfigError, match="cannot be read"):
            Database(place, META)


def mounted(mount: str, where: Path, *program: str) -> subprocess.CompletedProcess[str]:
    """Run a Python program, given ``where``, after a mount that nobody else sees."""
    inside = ["unshare", "-m"] if os.geteuid() == 0 else ["unshare", "-rm"]
    if shutil.which("unshare") is None or subprocess.run([*inside, "true"], capture_output=True).returncode:
        pytest.skip("this user cannot mount anything")
    script = f'{mount}; where="$1"; shift; exec "$@" "$where"'
    return subprocess.run(
        [*inside, "sh", "-ec", script, "sh", str(where), sys.executable, *program],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


class TestDamage:
    @pytest.mark.parametrize(
        "content", [b"this is no database", bytes(8192), b"SQLite format 3\0" + b"\xff" * 5000]
    )
    def test_garbage_is_refused_and_left_as_it_is(self, place: Path, content: bytes) -> None:
        place.mkdir()
        (place / "state.db").write_bytes(content)

        with pytest.raises(ConfigError) as refused:
            Database(place, META)

        assert refused.value.field == "control-plane"
        assert refused.value.remedy
        assert (place / "state.db").read_bytes() == content

    @pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.99])
    def test_a_file_cut_short_is_refused_and_left_as_it_is(self, place: Path, part: float) -> None:
        filled(place)
        whole = (place / "state.db").read_bytes()
        short = whole[: int(len(whole) * part)]
        (place / "state.db").write_bytes(short)

        with pytest.raises(ConfigError, match="damaged") as refused:
            Database(place, META)

        assert "backup" in (refused.value.remedy or "")
        assert (place / "state.db").read_bytes() == short

    def test_a_newer_format_is_refused_and_left_as_it_is(self, place: Path) -> None:
        filled(place, 3)
        direct = sqlite3.connect(place / "state.db")
        direct.execute(f"PRAGMA user_version={module.FORMAT + 1}")
        direct.close()
        before = (place / "state.db").read_bytes()

        with pytest.raises(ConfigError, match=f"format {module.FORMAT + 1}"):
            Database(place, META)

        assert (place / "state.db").read_bytes() == before

    def test_one_flipped_byte_is_refused_or_harmless_and_never_an_untyped_fault(self, place: Path) -> None:
        filled(place)
        original = read_all(place)
        file = place / "state.db"
        whole, chance = file.read_bytes(), random.Random(7)
        refused = 0
        for at in [*range(0, 120, 3), *(chance.randrange(len(whole)) for _ in range(200))]:
            (place / "state.db-wal").unlink(missing_ok=True)
            file.write_bytes(whole[:at] + bytes([whole[at] ^ (1 << chance.randrange(8))]) + whole[at + 1 :])

            try:
                found = read_all(place)
            except (ConfigError, ServerError):
                refused += 1
            else:
                # What SQLite cannot see is another letter within a text: all rows are there, and one may differ.
                assert len(found) == 300, at
                assert sum(a != b for a, b in zip(found, original, strict=True)) <= 1, at

        assert refused > 50

    def test_no_fault_of_sqlite_is_told_with_what_it_may_quote(self, database: Database) -> None:
        with pytest.raises(ServerError) as refused, database.reading() as tx:
            tx.all("SELECT a-secret-value")

        assert "secret" not in str(refused.value)


def read_all(place: Path) -> list[records.Record]:
    opened = Database(place, META)
    try:
        with opened.reading() as tx:
            return [records.of_row(row) for row in tx.all("SELECT * FROM resource")]
    finally:
        opened.close()


class TestKilledWriters:
    def test_every_answered_write_of_fifty_killed_writers_is_there(self, place: Path) -> None:
        done = subprocess.run(
            [sys.executable, str(SUPPORT / "killed_writer.py"), str(place), "50"],
            capture_output=True, text=True, timeout=120, check=True,
        )  # fmt: skip
        told = [int(line) for line in done.stdout.split()]

        opened = Database(place, {})
        with opened.reading() as tx:
            kept = [int(row["key"]) for row in tx.all("SELECT key FROM meta ORDER BY key")]
        opened.close()

        assert len(told) == 50
        assert told == sorted(told)
        assert kept == [*range(1, kept[-1] + 1)]
        # The last one may have been on the disk before it could be told.
        assert kept[-1] in (told[-1], told[-1] + 1)

    def test_a_log_that_was_cut_gives_the_state_before_the_cut(self, place: Path) -> None:
        opened = Database(place, META)
        for i in range(20):
            put(opened, f"{i:02}")
        log, base = (place / "state.db-wal").read_bytes(), (place / "state.db").read_bytes()
        opened.close()

        counts = []
        for part in (1.0, 0.8, 0.4):
            (place / "state.db").write_bytes(base)
            (place / "state.db-wal").write_bytes(log[: int(len(log) * part)])
            (place / "state.db-shm").unlink(missing_ok=True)
            again = Database(place, META)
            found = sorted(keys(again))
            again.close()
            assert found == [f"{i:02}" for i in range(len(found))]
            counts.append(len(found))

        assert counts[0] == 20
        assert counts == sorted(counts, reverse=True)
        assert counts[-1] < 20
