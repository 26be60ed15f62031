"""medport: one typed interface to MedGemma and MedSigLIP, wherever they run.

>>> import medport
>>> client = medport.Client()
>>> client.chat("Describe this X-ray", images="cxr.dcm")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from medport import images
    from medport.client import AsyncClient, Client
    from medport.errors import (
        AlreadyExists,
        AuthError,
        ConfigError,
        Conflict,
        ConnectionFailed,
        DicomError,
        Forbidden,
        ImageError,
        InputError,
        MedportError,
        NotFound,
        NotReady,
        PolicyError,
        PreconditionFailed,
        ProtocolError,
        QuotaExceeded,
        RequestTooLarge,
        ServerError,
        Timeout,
        Unsupported,
        VerificationError,
    )
    from medport.results import (
        Chat,
        Classification,
        Classifications,
        Delta,
        Embeddings,
        Provenance,
        Score,
        Usage,
    )
    from medport.stream import AsyncChatStream, ChatStream
    from medport.tasks.chat import ChatOptions

__all__ = [
    "AlreadyExists",
    "AsyncChatStream",
    "AsyncClient",
    "AuthError",
    "Chat",
    "ChatOptions",
    "ChatStream",
    "Classification",
    "Classifications",
    "Client",
    "ConfigError",
    "Conflict",
    "ConnectionFailed",
    "Delta",
    "DicomError",
    "Embeddings",
    "Forbidden",
    "ImageError",
    "InputError",
    "MedportError",
    "NotFound",
    "NotReady",
    "PolicyError",
    "PreconditionFailed",
    "ProtocolError",
    "Provenance",
    "QuotaExceeded",
    "RequestTooLarge",
    "Score",
    "ServerError",
    "Timeout",
    "Unsupported",
    "Usage",
    "VerificationError",
    "images",
]

# Each at its first use, so that importing is free: errors need nothing, results load numpy, and what opens
# connections loads httpx and builds pydantic models.
_ELSEWHERE = {
    "AsyncChatStream": "medport.stream",
    "AsyncClient": "medport.client",
    "ChatOptions": "medport.tasks.chat",
    "ChatStream": "medport.stream",
    "Client": "medport.client",
}
_RESULTS = {"Chat", "Classification", "Classifications", "Delta", "Embeddings", "Provenance", "Score", "Usage"}
_MODULES = {"errors", "images", "results"}


def __getattr__(name: str) -> object:
    if name in _MODULES:
        return import_module(f"medport.{name}")
    if name not in __all__:
        raise AttributeError(f"module 'medport' has no attribute {name!r}")
    module = "medport.results" if name in _RESULTS else _ELSEWHERE.get(name, "medport.errors")
    value = globals()[name] = getattr(import_module(module), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
