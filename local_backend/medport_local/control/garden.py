"""Model Garden's one call that does everything: a model version, an endpoint for it, the deployment.

Both are made in the transaction that records the operation, so that they can be looked at meanwhile as on Vertex;
the transaction in which a deployment fails takes them back. Google's own client leaves them behind.

Source: Vertex AI REST reference, projects.locations.deploy; DeployRequest, DeployResponse.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from medport.errors import PreconditionFailed
from medport_local.control import deployed, ids, records, versions
from medport_local.control.asks import Ask, Row
from medport_local.control.database import Database, Transaction
from medport_local.control.deploy_forms import DeployedModel, DeployedModelBeta
from medport_local.control.deploying import Outcome
from medport_local.control.deployments import Deployments
from medport_local.control.endpoints import create_endpoint
from medport_local.control.forms import read, written
from medport_local.control.garden_eula import Eulas
from medport_local.control.garden_forms import GardenDeploy, ModelConfig, read_deploy
from medport_local.control.operations import Kind, Operation, Operations
from medport_local.control.project import Project
from medport_local.control.publisher_calls import PublisherCalls
from medport_local.control.publishers import Available, Catalogue, PublisherModel, resources
from medport_local.control.uploads import upload

Json = dict[str, Any]

DEPLOYS = Kind("deploy", "DeployOperationMetadata", "DeployResponse", staged=False)
SNAPSHOT_ENV, REVISION_ENV = "MEDPORT_SNAPSHOT_SHA256", "MEDPORT_REVISION"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wanted:
    """What a call wants deployed, everything but its names."""

    source: str
    """PublisherModel in the form of answers; ``""`` for weights of the caller's own."""
    display_name: str
    version: Json
    """Model in proto3 JSON, without its display name."""
    machine: Json
    """MachineSpec where the caller names none."""


class Garden:
    """Model Garden on one server: the catalogue, the terms, and the call.

    Args:
        available: the snapshots that the server has at this moment.
        image: URI of the container image that deployments say; ``""``: they say none.
        require_digest: as for every upload; an image must be named then, by its digest.
    """

    def __init__(
        self,
        project: Project,
        database: Database,
        operations: Operations,
        deployments: Deployments,
        *,
        available: Callable[[], Sequence[Available]],
        image: str = "",
        require_digest: bool = False,
    ) -> None:
        self._project = project
        self._database = database
        self._operations = operations
        self._deployments = deployments
        self._require_digest = require_digest
        self._catalogue = Catalogue(available, image)
        self._eulas = Eulas(project, database, self._catalogue)
        self._calls = PublisherCalls(project, self._catalogue)
        deployments.offer(DEPLOYS, Outcome(respond=_respond, undo=_undo))

    def rows(self) -> tuple[Row, ...]:
        """All calls of Model Garden."""
        deploy = Row(
            method="POST",
            path="/{api}/projects/{project}/locations/{location}:deploy",
            handler=self.deploy,
            verb="aiplatform.modelGarden.deploy",
            operation="deployPublisherModel",
        )
        return (*self._calls.rows(), *self._eulas.rows(), deploy)

    async def deploy(self, ask: Ask) -> Json:
        """``projects.locations.deploy``.

        Raises:
            PreconditionFailed: the terms were not accepted; the server has no snapshot of the model, or several.
            InputError, NotFound, AlreadyExists: which field, and what to do.
        """
        form, config = read_deploy(ask.api, ask.body)

        def record(tx: Transaction) -> Operation:
            wanted = self._wanted(tx, ask, form, config)
            return self._begin(tx, ask, form, config, wanted)

        operation = await asyncio.to_thread(self._database.write, record)
        self._operations.woken()
        return operation.shown()

    def _wanted(self, tx: Transaction, ask: Ask, form: GardenDeploy, config: ModelConfig) -> _Wanted:
        given = written(config.container_spec) if config.container_spec is not None else None
        if form.custom_model is not None:
            return _custom(form.custom_model.gcs_uri, given)
        hub = bool(form.hugging_face_model_id)
        field = "hugging_face_model_id" if hub else "publisher_model_name"
        model = self._catalogue.find(form.hugging_face_model_id or form.publisher_model_name, field=field)
        if config.accept_eula:
            self._eulas.note(tx, model, ask.caller)
        else:
            self._eulas.check_accepted(tx, model)
        spec = _pinned(model, model.spec(self._catalogue.image) if given is None else given, field)
        return _Wanted(
            source=model.on_hub if hub else model.resource,
            display_name=f"{model.display_name}-mg-one-click-deploy",
            version={
                "containerSpec": spec,
                "baseModelSource": {"modelGardenSource": {"publicModelName": model.source_name}},
            },
            machine=model.machines[0] if model.machines else {},
        )

    def _begin(
        self, tx: Transaction, ask: Ask, form: GardenDeploy, config: ModelConfig, wanted: _Wanted
    ) -> Operation:
        model_id = config.model_user_id or ids.made()
        named = {"displayName": config.model_display_name or wanted.display_name}
        uploaded = upload(
            tx,
            self._project,
            {"model": {**wanted.version, **named}, "modelId": model_id},
            require_digest=self._require_digest,
        )
        endpoint = create_endpoint(tx, self._project, _endpoint(form, wanted.display_name))["name"]
        return self._deployments.begin(
            tx,
            ask,
            endpoint,
            _deployed_model(ask, form, f"{uploaded['model']}@{uploaded['modelVersionId']}", wanted.machine),
            {},
            kind=DEPLOYS,
            resource=self._project.parent,
            metadata={
                **({"publisherModel": wanted.source} if wanted.source else {}),
                "destination": self._project.parent,
                "projectNumber": self._project.number,
                "modelId": model_id,
            },
            more={"publisherModel": wanted.source, "model": uploaded["model"]},
        )


