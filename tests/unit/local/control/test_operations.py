"""Long-running operations: what is quick is done as it is recorded, what is slow is left to a worker."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from medport.errors import (
    TABLE,
    AlreadyExists,
    ConfigError,
    InputError,
    MedportError,
    QuotaExceeded,
    VerificationError,
)
from medport_local.control import operations as module
from medport_local.control import records
from medport_local.control.asks import Ask
from medport_local.control.database import Database, Transaction
from medport_local.control.operations import Kind, Operation, Operations

PARENT = "projects/1/locations/europe-west4"
ENDPOINT = f"{PARENT}/endpoints/e"
CREATE = Kind("createEndpoint", "CreateEndpointOperationMetadata", "Endpoint")
DELETE = Kind("deleteEndpoint", "DeleteOperationMetadata", None)
TYPES = "type.googleapis.com/google.cloud.aiplatform"


def create(tx: Transaction, request: dict[str, Any]) -> dict[str, Any]:
    record = records.insert(tx, request["name"], "endpoint", PARENT, request["body"])
    return {"name": record.name, **record.body}


def delete(tx: Transaction, request: dict[str, Any]) -> dict[str, Any]:
    records.get(tx, request["name"])
    records.delete(tx, request["name"])
    return {}


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    opened = Database(tmp_path / "plane", {})
    yield opened
    opened.close()


class Desk:
    """The operations of a test, some kinds of which may be held up."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.slow: dict[str, float] = {}
        self.wakes = 0
        self.operations = Operations(database, slow=lambda kind: self.slow.get(kind, 0.0))
        self.operations.register(CREATE, create)
        self.operations.register(DELETE, delete)
        self.operations.woken = self._woken

    def _woken(self) -> None:
        self.wakes += 1

    def create(self, name: str = ENDPOINT, api: Any = "v1", **body: Any) -> dict[str, Any]:
        request = {"name": name, "body": body}
        ask = Ask(api=api, caller="deployer")
        return asyncio.run(self.operations.perform(ask, CREATE, resource=name, request=request))

    def begun(self) -> Operation:
        with self.database.writing() as tx:
            return self.operations.begin(
                tx, Ask(api="v1", caller="deployer"), CREATE, ENDPOINT, {"name": ENDPOINT}
            )

    def kept(self) -> tuple[list[str], list[Operation]]:
        """Names of resources, and operations in the order in which they began."""
        with self.database.reading() as tx:
            names = [row["name"] for row in tx.all("SELECT name FROM resource")]
            return names, [module.of_row(row) for row in tx.all("SELECT * FROM operation ORDER BY place")]


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(database)


