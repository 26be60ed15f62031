"""The text of a new ``medport.yaml``: every key of the form, each with a line that explains it.

Keys with a value stand as they are. The others are commented out with their default, or with an example where they
have none: ``# `` begins an explanation, ``#`` alone an option. Made from the form itself: none is left out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from medport_deploy.lock.terms import Terms
from medport_deploy.spec import machines as spec_machines
from medport_deploy.spec.form import (
    Auth,
    Container,
    Endpoint,
    Gates,
    Keys,
    Machine,
    Model,
    Network,
    Policy,
    Replicas,
    Rollout,
    Spec,
    Target,
    TerraformRoot,
)

_INDENT = "  "
_SAFE = re.compile(r"[A-Za-z/][\w./:@-]*[\w/]|[A-Za-z]")
_WORDS = frozenset({"true", "false", "null", "y", "n", "yes", "no", "on", "off"})
_PARTS: Mapping[str, type[BaseModel]] = {
    "target": Target, "target.auth": Auth, "models.*": Model, "models.*.endpoint": Endpoint,
    "models.*.machine": Machine, "models.*.replicas": Replicas, "models.*.container": Container,
    "network": Network, "keys": Keys, "rollout": Rollout, "rollout.gates": Gates, "policy": Policy,
    "terraform": TerraformRoot,
}  # fmt: skip
_HEAD = """\
# What medport deploys, and where. Next: medport deploy lock, then plan, then apply.
# "# " begins an explanation. "#" alone comments out an option, with its default or an example: take the # away to
# set it, and that of the mapping around it. No secret belongs here: only the names of where they are.
"""
EXPLAINED: Mapping[str, str] = {
    "version": "Of this file's form.",
    "name": "Of the deployment; names in the cloud are made of it.",
    "target": "Where to deploy to.",
    "target.kind": "vertex: Google Cloud. local: a server that runs with medport serve --control-plane.",
    "target.project": "The project's id or number; of a local server, the one that it prints.",
    "target.location": "Where the endpoints are.",
    "target.url": "Base URL of the control plane, without /v1. Default for vertex: Google's of the location.",
    "target.ca_file": "PEM file of who signed the control plane's certificate. Default: the public authorities.",
    "target.auth": "Where the credential is, never the credential itself. Default: Google's default credential.",
    "target.auth.api_key_env": "The environment variable that holds the local server's API key.",
    "target.auth.credentials_file": "A service account's key file. Default: Google's default credential.",
    "models": "One endpoint for each, by a name of your own.",
    "models.*.model": "OWNER/NAME on the hub.",
    "models.*.revision": "A commit, or a branch or tag that the lock turns into one.",
    "models.*.image": "The serving container. The lock turns a tag into a digest. A local target runs none.",
    "models.*.endpoint": "The endpoint that serves it.",
    "models.*.endpoint.id": "Default: made of both names. In digits if Terraform makes the endpoint.",
    "models.*.endpoint.display_name": "For people. Default: both names.",
    "models.*.endpoint.dedicated": "A DNS name of its own: 10 MB a request. Must be false for a private network.",
    "models.*.endpoint.inference_timeout_s": "Seconds that one request may take, 3600 at most.",
    "models.*.machine": f"What one replica runs on; pairs are checked against a table of {spec_machines.AS_OF}.",
    "models.*.machine.type": "A machine type of Compute Engine.",
    "models.*.machine.accelerator": "As AcceleratorType spells it. Default: none.",
    "models.*.machine.count": "Of the accelerators in one machine.",
    "models.*.replicas": "How many machines.",
    "models.*.replicas.min": "As many always run, and are paid for.",
    "models.*.replicas.max": "As many at most, with load. Default: min.",
    "models.*.replicas.required": "As many must run for a deployment to succeed. Default: min.",
    "models.*.container": "How Vertex AI speaks to the container.",
    "models.*.container.port": "Where it listens.",
    "models.*.container.predict_route": "Of predictions.",
    "models.*.container.health_route": "Of health checks.",
    "models.*.container.shared_memory_mb": "Size of /dev/shm in MB. Default: the container runtime's.",
    "models.*.container.deployment_timeout_s": "Seconds until it must be healthy, 7200 at most.",
    "models.*.args": "Further arguments of the container.",
    "models.*.env": "Further environment variables; never a secret.",
    "models.*.service_account": "Whom the container runs as. Default: Vertex AI's own.",
    "network": "Who reaches the endpoints.",
    "network.private": "By Private Service Connect alone.",
    "network.allowed_projects": "Projects that may connect, if private.",
    "keys": "What the resources are encrypted with at rest.",
    "keys.kms_key_name": "A key in the target's location. Default: Google's own.",
    "rollout": "How a new version takes over.",
    "rollout.strategy": "canary: in steps, beside the old one. rolling: machine by machine. recreate: with a gap.",
    "rollout.steps": "Of a canary, per cent of the traffic.",
    "rollout.bake_s": "Seconds that each step is watched.",
    "rollout.gates": "What a step must not exceed; if it does, the old split comes back.",
    "rollout.gates.error_ratio": "Share of requests that fail.",
    "rollout.gates.p95_ms": "95th percentile of the latency in milliseconds. Default: not judged.",
    "rollout.gates.golden_drift": "Share of the golden answers that may differ. Default: not judged.",
    "rollout.retain_s": "Seconds that the old fleet is kept for a quick way back; it is paid for.",
    "policy": "What the site allows, whatever the rest of this file says.",
    "policy.allowed_locations": "Default: all.",
    "policy.allowed_registries": "HOST or HOST/PATH that images must be under. Default: all.",
    "policy.allow_plain_images": "Ask registries on other machines over plain http.",
    "policy.allow_unlisted_machines": "Take machine types that the table does not hold.",
    "accept_terms": "Ids of terms. Whoever writes one here has read them; nobody else can.",
    "labels": "On all resources.",
    "terraform": "What makes what stands below the models.",
    "terraform.root": "Directory of a Terraform root, from here. Default: none, medport makes the endpoints.",
}
"""By the path of each key; ``*`` is a name. Defaults are told by the form; here only those that it leaves open."""
_ONLY: Mapping[str, str] = {
    "target.auth.api_key_env": "local",
    "target.auth.credentials_file": "vertex",
}
"""Keys that one kind of target takes."""


def render(values: Mapping[str, Any], terms: Sequence[Terms] = ()) -> str:
    """The text of a file.

    Args:
        values: the keys that are set, as the file holds them.
        terms: that somebody must read and accept.

    Raises:
        KeyError: the form has a key that is not explained here.
    """
    return _HEAD + "\n".join(_form(Spec, values, "", 0, True, _Context(values, terms))) + "\n"


class _Context:
    """What examples and remarks are made of."""

    def __init__(self, values: Mapping[str, Any], terms: Sequence[Terms]) -> None:
        self.target: Mapping[str, Any] = values["target"]
        self.terms = terms
        image = next(iter(values["models"].values()))["image"]
        project, location = str(self.target["project"]), str(self.target["location"])
        key = f"projects/{project}/locations/{location}/keyRings/medport/cryptoKeys/serving"
        self.examples: Mapping[str, Any] = {
            "target.url": f"https://{location}-aiplatform.googleapis.com",
            "target.ca_file": "ca.pem",
            "target.auth.credentials_file": "service-account.json",
            "target.auth.api_key_env": "MEDPORT_API_KEY",
            "models.*.endpoint.id": 1234567890,
            "models.*.endpoint.display_name": "Reader of X-rays",
            "models.*.machine.accelerator": "NVIDIA_TESLA_T4",
            "models.*.machine.count": 1,
            "models.*.replicas.required": 1,
            "models.*.container.shared_memory_mb": 4096,
            "models.*.service_account": f"medport-serving@{project.rpartition(':')[2]}.iam.gserviceaccount.com",
            "keys.kms_key_name": key,
            "rollout.gates.p95_ms": 20000,
            "rollout.gates.golden_drift": 0.1,
            "policy.allowed_locations": [location],
            "policy.allowed_registries": [image.partition("/")[0]],
            "terraform.root": "terraform/roots/cloud",
        }


def _form(
    form: type[BaseModel], values: Mapping[str, Any], path: str, depth: int, live: bool, context: _Context
) -> Iterator[str]:
    for name, field in form.model_fields.items():
        at = f"{path}.{name}" if path else name
        if not depth:
            yield ""
        if at == "models":
            yield from _models(values[name], context)
        elif (only := _ONLY.get(at)) and only != context.target["kind"]:
            yield f"{_INDENT * depth}# {name} is for kind {only} alone. {EXPLAINED[at]}"
        elif part := _PARTS.get(at):
            inner = values.get(name)
            yield from _explained(at, depth, context)
            yield _line(f"{name}:", depth, inner is not None)
            yield from _form(part, inner or {}, at, depth + 1, inner is not None, context)
        else:
            set_ = live and name in values
            default = None if field.is_required() else field.get_default(call_default_factory=True)
            value = values[name] if set_ else context.examples.get(at, default)
            yield from _explained(at, depth, context, default)
            yield _line(f"{name}: {_written(value)}", depth, set_)


def _models(models: Mapping[str, Any], context: _Context) -> Iterator[str]:
    yield from _explained("models", 0, context)
    yield "models:"
    for number, (name, values) in enumerate(models.items()):
        yield f"{_INDENT}{name}:"
        if number:
            yield f"{_INDENT * 2}# The keys are explained above."
            yield from _plain(values, 2)
        else:
            yield from _form(Model, values, "models.*", 2, True, context)


def _plain(values: Mapping[str, Any], depth: int) -> Iterator[str]:
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield f"{_INDENT * depth}{name}:"
            yield from _plain(value, depth + 1)
        else:
            yield f"{_INDENT * depth}{name}: {_written(value)}"


def _explained(at: str, depth: int, context: _Context, default: Any = None) -> Iterator[str]:
    told = default is None or "Default:" in EXPLAINED[at]
    yield f"{_INDENT * depth}# {EXPLAINED[at]}" + ("" if told else f" Default: {_written(default)}.")
    if at == "accept_terms":
        for each in context.terms:
            yield f"{_INDENT * depth}# To read before you write {each.id}: {each.name}, {each.url}"


def _line(text: str, depth: int, live: bool) -> str:
    return f"{_INDENT * depth}{'' if live else '#'}{text}"


def _written(value: Any) -> str:
    """A value in YAML: a plain scalar where that is safe, else JSON, which is YAML too."""
    if isinstance(value, str) and _SAFE.fullmatch(value) and value.lower() not in _WORDS:
        return value
    return json.dumps(value, ensure_ascii=False)
