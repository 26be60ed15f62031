"""Calls that deploy, undeploy and change deployed models: everything is checked, then recorded with its operation.

What takes long is done by ``deploying`` from what is recorded here.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from medport.errors import AlreadyExists, InputError, NotFound, PreconditionFailed
from medport.wire.vertex import rfc3339
from medport_local.control import deployed, ids, records, traffic
from medport_local.control.asks import Ask, Row
from medport_local.control.database import Database, Transaction
from medport_local.control.deploy_forms import (
    DEPLOY,
    MUTATE,
    DeployedModel,
    RolloutOptions,
    Undeploy,
    check_offered,
    check_replicas,
)
from medport_local.control.deployed import Deployment
from medport_local.control.deploying import Outcome
from medport_local.control.forms import read, written
from medport_local.control.host import Intent
from medport_local.control.operations import Kind, Operation, Operations
from medport_local.control.project import Project
from medport_local.control.scaling import seconds

Json = dict[str, Any]
VersionOf = Callable[[Transaction, str, str | None], Json]
"""The Model as a GET shows it, from its name and a version, an alias or nothing; raises ``NotFound``."""

DEPLOYS = Kind("deployModel", "DeployModelOperationMetadata", "DeployModelResponse")
UNDEPLOYS = Kind("undeployModel", "UndeployModelOperationMetadata", "UndeployModelResponse")
MUTATES = Kind("mutateDeployedModel", "MutateDeployedModelOperationMetadata", "MutateDeployedModelResponse")
LONGEST_S = 7200.0
"""Vertex's deployment timeout, and the longest that a Model version may ask for."""
_MUTABLE = frozenset(
    (
        "minReplicaCount",
        "maxReplicaCount",
        "requiredReplicaCount",
        "autoscalingMetricSpecs",
        "scaleToZeroSpec",
        "initialReplicaCount",
    )
)
_ENDPOINT = "/{api}/projects/{project}/locations/{location}/endpoints/{endpoint}"


