"""Resources as rows: a name, a body in proto3 JSON, a version that is the etag."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from sqlite3 import Row
from typing import Any, Literal

import orjson

from medport.errors import AlreadyExists, Conflict, NotFound
from medport.wire.vertex import rfc3339
from medport_local.control.database import Transaction

Kind = Literal["model", "version", "endpoint", "batchPredictionJob", "eula"]
"""``model`` holds what all versions share; ``version`` is named ``…/models/{m}@{v}``, its parent is the model."""
Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Record:
    """One resource as it is kept."""

    name: str
    kind: Kind
    parent: str
    version: int
    body: Json
    created: str
    updated: str
    place: int
    """Grows with each resource that is made: the order of lists."""

    @property
    def etag(self) -> str:
        return str(self.version)

    @property
    def id(self) -> str:
        return self.name.rpartition("/")[2]

    def check_etag(self, given: object) -> None:
        """Raise ``Conflict`` if ``given`` is an etag, and not this one's. Who sends none overwrites blindly."""
        if given not in (None, "", self.etag):
            raise Conflict(
                "the resource was changed since it was read", field="etag", remedy="read it again, then change it"
            )


def stamp() -> str:
    """This moment, as resources carry it."""
    return rfc3339(datetime.now(UTC))


def find(transaction: Transaction, name: str) -> Record | None:
    row = transaction.one("SELECT * FROM resource WHERE name = ?", name)
    return None if row is None else of_row(row)


def get(transaction: Transaction, name: str, *, field: str = "name") -> Record:
    """One resource. Raises ``NotFound``."""
    record = find(transaction, name)
    if record is None:
        raise NotFound(f"there is no {name:.200}", field=field, remedy="list what there is")
    return record


def insert(transaction: Transaction, name: str, kind: Kind, parent: str, body: Mapping[str, Any]) -> Record:
    """Keep a new one. Raises ``AlreadyExists``."""
    if find(transaction, name) is not None:
        raise AlreadyExists(f"{name:.200} already exists", field="name", remedy="choose another id, or delete it")
    now = stamp()
    record = Record(name, kind, parent, 1, dict(body), now, now, transaction.next("place"))
    transaction.run(
        "INSERT INTO resource VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        name, kind, parent, 1, orjson.dumps(record.body).decode(), now, now, record.place,
    )  # fmt: skip
    return record


def update(transaction: Transaction, record: Record, body: Mapping[str, Any]) -> Record:
    """Replace the body; the etag moves on."""
    changed = Record(
        record.name,
        record.kind,
        record.parent,
        record.version + 1,
        dict(body),
        record.created,
        stamp(),
        record.place,
    )
    transaction.run(
        "UPDATE resource SET version = ?, body = ?, updated = ? WHERE name = ?",
        changed.version, orjson.dumps(changed.body).decode(), changed.updated, changed.name,
    )  # fmt: skip
    return changed


def delete(transaction: Transaction, name: str) -> None:
    transaction.run("DELETE FROM resource WHERE name = ?", name)


def of_row(row: Row) -> Record:
    """A row of the table ``resource``."""
    return Record(
        row["name"], row["kind"], row["parent"], row["version"], orjson.loads(row["body"]), row["created"],
        row["updated"], row["place"],
    )  # fmt: skip