def _respond(tx: Transaction, operation: Operation, shown: Json) -> Json:
    return {
        key: operation.request[key] for key in ("publisherModel", "endpoint", "model") if operation.request[key]
    }


def _undo(tx: Transaction, operation: Operation) -> None:
    """Take the endpoint and the model back, but for what somebody else has put to use meanwhile."""
    endpoint, model = operation.request["endpoint"], operation.request["model"]
    if not deployed.busy(tx, endpoint):
        records.delete(tx, endpoint)
    if len(versions.all_of(tx, model)) == 1 and not deployed.of_model(tx, model):
        versions.delete_model(tx, model)


def _endpoint(form: GardenDeploy, display_name: str) -> Json:
    """CreateEndpointRequest. It is dedicated unless the caller wants it otherwise."""
    config = form.endpoint_config
    private = config.private_service_connect_config
    ways = (
        {"privateServiceConnectConfig": written(private)}
        if private is not None and private.enable_private_service_connect
        else {"dedicatedEndpointEnabled": not config.dedicated_endpoint_disabled}
    )
    return {
        "endpoint": {"displayName": config.endpoint_display_name or display_name, **ways},
        "endpointId": config.endpoint_user_id or f"mg-endpoint-{uuid.uuid4()}",
    }


def _deployed_model(ask: Ask, form: GardenDeploy, model: str, machine: Json) -> DeployedModel:
    config = form.deploy_config
    given = written(config.dedicated_resources) if config.dedicated_resources is not None else {}
    body = {
        "model": model,
        "dedicatedResources": {**resources(machine), **given} if not given.get("machineSpec") else given,
        **({"systemLabels": config.system_labels} if config.system_labels else {}),
        **({"fasterDeploymentConfig": {"fastTryoutEnabled": True}} if config.fast_tryout_enabled else {}),
    }
    return read(DeployedModelBeta if ask.api == "v1beta1" else DeployedModel, body, "deploy_config")


def _custom(uri: str, given: Json | None) -> _Wanted:
    if "://" in uri and not uri.startswith("file://") and not _pins(given or {}):
        raise PreconditionFailed(
            f"this server reads no {uri.partition('://')[0]:.20}://",
            field="custom_model.gcs_uri",
            remedy="medport snapshot pull URI on the server, then give model_config.container_spec.env "
            f"{SNAPSHOT_ENV}",
        )
    spec = {} if given is None else {"containerSpec": given}
    name = uri.rstrip("/").rpartition("/")[2]
    return _Wanted(
        source="",
        display_name=f"{name:.100}-mg-one-click-deploy",
        version={"artifactUri": uri, **spec},
        machine={},
    )


def _pins(spec: Mapping[str, Any]) -> bool:
    """Whether a container says which bytes it serves."""
    named = {each["name"] for each in spec.get("env", ())}
    return bool(named & {SNAPSHOT_ENV, REVISION_ENV}) or any(
        each.startswith("--revision") for each in spec.get("args", ())
    )


def _pinned(model: PublisherModel, spec: Json, field: str) -> Json:
    """A container's spec that says which model it serves, and which bytes: the ones that a restart loads too.

    Raises:
        PreconditionFailed: the server has none of them, or several and the caller does not say which.
    """
    snapshots = model.snapshots
    if not snapshots:
        raise PreconditionFailed(
            f"this server has no snapshot of {model.model_id}",
            field=field,
            remedy=f"medport snapshot pull {model.model_id}@COMMIT on the server, then deploy it",
        )
    env = list(spec.get("env", ()))
    if "MODEL_ID" not in {each["name"] for each in env}:
        env.append({"name": "MODEL_ID", "value": model.model_id})
    if not _pins(spec):
        if len(snapshots) > 1:
            raise PreconditionFailed(
                f"this server has {len(snapshots)} snapshots of {model.model_id}",
                field=field,
                remedy=f"give model_config.container_spec.env {SNAPSHOT_ENV}, or name one with its commit",
            )
        env.append({"name": SNAPSHOT_ENV, "value": snapshots[0].snapshot_sha256})
    return {**spec, "env": env}
