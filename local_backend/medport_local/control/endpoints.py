"""Endpoints: made, shown, listed, changed, deleted. Which models they have is told by ``deployed``.

Source: Vertex AI REST reference, projects.locations.endpoints; Terraform, google_vertex_ai_endpoint.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from pydantic.alias_generators import to_camel

from medport.errors import AlreadyExists, InputError, NotFound, PreconditionFailed
from medport_local.control import deployed, ids, labels, masks, paging, records, traffic
from medport_local.control.asks import Ask, Row
from medport_local.control.database import Database, Transaction
from medport_local.control.forms import read, written
from medport_local.control.forms_endpoint import Endpoint, UpdateEndpoint
from medport_local.control.listings import listing
from medport_local.control.operations import Kind, Operations
from medport_local.control.project import Project
from medport_local.control.records import Record

Json = dict[str, Any]

CREATE = Kind("createEndpoint", "CreateEndpointOperationMetadata", "Endpoint")
UPDATE = Kind("updateEndpoint", "UpdateEndpointOperationMetadata", "Endpoint")
DELETE = Kind("deleteEndpoint", "DeleteOperationMetadata", None)

_HERE = "/{api}/projects/{project}/locations/{location}/endpoints"
_MUTABLE = frozenset((
    "display_name", "description", "labels", "traffic_split", "predict_request_response_logging_config",
    "private_service_connect_config", "dedicated_endpoint_enabled", "client_connection_config",
))  # fmt: skip
"""What Google's client, Terraform and ``:update`` change. Models come and go by their own calls."""
_ELSEWHERE = {
    "deployed_models": "call :deployModel, :undeployModel or :mutateDeployedModel",
    "network": "it is fixed when an endpoint is made; make another endpoint",
    "encryption_spec": "it is fixed when an endpoint is made; make another endpoint",
}


