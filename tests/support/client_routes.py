"""What the installed google-cloud-aiplatform can ask for over REST, read from its generated transports."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Collection, Iterable, Mapping
from typing import Any, NamedTuple

SERVICES = (
    "model_service",
    "endpoint_service",
    "prediction_service",
    "model_garden_service",
    "job_service",
    "deployment_resource_pool_service",
    "llm_utility_service",
)
"""Those that have to do with models and with what serves them. Each brings operations, locations and IAM along."""
_ONE = "*"


class Call(NamedTuple):
    """A method and a path, every parameter of which is written as a star."""

    method: str
    path: str


def of_the_client() -> Mapping[Call, str]:
    """Each call of v1 and v1beta1 → the name of the client's method."""
    found: dict[Call, str] = {}
    for version in ("v1", "v1beta1"):
        for service in SERVICES:
            module = importlib.import_module(
                f"google.cloud.aiplatform_{version}.services.{service}.transports.rest_base"
            )
            for _, transport in inspect.getmembers(module, inspect.isclass):
                for name, method in inspect.getmembers(transport, inspect.isclass):
                    for option in getattr(method, "_get_http_options", list)():
                        call = Call(option["method"].upper(), _starred_template(option["uri"]))
                        found[call] = name.removeprefix("_Base")
    assert len(found) > 500, "the client's transports are no longer what this reads"
    return found


def fields_of(name: str, version: str) -> Collection[str]:
    """The fields, by their proto names, of a message that is called so."""
    types = importlib.import_module(f"google.cloud.aiplatform_{version}.types")
    return set(getattr(types, name).meta.fields)


def names_of(name: str, version: str) -> Mapping[int, str]:
    """The numbers and names of an enum that is called so; ``Message.Enum`` for one inside a message."""
    found: Any = importlib.import_module(f"google.cloud.aiplatform_{version}.types")
    for part in name.split("."):
        found = getattr(found, part)
    return {each.value: each.name for each in found}


def query_keys(version: str) -> Mapping[Call, Collection[str]]:
    """Each call → what the client may write into its query: fields that no path and no body takes."""
    found: dict[Call, set[str]] = {}
    for service in SERVICES:
        at = f"google.cloud.aiplatform_{version}.services.{service}"
        client = importlib.import_module(f"{at}.client")
        said = inspect.getsource(client)
        base = importlib.import_module(f"{at}.transports.rest_base")
        for _, transport in inspect.getmembers(base, inspect.isclass):
            for name, method in inspect.getmembers(transport, inspect.isclass):
                hit = re.search(rf"\b(\w+)\.({name.removeprefix('_Base')}Request)\b", said)
                message = getattr(getattr(client, hit[1]), hit[2]) if hit else None
                # What services have in common, operations and the like, are messages without such an account.
                for option in getattr(method, "_get_http_options", list)() if hasattr(message, "meta") else ():
                    if option.get("body") != "*":
                        taken = {each.partition(".")[0] for each in re.findall(r"\{([^={}]*)=", option["uri"])}
                        call = Call(option["method"].upper(), _starred_template(option["uri"]))
                        found[call] = set(message.meta.fields) - taken - {option.get("body")}
    return found


def of_a_table(rows: Iterable[tuple[str, str]]) -> set[Call]:
    """Rows of our tables: methods, and paths such as ``/{api}/projects/{project}/…``."""
    return {
        Call(method, re.sub(r"\{[^}]*\}", _ONE, path.replace("{api}", version)))
        for method, path in rows
        for version in (("v1", "v1beta1") if "{api}" in path else ("",))
    }


def _starred_template(uri: str) -> str:
    """``/v1/{name=projects/*/locations/*}:deploy`` → ``/v1/projects/*/locations/*:deploy``."""
    return re.sub(r"\{(?:[^={}]*=)?([^{}]*)\}", lambda found: found[1] if _ONE in found[1] else _ONE, uri)
