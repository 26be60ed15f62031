"""medport: one typed interface to MedGemma and MedSigLIP, wherever they run.

>>> import medport
>>> client = medport.Client()
>>> client.chat("Describe this X-ray", images="cxr.dcm")  # doctest: +SKIP
"""

from importlib import import_module
from typing import TYPE_CHECKING

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

if TYPE_CHECKING:
    from medport import images
    from medport.client import AsyncClient, Client
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

# What opens connections loads httpx and builds pydantic models: at its first use, so that importing is free.
_AT_FIRST_USE = {
    "AsyncChatStream": "medport.stream",
    "AsyncClient": "medport.client",
    "ChatOptions": "medport.tasks.chat",
    "ChatStream": "medport.stream",
    "Client": "medport.client",
}


def __getattr__(name: str) -> object:
    if name == "images":
        return import_module("medport.images")
    if name not in _AT_FIRST_USE:
        raise AttributeError(f"module 'medport' has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_AT_FIRST_USE[name]), name)
    return value


def __dir__() -> list[str]:
    return list(__all__)
