"""Rules between the parts of a specification, and its policy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from medport.errors import PolicyError
from medport_deploy.spec import machines as spec_machines
from medport_deploy.spec.form import Model, Spec
from medport_deploy.spec.values import image_parts, is_numeric


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that is wrong, and where."""

    path: tuple[str | int, ...]
    said: str


def faults(spec: Spec) -> list[Fault]:
    """All that is wrong between the parts; empty if nothing is."""
    found = [fault for name, model in spec.models.items() for fault in _of_model(spec, name, model)]
    found += _of_endpoints(spec)
    key = spec.keys.kms_key_name
    if key and spec.target.kind == "vertex" and (place := key.split("/")[3]) != spec.target.location:
        said = (
            f"lies in {place}, and the endpoints in {spec.target.location}: Vertex takes a key of its own location"
        )
        found.append(Fault(("keys", "kms_key_name"), said))
    return found


def check_policy(spec: Spec) -> None:
    """Hold a specification against its own policy.

    Raises:
        PolicyError: the location or a registry is not allowed.
    """
    policy, target = spec.policy, spec.target
    if policy.allowed_locations is not None and target.location not in policy.allowed_locations:
        raise PolicyError(
            f"the location {target.location} is not allowed",
            field="policy.allowed_locations",
            remedy=f"take one of {', '.join(policy.allowed_locations) or 'none'}",
        )
    if policy.allowed_registries is None:
        return
    for name, model in spec.models.items():
        host, path, _, _ = image_parts(model.image)
        repository = f"{host}/{path}/"
        if not any(repository.startswith(f"{each.rstrip('/')}/") for each in policy.allowed_registries):
            raise PolicyError(
                f"models.{name}.image is of {host}/{path}, which is not allowed",
                field="policy.allowed_registries",
                remedy=f"mirror it to {' or '.join(policy.allowed_registries) or 'an allowed registry'}",
            )


def _of_model(spec: Spec, name: str, model: Model) -> Iterator[Fault]:
    at = ("models", name)
    machine = model.machine
    if spec_machines.is_listed(machine.type) or not spec.policy.allow_unlisted_machines:
        said = spec_machines.fault_of(machine.type, machine.accelerator, machine.count)
        if said:
            yield Fault((*at, "machine"), f"does not fit: {said}")
    if spec.network.private and model.endpoint.dedicated:
        said = "must be false: a private network and a dedicated DNS name exclude each other"
        yield Fault((*at, "endpoint", "dedicated"), said)
    if spec.terraform.root is not None and not is_numeric(spec.endpoint_id(name)):
        said = "must be given, in digits: Terraform's provider takes no other ids"
        yield Fault((*at, "endpoint", "id"), said)


def _of_endpoints(spec: Spec) -> Iterator[Fault]:
    seen: dict[str, str] = {}
    for name in spec.models:
        other = seen.setdefault(spec.endpoint_id(name), name)
        if other != name:
            said = f"is the endpoint {spec.endpoint_id(name)} of {other} too"
            yield Fault(("models", name, "endpoint", "id"), said)
