"""medport: one typed interface to MedGemma and MedSigLIP, wherever they run.

>>> import medport
>>> client = medport.Client()
>>> client.chat("Describe this X-ray", images="cxr.dcm")  # doctest: +SKIP
"""

from medport.client import AsyncClient, Client
from medport.errors import (
    AuthError,
    ConfigError,
    ConnectionFailed,
    DicomError,
    ImageError,
    InputError,
    MedportError,
    NotFound,
    NotReady,
    PolicyError,
    ProtocolError,
    QuotaExceeded,
    RequestTooLarge,
    ServerError,
    Timeout,
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
    "ConnectionFailed",
    "Delta",
    "DicomError",
    "Embeddings",
    "ImageError",
    "InputError",
    "MedportError",
    "NotFound",
    "NotReady",
    "PolicyError",
    "ProtocolError",
    "Provenance",
    "QuotaExceeded",
    "RequestTooLarge",
    "Score",
    "ServerError",
    "Timeout",
    "Usage",
    "VerificationError",
]
