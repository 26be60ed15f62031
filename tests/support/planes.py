"""A control plane in this process, over a real state on the disk and a host that starts no engines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.control_calls import Caller
from tests.support.no_engines import NoEngine, NoEngines

from medport_local.control import deployed
from medport_local.control.database import Database
from medport_local.control.deployed import Deployment
from medport_local.control.plane import Faults, Plane, PlaneSettings
from medport_local.control.project import Project

Json = dict[str, Any]
PROJECT = Project("rehearsal", "europe-west4")


@dataclass
class Standing:
    """A plane that was started, and what tests do with it."""

    plane: Plane[NoEngine]
    database: Database
    host: NoEngines
    call: Caller = field(init=False)

    def __post_init__(self) -> None:
        self.call = Caller(self.plane.rows(), PROJECT.parent)

    def endpoint(self, id_: str = "e", **fields: Any) -> str:
        """Make an endpoint; its name."""
        body = {"displayName": id_, "dedicatedEndpointEnabled": True, **fields}
        operation = self.call.done(self.call("POST", "endpoints", body, endpointId=id_))
        return str(operation["response"]["name"])

    def model(self, id_: str = "m", **fields: Any) -> str:
        """Upload a model, or a further version of it; the version's name."""
        container = {"imageUri": "registry.example/serve@sha256:" + "0" * 64, "predictRoute": "/predict"}
        model = {"displayName": id_, "containerSpec": {**container, **fields}}
        body: Json = {"model": model, "modelId": id_}
        with self.database.reading() as tx:
            if tx.one("SELECT 1 FROM resource WHERE name = ?", f"{PROJECT.parent}/models/{id_}"):
                body = {"model": model, "parentModel": f"{PROJECT.parent}/models/{id_}"}
        response = self.call.done(self.call("POST", "models:upload", body))["response"]
        return f"{response['model']}@{response['modelVersionId']}"

    def deploying(
        self, id_: str, *, endpoint: str = "e", model: str = "m", split: Json | None = None, **fields: Any
    ) -> Json:
        """Ask for a deployment; its operation."""
        deployed_model = {"id": id_, "model": f"{PROJECT.parent}/models/{model}", **fields}
        if "dedicatedResources" not in fields and "rolloutOptions" not in fields:
            deployed_model["dedicatedResources"] = {"minReplicaCount": 1}
        body: Json = {"deployedModel": deployed_model, **({"trafficSplit": split} if split is not None else {})}
        path = f"/v1beta1/{PROJECT.parent}/endpoints/{endpoint}:deployModel"
        return self.call("POST", path, body)

    def deployed(self, id_: str, **options: Any) -> Json:
        """Deploy a model; its operation, which is done without an error."""
        operation = self.call.done(self.deploying(id_, **options))
        assert "error" not in operation, operation
        return operation

    def undeploying(self, id_: str, *, endpoint: str = "e", split: Json | None = None) -> Json:
        """Ask for a model to go; its operation."""
        body = {"deployedModelId": id_, **({"trafficSplit": split} if split is not None else {})}
        return self.call("POST", f"endpoints/{endpoint}:undeployModel", body)

    def undeployed(self, id_: str, **options: Any) -> Json:
        """Undeploy a model; its operation, which is done without an error."""
        operation = self.call.done(self.undeploying(id_, **options))
        assert "error" not in operation, operation
        return operation

    def mutated(self, resources: Json, mask: str | None = None, **fields: Any) -> Json:
        """Change the deployed model 1; its operation, which is done."""
        body: Json = {"deployedModel": {"id": "1", "dedicatedResources": resources, **fields}}
        if mask is not None:
            body["updateMask"] = mask
        return self.call.done(
            self.call("POST", f"/v1beta1/{PROJECT.parent}/endpoints/e:mutateDeployedModel", body)
        )

    def share(self, split: Json, endpoint: str = "e") -> Json:
        """Change a traffic split."""
        return self.call("PATCH", f"endpoints/{endpoint}", {"trafficSplit": split}, updateMask="trafficSplit")

    def split(self, endpoint: str = "e") -> Json:
        """An endpoint's traffic split."""
        return dict(self.call("GET", f"endpoints/{endpoint}").get("trafficSplit", {}))

    def shown(self, endpoint: str = "e") -> dict[str, Json]:
        """An endpoint's deployed models, by id."""
        found = self.call("GET", f"endpoints/{endpoint}").get("deployedModels", [])
        return {each["id"]: each for each in found}

    def rows(self) -> list[Deployment]:
        """All deployments as they are kept."""
        with self.database.reading() as tx:
            return deployed.every(tx)

    def enter(self, endpoint: str = "e", id_: str | None = None) -> str:
        """Send one request that ends at once; the id of the deployed model that took it."""
        lease = self.plane.fleet.enter("-", "-", endpoint, id_)
        lease.release()
        return lease.deployed_model_id


@contextmanager
def standing(
    directory: Path, host: NoEngines | None = None, *, faults: Faults | None = None, **settings: Any
) -> Iterator[Standing]:
    """A plane over the state in a directory, started, and closed at the end."""
    database = Database(directory, {"project": PROJECT.id})
    plane: Plane[NoEngine] = Plane(
        PROJECT,
        database,
        host or (host := NoEngines()),
        advertised="localhost:8443",
        settings=PlaneSettings(**{"look_s": 0.02, **settings}),
        faults=faults,
    )
    try:
        plane.start()
        yield Standing(plane, database, host)
    finally:
        host.let_go()
        plane.close()
        database.close()