class Deployments:
    """The calls, and ``begin`` for those who deploy as part of more.

    Args:
        on_change: called with an endpoint's name after something about its models changed at once.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        operations: Operations,
        *,
        version_of: VersionOf,
        on_change: Callable[[str], None],
    ) -> None:
        self._project = project
        self._database = database
        self._operations = operations
        self._version_of = version_of
        self._on_change = on_change
        self.outcomes: dict[str, Outcome] = {}
        """By the name of the operation's kind, those that deploy."""
        self.offer(DEPLOYS, Outcome(respond=lambda tx, operation, shown: {"deployedModel": shown}))
        operations.register(UNDEPLOYS)
        operations.register(MUTATES, self._mutated)

    def rows(self) -> tuple[Row, ...]:
        """The calls that this answers."""
        return (
            Row(
                method="POST",
                path=f"{_ENDPOINT}:deployModel",
                handler=self.deploy,
                verb="aiplatform.endpoints.deploy",
                operation="deployModel",
            ),
            Row(
                method="POST",
                path=f"{_ENDPOINT}:undeployModel",
                handler=self.undeploy,
                verb="aiplatform.endpoints.undeploy",
                operation="undeployModel",
            ),
            Row(
                method="POST",
                path=f"{_ENDPOINT}:mutateDeployedModel",
                handler=self.mutate,
                verb="aiplatform.endpoints.deploy",
                operation="mutateDeployedModel",
            ),
        )

    def offer(self, kind: Kind, outcome: Outcome) -> None:
        """Make a kind of operation known that deploys a model by ``begin``, and maybe does more."""
        self._operations.register(kind)
        self.outcomes[kind.name] = outcome

    async def deploy(self, ask: Ask) -> Json:
        """``endpoints.deployModel``."""
        form = read(DEPLOY[ask.api], ask.body)
        endpoint = self._endpoint(ask)

        def record(tx: Transaction) -> Operation:
            return self.begin(tx, ask, endpoint, form.deployed_model, form.traffic_split)

        return await self._begun(record)

    async def undeploy(self, ask: Ask) -> Json:
        """``endpoints.undeployModel``."""
        form = read(Undeploy, ask.body)
        endpoint = self._endpoint(ask)

        def record(tx: Transaction) -> Operation:
            endpoint_record = records.get(tx, endpoint, field="endpoint")
            row = self._standing(tx, endpoint, form.deployed_model_id, "deployed_model_id")
            others = deployed.standing(tx, endpoint) - {row.id}
            present = endpoint_record.body.get("trafficSplit", {})
            traffic.without(present, row.id, form.traffic_split, others)
            request = {"endpoint": endpoint, "id": row.id, "split": form.traffic_split}
            later = self._operations.held_up(UNDEPLOYS)
            return self._operations.begin(tx, ask, UNDEPLOYS, endpoint, request, not_before=later)

        return await self._begun(record)

    async def mutate(self, ask: Ask) -> Json:
        """``endpoints.mutateDeployedModel``."""
        form = read(MUTATE[ask.api], {**ask.query, **ask.body})
        endpoint = self._endpoint(ask)
        check_offered(form.deployed_model)
        given = written(form.deployed_model).get("dedicatedResources", {})
        paths = _mask(form.update_mask, given)
        resources = {key: given[key] for key in paths if key in given}
        request = {"endpoint": endpoint, "id": form.deployed_model.id, "paths": paths, "resources": resources}
        answer = await self._operations.perform(
            ask, MUTATES, resource=endpoint, request={**request, "api": ask.api}
        )
        self._on_change(endpoint)
        return answer

    def begin(
        self,
        tx: Transaction,
        ask: Ask,
        endpoint: str,
        form: DeployedModel,
        split: Mapping[str, int],
        *,
        kind: Kind = DEPLOYS,
        resource: str = "",
        metadata: Json | None = None,
        more: Json | None = None,
    ) -> Operation:
        """Check a deployment and record it with its operation. Call ``Operations.woken`` after the transaction.

        Args:
            endpoint: resource name.
            kind: one that ``offer`` made known.
            resource: under which the operation stands; the endpoint if it is not given.
            more: kept in the operation's request for the kind's ``Outcome``.

        Raises:
            InputError, NotFound, AlreadyExists, PreconditionFailed, Unsupported: which field, and what to do.
        """
        record = records.get(tx, endpoint, field="endpoint")
        check_offered(form)
        rows = {row.id: row for row in deployed.of(tx, endpoint)}
        id_ = form.id or ids.made()
        if id_ in rows:
            raise AlreadyExists(
                f"DeployedModel {id_} is at this endpoint",
                field="deployed_model.id",
                remedy="choose another id, or undeploy it",
            )
        if id_ == traffic.NEW:
            raise InputError('"0" is no id', field="deployed_model.id", remedy="choose another")
        model, _, wanted = form.model.partition("@")
        model = self._project.canonical(model, kind="models", field="deployed_model.model")
        version = self._version_of(tx, model, wanted or None)
        dedicated = bool(record.body.get("dedicatedEndpointEnabled"))
        _check_route(version, dedicated)
        previous = self._previous(rows, form)
        body = self._body(form, id_, model, version, previous, ask)
        present = record.body.get("trafficSplit", {})
        known = {row.id for row in rows.values() if row.state != "DRAINING"}
        asked = traffic.asked_with_new(split, id_, known, present)
        if previous is not None and asked is None:
            asked = dict(present)
        request = {
            **(more or {}),
            "endpoint": endpoint,
            "id": id_,
            "split": asked,
            "against": present,
            "previous": previous and previous.id,
        }
        operation = self._operations.begin(
            tx,
            ask,
            kind,
            resource or endpoint,
            request,
            {**(metadata or {}), "deploymentStage": "STARTING_DEPLOYMENT"},
            not_before=self._operations.held_up(kind),
            deadline=_deadline(version),
        )
        intent = Intent(
            endpoint=endpoint,
            deployed_model_id=id_,
            model=model,
            model_version_id=body["modelVersionId"],
            display_name=body["displayName"],
            version={key: value for key, value in version.items() if key not in ("deployedModels", "etag")},
            dedicated=dedicated,
        )
        deployed.insert(
            tx,
            Deployment(
                endpoint=endpoint,
                id=id_,
                model=model,
                state="PENDING",
                body=body,
                intent=intent,
                operation=operation.name,
            ),
        )
        return operation

    async def _begun(self, record: Callable[[Transaction], Operation]) -> Json:
        operation = await asyncio.to_thread(self._database.write, record)
        self._operations.woken()
        return operation.shown()

    def _endpoint(self, ask: Ask) -> str:
        return f"{self._project.parent}/endpoints/{ask.path['endpoint']}"

    def _standing(self, tx: Transaction, endpoint: str, id_: str, field: str) -> Deployment:
        row = deployed.find(tx, endpoint, id_)
        if row is None or row.state in ("PENDING", "LOADING"):
            raise NotFound(
                f"there is no DeployedModel {id_:.40} at this endpoint", field=field, remedy="see deployedModels"
            )
        if row.state == "DRAINING":
            raise PreconditionFailed(f"DeployedModel {id_} is being undeployed", field=field, remedy="wait")
        return row

    def _previous(self, rows: Mapping[str, Deployment], form: DeployedModel) -> Deployment | None:
        options: RolloutOptions | None = getattr(form, "rollout_options", None)
        if options is None:
            return None
        row = rows.get(options.previous_deployed_model)
        if row is None or not row.standing:
            raise NotFound(
                f"there is no DeployedModel {options.previous_deployed_model:.40} at this endpoint",
                field="deployed_model.rollout_options.previous_deployed_model",
                remedy="see deployedModels",
            )
        return row

    def _body(
        self,
        form: DeployedModel,
        id_: str,
        model: str,
        version: Json,
        previous: Deployment | None,
        ask: Ask,
    ) -> Json:
        body = written(form)
        resources = body.get("dedicatedResources")
        if previous is not None and resources is None:
            resources = previous.body["dedicatedResources"]
        elif resources is None:
            raise InputError(
                "is missing", field="deployed_model.dedicated_resources", remedy="say machineSpec and replicas"
            )
        else:
            resources = check_replicas(resources, ask.api)
        return {
            **body,
            "id": id_,
            "model": model,
            "modelVersionId": version["versionId"],
            "displayName": form.display_name or version.get("displayName", ""),
            "dedicatedResources": resources,
        }

    def _mutated(self, tx: Transaction, request: Json) -> Json:
        records.get(tx, request["endpoint"], field="endpoint")
        row = self._standing(tx, request["endpoint"], request["id"], "deployed_model.id")
        kept = {k: v for k, v in row.body["dedicatedResources"].items() if k not in request["paths"]}
        # Zero is the default, so a count that was zero is not among what is kept.
        least = (
            {} if kept.get("minReplicaCount") or "minReplicaCount" in request["paths"] else {"minReplicaCount": 0}
        )
        resources = check_replicas({**kept, **least, **request["resources"]}, request["api"])
        changed = deployed.update(tx, replace(row, body={**row.body, "dedicatedResources": resources}))
        return {"deployedModel": changed.shown()}


