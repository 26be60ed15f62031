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
_SCHEMA = """
CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE resource(
    name TEXT PRIMARY KEY, kind TEXT NOT NULL, parent TEXT NOT NULL, version INTEGER NOT NULL,
    body TEXT NOT NULL, created TEXT NOT NULL, updated TEXT NOT NULL, place INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
CREATE INDEX resource_listed ON resource(kind, parent, place);
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
CREATE TABLE deployment(
    endpoint TEXT NOT NULL, id TEXT NOT NULL, model TEXT NOT NULL, state TEXT NOT NULL, body TEXT NOT NULL,
    intent TEXT NOT NULL, operation TEXT NOT NULL, last_error TEXT, created TEXT NOT NULL, updated TEXT NOT NULL,
    PRIMARY KEY (endpoint, id)
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
            project. Nothing is changed then.
    """

    def __init__(self, directory: Path, meta: dict[str, str]) -> None:
        self._writing = threading.RLock()
        self._readers = threading.local()
        self._opened: list[sqlite3.Connection] = []
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
                self._writer = self._connect()
                self._prepare(meta)
        except BaseException:
            self.close()
            raise

    @contextmanager
    def writing(self) -> Iterator[Transaction]:
        """A transaction that may change things. One at a time; on the disk when it ends, or not begun.

        Raises:
            NotReady: another program holds the file, or the disk is full. Nothing was changed.
            ServerError: the file is damaged. Nothing was changed.
        """
        with self._writing, _faults():
            self._writer.execute("BEGIN IMMEDIATE")
            try:
                yield Transaction(self._writer)
                self._commit()
            except BaseException:
                if self._writer.in_transaction:
                    self._writer.execute("ROLLBACK")
                raise

    @contextmanager
    def reading(self) -> Iterator[Transaction]:
        """What was true at one moment; waits for nobody. Raises as ``writing``."""
        with _faults():
            connection = self._reader()
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
        """Give the file back. No other thread may be using it."""
        for connection in self._opened:
            connection.close()
        self._opened.clear()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _commit(self) -> None:
        self._writer.execute("COMMIT")

    def _own(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as fault:
            raise ConfigError(
                "another server has this state", field="control-plane", remedy="stop it, or give another directory"
            ) from fault

    def _connect(self) -> sqlite3.Connection:
        # Threads use connections one after another: the writer under its lock, a reader in its own thread alone.
        connection = sqlite3.connect(
            self._file, timeout=_BUSY_S, isolation_level=None, check_same_thread=False, cached_statements=256
        )
        self._opened.append(connection)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    def _reader(self) -> sqlite3.Connection:
        connection: sqlite3.Connection | None = getattr(self._readers, "connection", None)
        if connection is None:
            connection = self._readers.connection = self._connect()
            connection.execute("PRAGMA query_only=ON")
        return connection

    def _prepare(self, meta: dict[str, str]) -> None:
        writer = self._writer
        (found,) = writer.execute("PRAGMA user_version").fetchone()
        if found == 0 and not writer.execute("SELECT 1 FROM sqlite_master").fetchone():
            os.chmod(self._file, 0o600)
            writer.execute("PRAGMA journal_mode=WAL")
            writer.executescript(f"BEGIN;{_SCHEMA}PRAGMA user_version={FORMAT};COMMIT")
        elif found != FORMAT:
            raise ConfigError(
                f"the state has format {found} and this medport reads {FORMAT}",
                field="control-plane",
                remedy="use the medport that wrote it, or another directory",
            )
        (said,) = writer.execute("PRAGMA quick_check(1)").fetchone()
        if said != "ok":
            raise sqlite3.DatabaseError(said)
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