class TestQuickOnes:
    def test_a_quick_one_is_answered_as_done_with_its_typed_response(self, desk: Desk) -> None:
        shown = desk.create(displayName="e")

        assert re.fullmatch(re.escape(ENDPOINT) + r"/operations/1\d{18}", shown["name"])
        assert shown["done"] is True
        assert shown["response"] == {"@type": f"{TYPES}.v1.Endpoint", "name": ENDPOINT, "displayName": "e"}
        assert shown["metadata"]["@type"] == f"{TYPES}.v1.CreateEndpointOperationMetadata"
        assert sorted(shown["metadata"]["genericMetadata"]) == ["createTime", "updateTime"]
        assert "error" not in shown
        assert desk.wakes == 0

    def test_types_are_of_the_version_that_was_asked_in(self, desk: Desk) -> None:
        shown = desk.create(api="v1beta1")

        assert shown["response"]["@type"] == f"{TYPES}.v1beta1.Endpoint"
        assert shown["metadata"]["@type"] == f"{TYPES}.v1beta1.CreateEndpointOperationMetadata"

    def test_what_responds_with_nothing_responds_with_googles_empty(self, desk: Desk) -> None:
        desk.create()

        shown = asyncio.run(
            desk.operations.perform(Ask(api="v1"), DELETE, resource=ENDPOINT, request={"name": ENDPOINT})
        )

        assert shown["response"] == {"@type": "type.googleapis.com/google.protobuf.Empty"}
        assert desk.kept()[0] == []

    def test_what_is_kept_is_what_was_answered(self, desk: Desk) -> None:
        shown = desk.create(displayName="e")

        names, (operation,) = desk.kept()

        assert names == [ENDPOINT]
        assert operation.shown() == shown
        assert (operation.state, operation.caller, operation.resource) == ("DONE", "deployer", ENDPOINT)

    def test_a_refusal_is_raised_and_leaves_neither_resource_nor_operation(self, desk: Desk) -> None:
        desk.create(displayName="first")

        with pytest.raises(AlreadyExists):
            desk.create(displayName="second")

        names, operations = desk.kept()
        assert names == [ENDPOINT]
        assert len(operations) == 1

    def test_two_operations_have_two_names_that_grow(self, desk: Desk) -> None:
        numbers = [int(desk.create(f"{PARENT}/endpoints/e{i}")["name"].rpartition("/")[2]) for i in range(3)]

        assert numbers == sorted(set(numbers))

    def test_callers_at_once_are_each_served(self, desk: Desk) -> None:
        async def all_at_once() -> list[dict[str, Any]]:
            ask = Ask(api="v1")
            names = [f"{PARENT}/endpoints/e{i}" for i in range(20)]
            return await asyncio.gather(
                *(
                    desk.operations.perform(ask, CREATE, resource=name, request={"name": name, "body": {}})
                    for name in names
                )
            )

        shown = asyncio.run(all_at_once())

        assert len({each["name"] for each in shown}) == 20
        assert len(desk.kept()[0]) == 20


class TestForgetting:
    def test_the_last_that_are_done_are_kept_and_those_that_are_not_done_whatever_their_age(
        self, tmp_path: Path
    ) -> None:
        with closing(Database(tmp_path / "kept", {})) as database:
            operations = Operations(database, kept=150)
            operations.register(CREATE, create)
            ask = Ask(api="v1")

            with database.writing() as tx:
                begun = [operations.begin(tx, ask, CREATE, ENDPOINT, {}) for _ in range(2)]
                for _ in range(500):
                    one = operations.begin(tx, ask, CREATE, ENDPOINT, {})
                    operations.finish(tx, one.name, {})
                kept = [row["name"] for row in tx.all("SELECT name FROM operation ORDER BY place")]

            assert kept[:2] == [each.name for each in begun]
            assert kept[-1] == one.name
            assert 150 <= len(kept) - 2 <= 250

    def test_of_a_request_that_was_done_or_failed_only_the_endpoint_stays(self, desk: Desk) -> None:
        request = {"endpoint": ENDPOINT, "modelConfig": {"huggingFaceAccessToken": "hf_secret"}}

        with desk.database.writing() as tx:
            ask = Ask(api="v1")
            done = desk.operations.begin(tx, ask, CREATE, ENDPOINT, request)
            failed = desk.operations.begin(tx, ask, CREATE, ENDPOINT, request)
            before = done.request
            done = desk.operations.finish(tx, done.name, {})
            failed = desk.operations.fail(tx, failed.name, InputError("no"))

        assert before == request
        assert done.request == failed.request == {"endpoint": ENDPOINT}


