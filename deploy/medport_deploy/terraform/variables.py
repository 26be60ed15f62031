"""The variables of the roots under ``terraform/``, from a specification."""

from __future__ import annotations

from typing import Any

from medport.errors import ConfigError
from medport_deploy.spec.reading import Spec


def root_variables(spec: Spec) -> dict[str, Any]:
    """What ``roots/cloud`` or ``roots/local`` is given, by the target's kind.

    The address and the credential of a local control plane are not among them: they go by the environment, so that
    no plan file holds them. A site's own choices for the cloud root (secrets, alerts, audit log, budget) come from
    its ``*.auto.tfvars``.

    Raises:
        ConfigError: the specification asks for what the root decides itself or cannot make.

    Source: ``terraform/roots/*/variables.tf``.
    """
    local = spec.target.kind == "local"
    _check(spec, local=local)
    variables: dict[str, Any] = {
        "project_id": spec.target.project,
        "location": spec.target.location,
        "labels": dict(spec.labels),
        "endpoints": {name: _endpoint(spec, name, local=local) for name in spec.models},
    }
    if not local and spec.policy.allowed_locations:
        variables["allowed_locations"] = sorted(spec.policy.allowed_locations)
    return variables


def _check(spec: Spec, *, local: bool) -> None:
    if spec.keys.kms_key_name:
        whose = "a local target has none of Google's keys" if local else "the root makes the key of its endpoints"
        raise ConfigError(
            f"goes together with terraform.root in no way: {whose}",
            field="keys.kms_key_name",
            remedy="leave it out; it is for endpoints that medport makes itself",
        )
    if local and spec.network.private:
        raise ConfigError(
            "is for kind vertex: the local root makes no Private Service Connect",
            field="network.private",
            remedy="leave it out, or leave terraform.root out",
        )


def _endpoint(spec: Spec, name: str, *, local: bool) -> dict[str, Any]:
    shell: dict[str, Any] = {"id": spec.endpoint_id(name), "display_name": spec.display_name(name)}
    mode = "dedicated" if spec.models[name].endpoint.dedicated else "shared"
    if local:
        return {**shell, "mode": mode}
    if not spec.network.private:
        return {**shell, "access": {"mode": mode}}
    allowed = sorted(spec.network.allowed_projects) or [spec.target.project]
    return {**shell, "access": {"mode": "private", "allowed_projects": allowed}}
