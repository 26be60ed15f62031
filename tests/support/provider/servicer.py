"""The provider's calls: what terraform asks, in its order, over one schema."""

from __future__ import annotations

import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

from . import echo, labels, schema, validation, wire
from .api import Api, ApiError
from .endpoint import Endpoint
from .model_garden import ModelGardenDeployment
from .planning import Planning
from .resources import Refused, Resource
from .schema import Type
from .values import UNKNOWN, decode, encode

Json = dict[str, Any]
_FROM_ENVIRONMENT = {
    "project": ("GOOGLE_PROJECT", "GOOGLE_CLOUD_PROJECT", "GCLOUD_PROJECT", "CLOUDSDK_CORE_PROJECT"),
    "region": ("GOOGLE_REGION", "GCLOUD_REGION", "CLOUDSDK_COMPUTE_REGION"),
}
_OVER_REST: dict[str, Any] = {
    "google_vertex_ai_endpoint": Endpoint,
    "google_vertex_ai_endpoint_with_model_garden_deployment": ModelGardenDeployment,
}


class Servicer:
    """One provider. Attached, it serves every provider block of a configuration: the last that was configured
    counts, so two with an alias in one configuration are more than it can stand in for."""

    def __init__(self, schema_file: Path) -> None:
        types = schema.load(schema_file)
        self.own = types.pop("provider")
        self.data = {name[5:]: each for name, each in types.items() if name.startswith("data.")}
        self.types = {name: each for name, each in types.items() if not name.startswith("data.")}
        self.resources: dict[str, Resource] = {
            name: _OVER_REST.get(name, echo.Echo)(each) for name, each in self.types.items()
        }
        # Asked for by every command, and several times by a test run.
        self.schemas = self._schemas()
        self.configured: Json = {}
        self.api = Api({})

    def answer(self, call: str, request: Any) -> Any:
        """The response to a call by its name in the protocol; a fault of ours goes to stderr, too."""
        try:
            return getattr(self, f"on_{call}")(request)
        except Exception:
            traceback.print_exc(file=sys.stderr)
            raise

    def on_GetMetadata(self, request: Any) -> Any:
        return wire.message("GetMetadata.Response", server_capabilities=_capabilities())

    def on_GetProviderSchema(self, request: Any) -> Any:
        return self.schemas

    def on_ValidateProviderConfig(self, request: Any) -> Any:
        found = list(validation.provider_faults(decode(request.config)))
        return wire.message("ValidateProviderConfig.Response", diagnostics=found)

    def on_ValidateResourceConfig(self, request: Any) -> Any:
        found = list(validation.faults(self.types[request.type_name].block, decode(request.config)))
        return wire.message("ValidateResourceConfig.Response", diagnostics=found)

    def on_ValidateDataResourceConfig(self, request: Any) -> Any:
        found = list(validation.faults(self.data[request.type_name].block, decode(request.config)))
        return wire.message("ValidateDataResourceConfig.Response", diagnostics=found)

    def on_UpgradeResourceState(self, request: Any) -> Any:
        state = schema.shaped(self.types[request.type_name], json.loads(request.raw_state.json))
        return wire.message("UpgradeResourceState.Response", upgraded_state=encode(state))

    def on_ConfigureProvider(self, request: Any) -> Any:
        given = {name: value for name, value in decode(request.config).items() if value not in (None, UNKNOWN)}
        for name, variables in _FROM_ENVIRONMENT.items():
            values = [os.environ[each] for each in variables if os.environ.get(each)]
            if name not in given and values:
                given[name] = values[0]
        self.configured, self.api = given, Api(given)
        return wire.message("ConfigureProvider.Response")

    def on_PlanResourceChange(self, request: Any) -> Any:
        of = self.types[request.type_name]
        proposed = self._value(of, request.proposed_new_state)
        if proposed is None:
            return wire.message("PlanResourceChange.Response", planned_state=encode(None))
        prior, config = self._value(of, request.prior_state), self._value(of, request.config)
        planning = Planning()
        planned = planning.plan(of.block, config, prior, proposed)
        planned |= self._from_provider(of, config, planned)
        planned |= labels.planned(of.block, planned, prior, self.configured)
        if of.timeouts:
            planned["timeouts"] = proposed.get("timeouts")
        return wire.message(
            "PlanResourceChange.Response",
            planned_state=encode(planned),
            requires_replace=[wire.path_of(path) for path in planning.replaced],
            # Terraform then forgives what providers of this kind always did, such as "" for what is not set.
            legacy_type_system=True,
        )

    def on_ReadResource(self, request: Any) -> Any:
        of = self.types[request.type_name]
        state = self._value(of, request.current_state)
        try:
            found = self.resources[of.name].read(self.api, state)
        except (ApiError, Refused) as fault:
            said = wire.error(f"Error reading {of.name}: {fault}")
            return wire.message("ReadResource.Response", new_state=encode(state), diagnostics=[said])
        return wire.message("ReadResource.Response", new_state=encode(_with_timeouts(of, found)))

    def on_ApplyResourceChange(self, request: Any) -> Any:
        of = self.types[request.type_name]
        prior, planned = self._value(of, request.prior_state), self._value(of, request.planned_state)
        said = []
        try:
            found = self._applied(of, prior, planned)
        except (ApiError, Refused) as fault:
            verb = "creating" if prior is None else "deleting" if planned is None else "updating"
            found, said = prior, [wire.error(f"Error {verb} {of.name}: {fault}")]
        return wire.message(
            "ApplyResourceChange.Response",
            new_state=encode(_with_timeouts(of, found)),
            diagnostics=said,
            legacy_type_system=True,
        )

    def on_ImportResourceState(self, request: Any) -> Any:
        of = self.types[request.type_name]
        try:
            if not of.importable:
                raise Refused(f"resource {of.name} doesn't support import")
            state = self.resources[of.name].imported(of, request.id, self.configured)
        except Refused as fault:
            return wire.message("ImportResourceState.Response", diagnostics=[wire.error(str(fault))])
        found = wire.message("Imported", type_name=of.name, state=encode(state))
        return wire.message("ImportResourceState.Response", imported_resources=[found])

    def on_ReadDataSource(self, request: Any) -> Any:
        found = echo.data_source(request.type_name, decode(request.config), self.configured)
        return wire.message("ReadDataSource.Response", state=encode(found))

    def on_GetFunctions(self, request: Any) -> Any:
        return wire.message("GetFunctions.Response")

    def on_StopProvider(self, request: Any) -> Any:
        self.api.stopped.set()
        return wire.message("StopProvider.Response")

    def _schemas(self) -> Any:
        response = wire.message(
            "GetProviderSchema.Response", provider=schema.to_wire(self.own), server_capabilities=_capabilities()
        )
        for name, each in self.types.items():
            response.resource_schemas[name].CopyFrom(schema.to_wire(each))
        for name, each in self.data.items():
            response.data_source_schemas[name].CopyFrom(schema.to_wire(each))
        return response

    def _applied(self, of: Type, prior: Json | None, planned: Json | None) -> Json | None:
        resource = self.resources[of.name]
        if planned is None:
            assert prior is not None
            policy = prior.get("deletion_policy")
            if policy == "PREVENT":
                raise Refused('deletion_policy is "PREVENT": set it to "DELETE" and apply, then destroy')
            if policy != "ABANDON":
                resource.delete(self.api, prior)
            return None
        if prior is None:
            return resource.create(self.api, planned)
        return resource.update(self.api, prior, planned)

    def _from_provider(self, of: Type, config: Json, planned: Json) -> Json:
        """What a resource takes from the provider's configuration if its own says nothing."""
        found = {}
        fallback = {**self.configured, "deletion_policy": self.configured.get("deletion_policy", "DELETE")}
        for name in ("project", "region", "deletion_policy"):
            attribute = of.block.attributes.get(name)
            unset = config.get(name) is None and (planned.get(name) is None or planned.get(name) is UNKNOWN)
            if attribute is not None and attribute.computed and unset and fallback.get(name):
                found[name] = fallback[name]
        return found

    def _value(self, of: Type, value: Any) -> Any:
        return schema.with_numbers(of.block, decode(value))


def _capabilities() -> Any:
    return wire.message("ServerCapabilities", get_provider_schema_optional=True)


def _with_timeouts(of: Type, value: Json | None) -> Json | None:
    if value is None:
        return None
    rest = {name: each for name, each in value.items() if name != "timeouts"}
    return {**rest, "timeouts": value.get("timeouts")} if of.timeouts else rest
