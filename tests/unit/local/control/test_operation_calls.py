"""Operations as callers see them: polled under every prefix, waited for, cancelled, listed, forgotten."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.support.planes import PROJECT, Standing, standing

from medport.errors import InputError, NotFound, PreconditionFailed


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Standing]:
    with standing(tmp_path) as made:
        made.endpoint()
        made.model()
        yield made


@pytest.mark.parametrize("prefix", ["/ui", "/v1", "/v1beta1"])
def test_an_operation_is_read_under_every_prefix_by_project_number(plane: Standing, prefix: str) -> None:
    operation = plane.deployed("1")

    assert plane.call("GET", f"{prefix}/{operation['name']}") == operation


def test_operations_stand_under_models_and_endpoints(plane: Standing) -> None:
    names = {operation["name"].rpartition("/operations/")[0] for operation in listed(plane, "operations")}

    assert names == {f"{PROJECT.parent}/endpoints/e", f"{PROJECT.parent}/models/m"}


def test_an_operation_that_is_not_there_is_not_found(plane: Standing) -> None:
    for method, path in (("GET", ""), ("POST", ":wait"), ("POST", ":cancel"), ("DELETE", "")):
        with pytest.raises(NotFound, match="operations/7"):
            plane.call(method, f"endpoints/e/operations/7{path}")


def test_an_operation_of_one_endpoint_is_not_found_under_another(plane: Standing) -> None:
    id_ = plane.deployed("1")["name"].rpartition("/")[2]

    with pytest.raises(NotFound):
        plane.call("GET", f"endpoints/other/operations/{id_}")


def test_waiting_ends_when_the_operation_is_done(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")

    async def waited() -> bool:
        waiting = asyncio.create_task(asyncio.to_thread(plane.call, "POST", f"/v1/{operation['name']}:wait"))
        await asyncio.to_thread(plane.host.starting.acquire)
        assert not waiting.done()
        plane.host.let_go()
        return bool((await waiting)["done"])

    assert asyncio.run(waited())


def test_waiting_ends_with_an_operation_that_is_not_done_when_the_time_is_over(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")
    begun = time.monotonic()

    waited = plane.call("POST", f"/v1/{operation['name']}:wait", {"timeout": "0.1s"})

    assert not waited["done"]
    assert time.monotonic() - begun >= 0.1


@pytest.mark.parametrize("timeout", ["soon", 5, {"hours": 1}])
def test_a_time_to_wait_that_is_none_is_refused(plane: Standing, timeout: object) -> None:
    operation = plane.deployed("1")

    with pytest.raises(InputError, match="timeout"):
        plane.call("POST", f"/v1/{operation['name']}:wait", {"timeout": timeout})


def test_cancelling_what_is_done_changes_nothing(plane: Standing) -> None:
    operation = plane.deployed("1")

    assert plane.call("POST", f"/v1/{operation['name']}:cancel") == {}

    assert plane.call("GET", f"/ui/{operation['name']}") == operation


def test_an_undeployment_that_drains_goes_on_although_it_is_cancelled(plane: Standing) -> None:
    plane.deployed("1")
    lease = plane.plane.fleet.enter("-", "-", "e")
    operation = plane.undeploying("1")
    while plane.rows()[0].state != "DRAINING":
        time.sleep(0.005)

    plane.call("POST", f"/v1/{operation['name']}:cancel")
    lease.release()

    assert "error" not in plane.call.done(operation)


def test_only_an_operation_that_is_done_is_forgotten(plane: Standing) -> None:
    plane.host.hold()
    operation = plane.deploying("1")
    with pytest.raises(PreconditionFailed, match="not done"):
        plane.call("DELETE", f"/v1/{operation['name']}")
    plane.host.let_go()
    plane.call.done(operation)

    assert plane.call("DELETE", f"/v1/{operation['name']}") == {}

    with pytest.raises(NotFound):
        plane.call("GET", f"/ui/{operation['name']}")


def listed(plane: Standing, path: str, **query: str) -> list[dict[str, object]]:
    found = plane.call("GET", path, **query)["operations"]
    assert isinstance(found, list)
    return found


def test_a_list_is_of_one_resource_the_latest_first(plane: Standing) -> None:
    names = [plane.deployed(id_)["name"] for id_ in ("1", "2")]

    assert [operation["name"] for operation in listed(plane, "endpoints/e/operations")][:2] == names[::-1]
    assert names[0] not in [operation["name"] for operation in listed(plane, "models/m/operations")]


def test_a_list_can_be_of_what_is_done_or_not(plane: Standing) -> None:
    plane.host.hold()
    open_ = plane.deploying("1")["name"]

    done = {operation["name"] for operation in listed(plane, "endpoints/e/operations", filter="done=true")}
    others = {operation["name"] for operation in listed(plane, "endpoints/e/operations", filter="done = false")}

    assert others == {open_}
    assert open_ not in done
    assert done


def test_pages_hold_each_operation_once_while_others_are_begun(plane: Standing) -> None:
    before = [operation["name"] for operation in listed(plane, "operations")]
    seen: list[object] = []
    page = plane.call("GET", "operations", pageSize="1")
    while True:
        seen += [operation["name"] for operation in page["operations"]]
        if "nextPageToken" not in page:
            break
        plane.endpoint(f"later-{len(seen)}")
        page = plane.call("GET", "operations", pageSize="1", pageToken=page["nextPageToken"])

    assert seen == before


@pytest.mark.parametrize(
    ("key", "value"), [("filter", "name=x"), ("pageSize", "-1"), ("pageToken", "x"), ("pageToken", "9" * 20)]
)
def test_a_query_that_cannot_be_understood_is_refused(plane: Standing, key: str, value: str) -> None:
    with pytest.raises(InputError):
        plane.call("GET", "operations", **{key: value})


def test_operations_of_an_endpoint_that_is_not_the_callers_are_not_listed(plane: Standing) -> None:
    plane.endpoint("hers")

    found = plane.call("GET", "operations", may=lambda endpoint: endpoint == "e")["operations"]

    assert not [operation for operation in found if "endpoints/hers" in operation["name"]]
    assert [operation for operation in found if "endpoints/e/" in operation["name"]]


@pytest.mark.parametrize(
    "query", [{"pageToken": "9999999999999999999"}, {"pageSize": "9" * 5000}, {"pageToken": "9" * 5000}]
)
def test_a_number_that_no_page_has_is_refused_and_not_a_fault_of_the_server(
    plane: Standing, query: dict[str, str]
) -> None:
    with pytest.raises(InputError, match="page_"):
        plane.call("GET", "operations", **query)
