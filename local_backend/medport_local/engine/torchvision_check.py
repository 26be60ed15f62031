"""Tell a torchvision that does not fit from a fault of transformers.

transformers imports torchvision wherever it is installed. One that was built for another torch fails there
("operator torchvision::nms does not exist"), and transformers reports that its own model class cannot be imported.
Nothing here needs torchvision.
"""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec

from medport.errors import ConfigError

IMPORT_FAULTS = (ImportError, RuntimeError, OSError, AttributeError)
"""What a compiled package that does not fit has raised when it was imported."""


def check_torchvision() -> None:
    """Raise what is wrong if torchvision is installed and cannot be imported.

    Raises:
        ConfigError: with the way out as its remedy.
    """
    if find_spec("torchvision") is None:
        return
    try:
        import_module("torchvision")
    except IMPORT_FAULTS as fault:
        raise ConfigError(
            f"the installed torchvision does not fit the installed torch ({type(fault).__name__})",
            field="torchvision",
            remedy="pip uninstall torchvision; medport does not need it. Or install the one built for this torch",
        ) from fault
