"""A call of the control plane, and the table that says which function answers it. No web framework."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]
Api = Literal["v1", "v1beta1"]


def _everything(endpoint: str) -> bool:
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One call, with its body parsed and nothing of it checked."""

    api: Api
    """The version in the path; answers name their types by it."""
    path: Mapping[str, str] = field(default_factory=dict)
    """The path's parameters. ``project`` and ``location`` were checked: they are this server's, or ``-``."""
    query: Mapping[str, str] = field(default_factory=dict)
    """Without ``$alt`` and the others that every call of Google's clients may carry."""
    body: Json = field(default_factory=dict)
    caller: str = ""
    """The name of the key or service account; ``""`` where the server has none."""
    may: Callable[[str], bool] = _everything
    """Whether the caller may know of an endpoint, by its id."""


Handler = Callable[[Ask], Awaitable[Json]]
"""Answers the JSON body; raises ``MedportError``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of the control plane's table."""

    method: Literal["GET", "POST", "PATCH", "DELETE"]
    path: str
    """Like ``/{api}/projects/{project}/locations/{location}/endpoints/{endpoint}:deployModel``; ``{api}`` stands
    for ``v1`` and ``v1beta1``, and one of them is written out where there is only that."""
    handler: Handler
    verb: str
    """Google's name of the permission, such as ``aiplatform.endpoints.deploy``; ``""`` where a call needs none but
    a key that is known."""
    operation: str
    """Which operation of the OpenAPI document this is."""
