"""What outlives the server of its batch jobs: each as JSON that says everything, by its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

Json = dict[str, Any]
_DELETED = "DeleteOperationMetadata"


class JobStore(Protocol):
    """Keeps jobs. Writes are on the disk when they return, in the order in which they were begun."""

    @property
    def durable(self) -> bool:
        """Whether jobs go on after a restart; else they end with the server."""
        ...

    def kept(self) -> Sequence[tuple[str, Json]]:
        """Names and contents, in the order in which they were made. Blocking."""
        ...

    async def insert(self, name: str, job: Json, *, instead_of: str | None = None) -> None:
        """Keep a new one; in the same step drop the one whose place it takes.

        Raises:
            NotReady, ServerError: it could not be written. Nothing was changed.
        """
        ...

    async def update(self, name: str, job: Json) -> None:
        """Replace one; does nothing if it was dropped. Raises as ``insert``."""
        ...

    async def delete(self, name: str, *, api: str, caller: str) -> Json:
        """Drop one, and give the operation that a client gets. Raises as ``insert``.

        Args:
            api: ``v1`` or ``v1beta1``, by which the operation names its types.
            caller: the name of the key.
        """
        ...

    async def close(self) -> None:
        """Wait until all is written."""
        ...


class Forgetful:
    """Keeps nothing: jobs live in the server's memory alone."""

    durable = False

    def kept(self) -> Sequence[tuple[str, Json]]:
        return ()

    async def insert(self, name: str, job: Mapping[str, Any], *, instead_of: str | None = None) -> None:
        pass

    async def update(self, name: str, job: Mapping[str, Any]) -> None:
        pass

    async def delete(self, name: str, *, api: str, caller: str) -> Json:
        """An operation that is done, as Vertex answers every deletion."""
        return {
            "name": f"{name}/operations/{name.rpartition('/')[2]}",
            "metadata": {
                "@type": f"type.googleapis.com/google.cloud.aiplatform.{api}.{_DELETED}",
                "genericMetadata": {},
            },
            "done": True,
            "response": {"@type": "type.googleapis.com/google.protobuf.Empty"},
        }

    async def close(self) -> None:
        pass
