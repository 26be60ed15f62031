"""The models that are deployed, or being deployed or undeployed, as rows: who is where, in which state.

    PENDING → LOADING → READY ⇄ ASLEEP, then DRAINING, then the row is gone.

A deployment that fails leaves no row. What an engine does at this moment (it is loaded again after a restart, it
wakes up) is not state: the next process begins it anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from sqlite3 import Row
from typing import Any, Literal

import orjson

from medport_local.control.database import Transaction
from medport_local.control.host import Intent
from medport_local.control.records import stamp

Json = dict[str, Any]
State = Literal["PENDING", "LOADING", "READY", "ASLEEP", "DRAINING"]
_STANDING = ("READY", "ASLEEP")


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """One row."""

    endpoint: str
    """Resource name."""
    id: str
    model: str
    """Resource name without a version."""
    state: State
    body: Json
    """DeployedModel in proto3 JSON, without ``createTime`` and ``status``."""
    intent: Intent
    operation: str
    """Name of the operation that deploys it, or undeploys it."""
    attempts: int = 0
    """How often loading it for the first time was begun and not ended."""
    last_error: str | None = None
    """Why it has no engine although it should; for ``status.message``."""
    created: str = ""
    updated: str = ""

    @property
    def standing(self) -> bool:
        """It is deployed: traffic may be given to it."""
        return self.state in _STANDING

    def shown(self) -> Json:
        """As it stands among an Endpoint's ``deployedModels``."""
        available = self.state in ("READY", "DRAINING") and self.last_error is None
        status: Json = {"lastUpdateTime": self.updated}
        if available:
            status["availableReplicaCount"] = 1
        wanted = self.body.get("dedicatedResources", {}).get("minReplicaCount", 1)
        if self.last_error is not None:
            status["message"] = self.last_error
        elif self.state == "ASLEEP":
            status["message"] = "Scaled to zero; a request wakes it."
        elif wanted > 1:
            status["message"] = f"1 of {wanted} replicas: this server runs one engine for a deployed model."
        return {**self.body, "createTime": self.created, "status": status}


def shown(transaction: Transaction, endpoint: str) -> list[Json]:
    """An Endpoint's ``deployedModels``. One that is being deployed is not among them, as on Vertex."""
    return [each.shown() for each in of(transaction, endpoint) if each.standing or each.state == "DRAINING"]


def standing(transaction: Transaction, endpoint: str) -> set[str]:
    """The ids that a traffic split may name."""
    return {each.id for each in of(transaction, endpoint) if each.standing}


def busy(transaction: Transaction, endpoint: str) -> bool:
    """Whether any model is deployed there, being deployed or undeployed included."""
    return transaction.one("SELECT 1 FROM deployment WHERE endpoint = ?", endpoint) is not None


def of_model(transaction: Transaction, model: str, version: str | None = None) -> list[Json]:
    """Where a model, or one version of it, is deployed: ``endpoint`` and ``deployedModelId``.

    Those being deployed or undeployed count: a model that is needed is not deleted.
    """
    rows = transaction.all("SELECT * FROM deployment WHERE model = ? ORDER BY created, id", model)
    found = map(of_row, rows)
    return [
        {"endpoint": each.endpoint, "deployedModelId": each.id}
        for each in found
        if version in (None, each.intent.model_version_id)
    ]


def of_models(transaction: Transaction, models: str) -> dict[tuple[str, str], list[Json]]:
    """As ``of_model`` for many at once, by name and version.

    Args:
        models: their names, as a JSON list.
    """
    found: dict[tuple[str, str], list[Json]] = {}
    for each in map(
        of_row,
        transaction.all(
            "SELECT * FROM deployment WHERE model IN (SELECT value FROM json_each(?)) ORDER BY created, id", models
        ),
    ):
        key = (each.model, each.intent.model_version_id)
        found.setdefault(key, []).append({"endpoint": each.endpoint, "deployedModelId": each.id})
    return found


def of(transaction: Transaction, endpoint: str) -> list[Deployment]:
    """All of one endpoint, the oldest first."""
    rows = transaction.all("SELECT * FROM deployment WHERE endpoint = ? ORDER BY created, id", endpoint)
    return [of_row(row) for row in rows]


def every(transaction: Transaction) -> list[Deployment]:
    """All of this server, the oldest first."""
    return [of_row(row) for row in transaction.all("SELECT * FROM deployment ORDER BY created, endpoint, id")]


def snapshots(transaction: Transaction) -> frozenset[str]:
    """The sha256s of all that are deployed, being deployed or undeployed."""
    rows = transaction.all("SELECT DISTINCT json_extract(intent, '$.snapshot_sha256') AS sha256 FROM deployment")
    return frozenset(row["sha256"] for row in rows if row["sha256"])


def find(transaction: Transaction, endpoint: str, id_: str) -> Deployment | None:
    """One; ``None`` if there is none."""
    row = transaction.one("SELECT * FROM deployment WHERE endpoint = ? AND id = ?", endpoint, id_)
    return None if row is None else of_row(row)


def insert(transaction: Transaction, deployment: Deployment) -> Deployment:
    """Keep one that is not there yet, created at this moment."""
    made = replace(deployment, created=stamp(), updated=stamp())
    transaction.run(
        "INSERT INTO deployment VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        made.endpoint, made.id, made.model, made.state, _dump(made.body), _dump(asdict(made.intent)),
        made.operation, made.attempts, made.last_error, made.created, made.updated,
    )  # fmt: skip
    return made


def update(transaction: Transaction, deployment: Deployment) -> Deployment:
    """Replace one, changed at this moment."""
    changed = replace(deployment, updated=stamp())
    transaction.run(
        "UPDATE deployment SET state = ?, body = ?, intent = ?, operation = ?, attempts = ?, last_error = ?,"
        " updated = ? WHERE endpoint = ? AND id = ?",
        changed.state, _dump(changed.body), _dump(asdict(changed.intent)), changed.operation, changed.attempts,
        changed.last_error, changed.updated, changed.endpoint, changed.id,
    )  # fmt: skip
    return changed


def delete(transaction: Transaction, deployment: Deployment) -> None:
    """It is gone."""
    transaction.run("DELETE FROM deployment WHERE endpoint = ? AND id = ?", deployment.endpoint, deployment.id)


def of_row(row: Row) -> Deployment:
    """A row of the table ``deployment``."""
    return Deployment(
        endpoint=row["endpoint"],
        id=row["id"],
        model=row["model"],
        state=row["state"],
        body=orjson.loads(row["body"]),
        intent=Intent(**orjson.loads(row["intent"])),
        operation=row["operation"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        created=row["created"],
        updated=row["updated"],
    )


def _dump(value: Mapping[str, Any]) -> str:
    return orjson.dumps(value).decode()
