"""The control plane's state: one SQLite file, one owner, transactions that are on the disk when they end.

WAL with ``synchronous=FULL``: a change that was answered survives a power cut. A write costs one fsync, some 5 ms,
which nobody notices on a control plane; reads take some 10 µs and wait for no writer.

Source: sqlite.org, "Write-Ahead Logging", "PRAGMA synchronous".
"""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

from medport.errors import ConfigError, MedportError, NotReady, ServerError

T = TypeVar("T")

FORMAT = 1
_BUSY_S = 5.0
"""How long a writer waits for another program; it is in a thread of its own."""
_READ_BUSY_S = 0.05
"""A reader may be on the event loop. In WAL it waits for nobody, but for a program that has the whole file."""
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE resource(
    name TEXT NOT NULL UNIQUE, kind TEXT NOT NULL, parent TEXT NOT NULL, version INTEGER NOT NULL,
    body TEXT NOT NULL CHECK (json_valid(body)), created TEXT NOT NULL, updated TEXT NOT NULL,
    place INTEGER PRIMARY KEY
) STRICT;
CREATE INDEX resource_listed ON resource(kind, parent, place, json_extract(body, '$.labels'));
CREATE INDEX resource_created ON resource(kind, parent, created);
CREATE INDEX resource_named ON resource(kind, parent, json_extract(body, '$.displayName'));
CREATE TABLE alias(
    model TEXT NOT NULL, alias TEXT NOT NULL, version TEXT NOT NULL, PRIMARY KEY (model, alias)
) STRICT, WITHOUT ROWID;
CREATE TABLE operation(
    name TEXT PRIMARY KEY, resource TEXT NOT NULL, kind TEXT NOT NULL, api TEXT NOT NULL, caller TEXT NOT NULL,
    state TEXT NOT NULL, step TEXT NOT NULL, request TEXT NOT NULL, metadata TEXT NOT NULL,
    response TEXT, error TEXT, not_before TEXT, deadline TEXT, cancelled INTEGER NOT NULL DEFAULT 0,
    created TEXT NOT NULL, updated TEXT NOT NULL, place INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX operation_open ON operation(place) WHERE state <> 'DONE';
CREATE INDEX operation_of ON operation(resource, place);
CREATE INDEX operation_latest ON operation(place);
CREATE TABLE deployment(
    endpoint TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL,
    intent TEXT NOT NULL, operation TEXT NOT NULL, attempts INTEGER NOT NULL, last_error TEXT,
    created TEXT NOT NULL, updated TEXT NOT NULL, PRIMARY KEY (endpoint, id)
) STRICT, WITHOUT ROWID;
CREATE INDEX deployment_of ON deployment(model);
CREATE TABLE counter(name TEXT PRIMARY KEY, value INTEGER NOT NULL) STRICT, WITHOUT ROWID;
"""

logger = logging.getLogger(__name__)


class Transaction:
    """What is done together. Valid inside its ``with`` only."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def all(self, sql: str, *values: object) -> list[sqlite3.Row]:
        """The rows of a query."""
        return self._connection.execute(sql, values).fetchall()

    def one(self, sql: str, *values: object) -> sqlite3.Row | None:
        """The first row of a query."""
        row: sqlite3.Row | None = self._connection.execute(sql, values).fetchone()
        return row

    def run(self, sql: str, *values: object) -> int:
        """Change rows; how many."""
        return self._connection.execute(sql, values).rowcount

    def next(self, counter: str) -> int:
        """The next number of a counter that begins with 1 and never gives one twice."""
        row = self.one(
            "INSERT INTO counter VALUES (?, 1) ON CONFLICT (name) DO UPDATE SET value = value + 1 RETURNING value",
            counter,
        )
        assert row is not None
        return int(row["value"])

    @contextmanager
    def rehearsal(self) -> Iterator[None]:
        """Do what is inside and take it back: whether it would be refused."""
        self.run("SAVEPOINT rehearsal")
        try:
            yield
        finally:
            self.run("ROLLBACK TO rehearsal")
            self.run("RELEASE rehearsal")


class Database:
    """One server's state, for any thread.

    Args:
        directory: is made, mode 0700; holds ``state.db`` and the lock that makes this process its only owner.
        meta: what the state is about, such as the project; kept at the first start and compared at each later one.

    Raises:
        ConfigError: another server has it, it cannot be written, is damaged, of another format or about another
            project. Nothing is changed then. Damage is what SQLite can see, and JSON that is none: a letter in a
            text that became another is not noticed.
    """

    def __init__(self, directory: Path, meta: dict[str, str]) -> None:
        self._writing = threading.RLock()
        self._lending = threading.Lock()
        self._idle: list[sqlite3.Connection] = []
        """Readers that nobody uses; there are never more than were used at once."""
        self._writer: sqlite3.Connection | None = None
        self._file = directory / "state.db"
        try:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as fault:
            raise ConfigError(
                f"the directory cannot be used ({os.strerror(fault.errno or 0)})",
                field="control-plane",
                remedy="give one that this user may write to",
            ) from fault
        try:
            self._own()
            with _faults():
                self._writer = self._connect(_BUSY_S)
                self._prepare(self._writer)
            self._compare(meta)
        except (NotReady, ServerError) as fault:
            self.close()
            raise ConfigError(fault.message, field="control-plane", remedy=fault.remedy) from fault
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A transaction that may change things. One at a time; on the disk when it ends, or not begun.

        A thread that is in one must not begin another: the two could not be taken back apart.

        Raises:
            NotReady: another program holds the file, the disk is full, or the server stops. Nothing was changed.
            ServerError: the file is damaged. Nothing was changed.
        """
        with self._writing, _faults():
            writer = self._writer
            if writer is None:
                raise _closed()
            assert not writer.in_transaction, "a transaction inside another"
            writer.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(writer)
                self._commit()
            except BaseException:
                if writer.in_transaction:
                    writer.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """What was true at one moment; waits for nobody. Raises as ``writing``."""
        with _faults(), self._reader() as connection:
            connection.execute("BEGIN")
            try:
                yield Transaction(connection)
            finally:
                connection.execute("ROLLBACK")

    def write(self, work: Callable[[Transaction], T]) -> T:
        """``work`` in a transaction of its own, for handing to a thread."""
        with self.writing() as transaction:
            return work(transaction)

    def close(self) -> None:
        """Give the file back, when what is being written is on the disk. Calls that come later are refused."""
        with self._writing:
            with self._lending:
                connections, self._idle = self._idle, []
                if self._writer is not None:
                    connections.append(self._writer)
                    self._writer = None
            for connection in connections:
                connection.close()
            if self._lock >= 0:
                os.close(self._lock)
                self._lock = -1

    def _commit(self) -> None:
        assert self._writer is not None
        self._writer.execute("COMMIT")

    def _own(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise ConfigError(
                "another server has this state", field="control-plane", remedy="stop it, or give another directory"
            ) from fault

    def _connect(self, timeout_s: float) -> sqlite3.Connection:
        # Threads use connections one after another: the writer under its lock, a reader as long as it is lent.
        connection = sqlite3.connect(
            self._file, timeout=timeout_s, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        try:
            connection.row_factory = sqlite3.Row
            connection.execute("PRAGMA synchronous=FULL")
            # What is deleted may have been a value of a container's environment: its bytes go too.
            connection.execute("PRAGMA secure_delete=ON")
        except BaseException:
            connection.close()
            raise
        return connection

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        with self._lending:
            if self._writer is None:
                raise _closed()
            connection = self._idle.pop() if self._idle else None
        if connection is None:
            connection = self._connect(_READ_BUSY_S)
            connection.execute("PRAGMA query_only=ON")
        try:
            yield connection
        finally:
            with self._lending:
                lasting = self._writer is not None and not connection.in_transaction
                if lasting:
                    self._idle.append(connection)
            if not lasting:
                connection.close()

    def _prepare(self, writer: sqlite3.Connection) -> None:
        (found,) = writer.execute("PRAGMA user_version").fetchone()
        fresh = found == 0 and not writer.execute("SELECT 1 FROM sqlite_master").fetchone()
        if not fresh and found != FORMAT:
            raise ConfigError(
                f"the state has format {found} and this medport reads {FORMAT}",
                field="control-plane",
                remedy="use the medport that wrote it, or another directory",
            )
        if fresh:
            os.chmod(self._file, 0o600)
        (mode,) = writer.execute("PRAGMA journal_mode=WAL").fetchone()
        if mode != "wal":
            raise ConfigError(
                "the file system of the directory has no shared memory, which SQLite's WAL needs",
                field="control-plane",
                remedy="give a directory on a local disk",
            )
        if fresh:
            writer.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={FORMAT};COMMIT")
        (said,) = writer.execute("PRAGMA integrity_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)

    def _compare(self, meta: dict[str, str]) -> None:
        with self.writing() as transaction:
            for key, value in meta.items():
                row = transaction.one("SELECT value FROM meta WHERE key = ?", key)
                if row is None:
                    transaction.run("INSERT INTO meta VALUES (?, ?)", key, value)
                elif row["value"] != value:
                    raise ConfigError(
                        f"the state is of {key} {row['value']!s:.80}, not {value:.80}",
                        field=key,
                        remedy=f"give --{key} {row['value']!s:.80}, or another directory",
                    )


def _closed() -> NotReady:
    return NotReady("the server is stopping", remedy="try again when it has started", retry_after_s=5)


@contextmanager
def _faults() -> Iterator[None]:
    """SQLite's exceptions as ours, without what they may quote."""
    try:
        yield
    except MedportError:
        raise
    except sqlite3.Error as fault:
        code = getattr(fault, "sqlite_errorcode", 0) & 0xFF
        logger.error("the state: %s", getattr(fault, "sqlite_errorname", type(fault).__name__))
        raise _translated(code) from fault


def _translated(code: int) -> MedportError:
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return NotReady(
            "the state is locked by another program", remedy="close it, then try again", retry_after_s=5
        )
    if code == sqlite3.SQLITE_FULL:
        return NotReady(
            "the disk of the state is full", remedy="free some space, then try again", retry_after_s=60
        )
    if code in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM, sqlite3.SQLITE_IOERR):
        return NotReady(
            "the state cannot be read or written", remedy="see the disk and the server's log", retry_after_s=60
        )
    return ServerError(
        "the state is damaged", field="control-plane", remedy="stop the server and restore state.db from a backup"
    )