def _check_route(version: Json, dedicated: bool) -> None:
    if version.get("containerSpec", {}).get("invokeRoutePrefix") and not dedicated:
        raise PreconditionFailed(
            "a model with an invoke_route_prefix is deployed to dedicated endpoints only",
            field="endpoint",
            remedy="create one with dedicatedEndpointEnabled",
        )


def _deadline(version: Json) -> str:
    asked = version.get("containerSpec", {}).get("deploymentTimeout")
    # Zero is what a client sends that leaves it to the service.
    timeout_s = min((seconds(asked) if asked else 0.0) or LONGEST_S, LONGEST_S)
    return rfc3339(datetime.now(UTC) + timedelta(seconds=timeout_s))


def _mask(mask: str, given: Json) -> list[str]:
    """The fields of ``dedicatedResources`` that a mask names, in camelCase."""
    paths = [_camel(path.strip()).removeprefix("deployedModel.") for path in mask.split(",") if path.strip()]
    fields: list[str] = []
    for path in paths or [f"dedicatedResources.{key}" for key in given if key in _MUTABLE]:
        head, _, field = path.partition(".")
        if head != "dedicatedResources" or (field and field not in _MUTABLE):
            raise InputError(
                f"{path:.80} cannot be changed once a model is deployed",
                field="update_mask",
                remedy="deploy it anew; the counts of replicas and what scales them can be changed",
            )
        fields += [field] if field else sorted(_MUTABLE)
    return fields


def _camel(path: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), path)