class Endpoints:
    """The endpoints of one server.

    Args:
        advertised: ``host:port`` under which clients reach this server; ``None`` where there is no such thing.
        on_change: called with an endpoint's name once a change of it is on the disk.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        operations: Operations,
        *,
        advertised: str | None,
        on_change: Callable[[str], None],
    ) -> None:
        self._project = project
        self._database = database
        self._operations = operations
        self._advertised = advertised
        self._on_change = on_change
        self._listing = listing(project, "endpoint")
        operations.register(CREATE, self._create_apply)
        operations.register(UPDATE, self._update_apply)
        operations.register(DELETE, _delete_apply)

    def rows(self) -> tuple[Row, ...]:
        """What there is to call."""
        one, verb = _HERE + "/{endpoint}", "aiplatform.endpoints."
        return (
            Row(method="POST", path=_HERE, handler=self._create, verb=f"{verb}create", operation="createEndpoint"),
            Row(method="GET", path=_HERE, handler=self._list, verb=f"{verb}list", operation="listEndpoints"),
            Row(method="GET", path=one, handler=self._get, verb=f"{verb}get", operation="getEndpoint"),
            Row(method="PATCH", path=one, handler=self._patch, verb=f"{verb}update", operation="updateEndpoint"),
            Row(method="POST", path=f"{one}:update", handler=self._update, verb=f"{verb}update",
                operation="updateEndpointLongRunning"),
            Row(method="DELETE", path=one, handler=self._delete, verb=f"{verb}delete", operation="deleteEndpoint"),
        )  # fmt: skip

    def shown(self, transaction: Transaction, record: Record) -> Json:
        """An Endpoint in proto3 JSON."""
        return endpoint_shown(transaction, record, self._advertised)

    async def _create(self, ask: Ask) -> Json:
        form = read(Endpoint, ask.body, "endpoint")
        id_ = masks.given(ask.query, "endpoint_id")
        if id_:
            ids.check_endpoint(id_)
        name = f"{self._project.parent}/endpoints/{id_ or ids.made()}"
        request = {"name": name, "form": written(form)}
        done = await self._operations.perform(ask, CREATE, resource=name, request=request)
        self._on_change(name)
        return done

    async def _get(self, ask: Ask) -> Json:
        with self._database.reading() as transaction:
            return self.shown(transaction, found(transaction, self._named(ask)))

    async def _list(self, ask: Ask) -> Json:
        return await asyncio.to_thread(self._page, ask)

    def _page(self, ask: Ask) -> Json:
        mask = masks.given(ask.query, "read_mask")
        with self._database.reading() as transaction:
            rows, token = paging.page(
                transaction,
                self._listing,
                (self._project.parent,),
                ask.query,
                keep=lambda row: ask.may(row["name"].rpartition("/")[2]),
            )
            shown = [masks.read(mask, self.shown(transaction, records.of_row(row)), Endpoint) for row in rows]
        return {**({"endpoints": shown} if shown else {}), **({"nextPageToken": token} if token else {})}

    async def _patch(self, ask: Ask) -> Json:
        name = self._named(ask)
        form = read(Endpoint, ask.body, "endpoint")
        fields = masks.changed(masks.given(ask.query, "update_mask"), Endpoint, _MUTABLE, elsewhere=_ELSEWHERE)

        def work(transaction: Transaction) -> Json:
            return self.shown(transaction, _changed(transaction, name, form, fields))

        shown = await asyncio.to_thread(self._database.write, work)
        self._on_change(name)
        return shown

    async def _update(self, ask: Ask) -> Json:
        name = self._named(ask)
        form = read(UpdateEndpoint, ask.body)
        request = {"name": name, "form": written(form.endpoint)}
        done = await self._operations.perform(ask, UPDATE, resource=name, request=request)
        self._on_change(name)
        return done

    async def _delete(self, ask: Ask) -> Json:
        name = self._named(ask)
        done = await self._operations.perform(ask, DELETE, resource=name, request={"name": name})
        self._on_change(name)
        return done

    def _create_apply(self, transaction: Transaction, request: Json) -> Json:
        name = request["name"]
        asked = {"endpointId": name.rpartition("/")[2], "endpoint": request["form"]}
        create_endpoint(transaction, self._project, asked)
        return self.shown(transaction, found(transaction, name))

    def _update_apply(self, transaction: Transaction, request: Json) -> Json:
        return self.shown(transaction, _connected(transaction, request))

    def _named(self, ask: Ask) -> str:
        return f"{self._project.parent}/endpoints/{ask.path['endpoint']}"


def create_endpoint(transaction: Transaction, project: Project, request: Json) -> Json:
    """Keep a new endpoint.

    Args:
        request: CreateEndpointRequest: ``endpoint``, and its ``endpointId``.

    Returns:
        The Endpoint as it is kept, with its ``name``.

    Raises:
        InputError: a value breaks a rule.
        AlreadyExists: the id is taken.
    """
    form = read(Endpoint, request["endpoint"], "endpoint")
    ids.check_endpoint(request["endpointId"])
    name = f"{project.parent}/endpoints/{request['endpointId']}"
    body = _kept(form)
    body["trafficSplit"] = traffic.check(form.traffic_split or {}, (), field="endpoint.traffic_split")
    _check(body)
    if records.find(transaction, name) is not None:
        raise AlreadyExists(
            f"the endpoint {name} already exists", field="endpoint_id", remedy="choose another id, or delete it"
        )
    return {"name": name, **records.insert(transaction, name, "endpoint", project.parent, body).body}


def found(transaction: Transaction, name: str) -> Record:
    """The record of an endpoint. Raises ``NotFound``."""
    record = records.find(transaction, name)
    if record is None or record.kind != "endpoint":
        raise NotFound(f"there is no endpoint {name:.200}", field="endpoint", remedy="list the endpoints")
    return record


def endpoint_shown(transaction: Transaction, record: Record, advertised: str | None) -> Json:
    """An Endpoint in proto3 JSON, without what has its default value.

    Args:
        advertised: ``host:port`` that a dedicated endpoint has as its DNS name.
    """
    body = {key: value for key, value in record.body.items() if value not in ({}, "")}
    if body.get("dedicatedEndpointEnabled") and advertised:
        body["dedicatedEndpointDns"] = advertised
    models = deployed.shown(transaction, record.name)
    return {
        "name": record.name,
        **body,
        **({"deployedModels": models} if models else {}),
        "createTime": record.created,
        "updateTime": record.updated,
        "etag": record.etag,
    }


def _changed(transaction: Transaction, name: str, form: Endpoint, fields: set[str]) -> Record:
    """Replace the fields of a mask. What is in it and not in the body is cleared."""
    record = found(transaction, name)
    record.check_etag(form.etag)
    given = _kept(form)
    body = dict(record.body)
    for field in fields:
        body.pop(to_camel(field), None)
        if to_camel(field) in given:
            body[to_camel(field)] = given[to_camel(field)]
    if "traffic_split" in fields:
        standing = deployed.standing(transaction, name)
        body["trafficSplit"] = traffic.check(form.traffic_split or {}, standing, field="traffic_split")
    dedicated = "dedicatedEndpointEnabled"
    if bool(body.get(dedicated)) != bool(record.body.get(dedicated)) and deployed.busy(transaction, name):
        raise PreconditionFailed(
            f"{dedicated} cannot be changed: Endpoint {name} has deployed or being-deployed DeployedModel(s).",
            field="endpoint.dedicated_endpoint_enabled",
            remedy="undeploy them first, or make another endpoint",
        )
    _check(body)
    return records.update(transaction, record, body)


def _connected(transaction: Transaction, request: Json) -> Record:
    """``:update``: another ``clientConnectionConfig``, and nothing else. What is given as it is does not count."""
    record = found(transaction, request["name"])
    form = read(Endpoint, request["form"], "endpoint")
    record.check_etag(form.etag)
    given = _kept(form)
    for key, value in given.items():
        if key != "clientConnectionConfig" and (value or None) != (record.body.get(key) or None):
            raise InputError(
                f"{key} cannot be changed by :update; client_connection_config can",
                field=f"endpoint.{key}",
                remedy="leave it out, and change it by PATCH",
            )
    if "clientConnectionConfig" not in given:
        raise InputError(
            "'endpoint.client_connection_config' is required",
            field="endpoint.client_connection_config",
            remedy="give its inferenceTimeout",
        )
    return records.update(
        transaction, record, {**record.body, "clientConnectionConfig": given["clientConnectionConfig"]}
    )


def _delete_apply(transaction: Transaction, request: Json) -> Json:
    record = found(transaction, request["name"])
    if deployed.busy(transaction, record.name):
        raise PreconditionFailed(
            f"Endpoint {record.name} has deployed or being-deployed DeployedModel(s).",
            field="endpoint",
            remedy="undeploy them first",
        )
    records.delete(transaction, record.name)
    return {}


def _kept(form: Endpoint) -> Json:
    return {key: value for key, value in written(form).items() if key != "etag"}


def _check(body: Json) -> None:
    """Raise ``InputError`` for what Vertex refuses in an Endpoint."""
    if not body.get("displayName", "").strip():
        raise InputError("'endpoint.display_name' is required", field="endpoint.display_name", remedy="give one")
    labels.check(body.get("labels", {}), field="endpoint.labels")
    if body.get("privateServiceConnectConfig", {}).get("enablePrivateServiceConnect"):
        for key in ("network", "dedicatedEndpointEnabled"):
            if body.get(key):
                raise InputError(
                    f"{key} and privateServiceConnectConfig exclude each other",
                    field=f"endpoint.{key}",
                    remedy="give one of them",
                )
