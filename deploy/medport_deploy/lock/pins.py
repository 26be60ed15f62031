"""What a lock says about deploying, beside the models and images: its key ``deploy``."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, ValidationError

from medport.errors import ConfigError
from medport.lock import Lock, Sha256
from medport_deploy.lock.terms import Accepted
from medport_deploy.lock.terraform import TerraformPins


class DeployPins(BaseModel):
    """The key ``deploy`` of a lock."""

    model_config = ConfigDict(extra="allow", frozen=True)

    spec_sha256: Sha256
    """``Spec.content_sha256`` of what was resolved."""
    sdk: dict[str, str]
    """Versions by distribution."""
    terms: dict[str, Accepted] = {}
    """By their id."""
    terraform: TerraformPins | None = None
    """``None`` without a terraform root."""


def deploy_pins(lock: Lock) -> DeployPins:
    """The key ``deploy`` of a lock.

    Raises:
        ConfigError: it has none, or one of another form.
    """
    said = (lock.model_extra or {}).get("deploy")
    remedy = "make it again: medport deploy lock"
    if said is None:
        raise ConfigError("was not made for deploying", field="lock", remedy=remedy)
    try:
        return DeployPins.model_validate(said)
    except ValidationError as fault:
        steps = fault.errors(include_url=False, include_input=False)[0]["loc"]
        place = ".".join(map(str, ("deploy", *steps)))
        raise ConfigError(f"holds something else under {place}", field="lock", remedy=remedy) from None


def accepted_before(lock: Lock | None) -> Mapping[str, Accepted]:
    """Who accepted which terms by a lock; nobody, where it was not made for deploying.

    Raises:
        ConfigError: its key ``deploy`` is of another form.
    """
    if lock is None or "deploy" not in (lock.model_extra or {}):
        return {}
    return deploy_pins(lock).terms