class TestSlowOnes:
    def test_a_held_up_one_is_recorded_changes_nothing_yet_and_wakes_the_worker(self, desk: Desk) -> None:
        desk.slow["createEndpoint"] = 3600

        shown = desk.create(displayName="e")

        names, (operation,) = desk.kept()
        assert shown["done"] is False
        assert "response" not in shown
        assert names == []
        assert (operation.state, operation.request) == (
            "PENDING",
            {"name": ENDPOINT, "body": {"displayName": "e"}},
        )
        assert operation.not_before is not None
        left = datetime.fromisoformat(operation.not_before) - datetime.now(UTC)
        assert 3500 < left.total_seconds() <= 3600
        assert desk.wakes == 1

    def test_a_held_up_one_that_would_be_refused_is_refused_at_once(self, desk: Desk) -> None:
        desk.create()
        desk.slow["createEndpoint"] = 3600

        with pytest.raises(AlreadyExists):
            desk.create()

        assert len(desk.kept()[1]) == 1
        assert desk.wakes == 0

    def test_what_was_recorded_is_enough_to_do_it_after_a_restart(self, desk: Desk) -> None:
        desk.slow["createEndpoint"] = 3600
        name = desk.create(displayName="e")["name"]
        again = Operations(desk.database)
        again.register(CREATE, create)

        with desk.database.writing() as tx:
            operation = module.get(tx, name)
            apply = again.apply_of(operation.kind)
            assert apply is not None
            done = again.finish(tx, name, apply(tx, operation.request))

        assert done.shown()["response"]["displayName"] == "e"
        assert desk.kept()[0] == [ENDPOINT]

    def test_a_kind_that_takes_long_has_nothing_to_apply(self, desk: Desk) -> None:
        desk.operations.register(Kind("deployModel", "DeployModelOperationMetadata", "DeployModelResponse"))

        assert desk.operations.apply_of("deployModel") is None
        assert desk.operations.apply_of("createEndpoint") is create


class TestSteps:
    def test_a_step_is_noted_and_what_callers_see_is_merged(self, desk: Desk) -> None:
        name = desk.begun().name

        with desk.database.writing() as tx:
            desk.operations.step(tx, name, "loading", {"deploymentStage": "STARTING_MODEL_SERVER"})
            desk.operations.step(tx, name, "checking")

        (operation,) = desk.kept()[1]
        assert (operation.state, operation.step) == ("RUNNING", "checking")
        assert operation.shown()["metadata"]["deploymentStage"] == "STARTING_MODEL_SERVER"
        assert operation.shown()["done"] is False

    def test_an_update_time_never_comes_before_the_create_time(self, desk: Desk) -> None:
        name = desk.begun().name
        with desk.database.writing() as tx:
            done = desk.operations.finish(tx, name, {})

        assert done.created <= done.updated

    def test_what_is_done_cannot_be_done_again_or_failed_or_go_on(self, desk: Desk) -> None:
        name = desk.create()["name"]
        before = desk.kept()

        def after(change: str) -> None:
            with desk.database.writing() as tx:
                if change == "finish":
                    desk.operations.finish(tx, name, {})
                elif change == "fail":
                    desk.operations.fail(tx, name, InputError("no"))
                else:
                    desk.operations.step(tx, name, "loading")

        for change in ("finish", "fail", "step"):
            with pytest.raises(AssertionError):
                after(change)
        assert desk.kept() == before

    def test_an_unknown_name_is_none(self, desk: Desk) -> None:
        with desk.database.reading() as tx:
            assert module.find(tx, f"{ENDPOINT}/operations/1") is None


class TestFailures:
    def failed(self, desk: Desk, error: MedportError, code: int | None = None) -> dict[str, Any]:
        name = desk.begun().name
        with desk.database.writing() as tx:
            return desk.operations.fail(tx, name, error, code=code).shown()

    @pytest.mark.parametrize(
        ("error", "code"),
        [(VerificationError("x"), 9), (QuotaExceeded("x"), 8), (InputError("x"), 3), (ConfigError("x"), 9)],
    )
    def test_a_failure_has_the_code_that_googles_client_maps(
        self, desk: Desk, error: MedportError, code: int
    ) -> None:
        assert self.failed(desk, error)["error"]["code"] == code

    def test_every_error_there_is_has_a_code_of_its_own_status(self) -> None:
        assert {row.status for row in TABLE} <= module.RPC_CODES.keys()

    def test_a_failure_says_what_and_how_to_mend_it_and_has_no_response(self, desk: Desk) -> None:
        error = VerificationError("sha256 differs", field="model.safetensors", remedy="fetch the snapshot again")

        shown = self.failed(desk, error, code=9)

        assert shown["done"] is True
        assert "response" not in shown
        assert shown["error"]["message"] == "model.safetensors: sha256 differs (fetch the snapshot again)"

    def test_a_code_that_is_given_wins(self, desk: Desk) -> None:
        assert self.failed(desk, InputError("cancelled"), code=1)["error"]["code"] == 1
