"""Which terraform and which provider a root was locked with.

Source: Terraform, "Dependency Lock File": ``.terraform.lock.hcl``, a ``provider`` block with ``version``.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from medport.errors import ConfigError
from medport.lock import Sha256
from medport_deploy.spec.reading import Spec
from medport_deploy.terraform import binary as terraform_binary

LOCK_FILE = ".terraform.lock.hcl"
_PROVIDER = re.compile(r'provider\s+"[^"\n]*/hashicorp/google"\s*\{(.*?)\n\}', re.DOTALL)
_VERSION = re.compile(r'^\s*version\s*=\s*"([0-9A-Za-z.+-]{1,64})"', re.MULTILINE)
_MAX_BYTES = 2**20


class TerraformPins(BaseModel):
    """What makes the infrastructure."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: str
    """Of terraform, such as ``1.11.4``."""
    provider: str | None = None
    """Version of the google provider; ``None`` where the root has no lock file."""
    provider_lock_sha256: Sha256 | None = None
    """Of the root's lock file."""


def terraform_pins(spec: Spec, directory: Path) -> TerraformPins | None:
    """What the root of a specification is applied with; ``None`` if it has no root.

    Args:
        directory: where the specification lies.

    Raises:
        ConfigError: there is no such root, no terraform, or one that is too old.
    """
    if spec.terraform.root is None:
        return None
    root = directory / spec.terraform.root
    if not root.is_dir():
        raise ConfigError(
            f"there is no directory {spec.terraform.root}",
            field="terraform.root",
            remedy="name the root's directory",
        )
    version = ".".join(map(str, terraform_binary.version(terraform_binary.find())))
    data = provider_lock(root)
    if data is None:
        return TerraformPins(version=version)
    block = _PROVIDER.search(data.decode("utf-8", "replace"))
    found = _VERSION.search(block[1]) if block else None
    return TerraformPins(
        version=version,
        provider=found[1] if found else None,
        provider_lock_sha256=hashlib.sha256(data).hexdigest(),
    )


def provider_lock(root: Path) -> bytes | None:
    """The bytes of a root's provider lock file; ``None`` if it has none.

    Raises:
        ConfigError: it cannot be read, or is larger than 1 MiB.
    """
    try:
        with (root / LOCK_FILE).open("rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as fault:
        raise ConfigError(
            f"{LOCK_FILE} cannot be read ({type(fault).__name__})", field="terraform.root"
        ) from fault
    if len(data) > _MAX_BYTES:
        raise ConfigError(f"{LOCK_FILE} is larger than {_MAX_BYTES // 2**20} MiB", field="terraform.root")
    return data
