"""The lists of endpoints and of models: what callers may ask them for, which is nearly the same.

Source: Vertex AI REST reference, projects.locations.endpoints.list and projects.locations.models.list.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from medport_local.control.filters import Field, Labels, Text, Time
from medport_local.control.paging import Listing
from medport_local.control.project import Project

TIMES: Mapping[str, Field] = {"create_time": Time(sql="created"), "update_time": Time(sql="updated")}
TIME_ORDERS: Mapping[str, str] = {"create_time": "created", "update_time": "updated"}
_DISPLAY_NAME = "json_extract(body, '$.displayName')"


def listing(project: Project, kind: Literal["endpoint", "model"], **more: Field) -> Listing:
    """What there is of one kind in a project and location; its condition has the parent as its one value.

    Args:
        more: filters that the other kind does not have, by proto name.
    """

    def named(value: str) -> str:
        return project.canonical(value, kind=f"{kind}s", field="filter")

    named_by = Text(sql="name", normal=named)
    return Listing(
        condition=f"kind = '{kind}' AND parent = ?",
        filters={
            kind: named_by,
            "name": named_by,
            "display_name": Text(sql=_DISPLAY_NAME),
            "labels": Labels(),
            **more,
            **TIMES,
        },
        orders={"display_name": _DISPLAY_NAME, **TIME_ORDERS},
    )
