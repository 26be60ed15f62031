"""Calls of a control plane by their paths, without HTTP: what a test of what it keeps needs of a server."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from medport.errors import NotFound
from medport_local.control.asks import Api, Ask, Row

Json = dict[str, Any]


class Caller:
    """Answers a method and a path by the row that fits."""

    def __init__(self, rows: Iterable[Row], parent: str) -> None:
        self._table = [(row, _pattern(row.path)) for row in rows]
        self._parent = parent

    def __call__(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        may: Callable[[str], bool] = lambda endpoint: True,
        **query: str,
    ) -> Json:
        """What a call answers.

        Args:
            path: begins with ``/v1``, ``/v1beta1`` or ``/ui`` if it is whole, else it stands behind
                ``/v1/projects/…/locations/…/``.
            query: stands beside what the path has behind a ``?``.
        """
        url = urlsplit(path if path.startswith("/") else f"/v1/{self._parent}/{path}")
        api: Api = "v1beta1" if url.path.startswith("/v1beta1/") else "v1"
        for row, pattern in self._table:
            found = pattern.fullmatch(url.path)
            if found and row.method == method:
                asked = dict(parse_qsl(url.query)) | query
                values = {key: value for key, value in found.groupdict().items() if key != "api"}
                ask = Ask(api=api, path=values, query=asked, body=body or {}, may=may)
                return asyncio.run(_answer(row, ask))
        raise NotFound(f"no row for {method} {path}")

    def done(self, operation: Json, timeout_s: float = 10.0) -> Json:
        """An operation once it is done."""
        until = time.monotonic() + timeout_s
        while not operation["done"]:
            assert time.monotonic() < until, "the operation does not end"
            operation = self("POST", f"/ui/{operation['name']}:wait", {"timeout": "1s"})
        return operation


async def _answer(row: Row, ask: Ask) -> Json:
    return await row.handler(ask)


def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w+)\}", template)
    made = [
        (f"(?P<{piece}>v1beta1|v1)" if piece == "api" else f"(?P<{piece}>[^/:]+)") if i % 2 else re.escape(piece)
        for i, piece in enumerate(pieces)
    ]
    return re.compile("".join(made))
