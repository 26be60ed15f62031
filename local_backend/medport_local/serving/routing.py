"""Routes that a router tries cheaply, and whose patterns are compiled when a request first needs them.

A control plane has hundreds of routes: to compile them all takes a tenth of a second of its start, and to try all
of the patterns on each request longer than many an answer.
"""

from __future__ import annotations

from functools import cached_property

from starlette.routing import BaseRoute, Match, Route
from starlette.types import Receive, Scope, Send

from medport_local.serving.exchange import Door


class DoorRoute(BaseRoute):
    """One row of the route table: a ``starlette.routing.Route`` whose path's literal ends are tried first."""

    def __init__(self, path: str, door: Door, method: str) -> None:
        self.path = path
        self.endpoint = door
        self.methods = {method, "HEAD"} if method == "GET" else {method}
        self._method = method
        self._begin, _, rest = path.partition("{")
        self._end = rest.rpartition("}")[2] if rest else path

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """See ``Route.matches``."""
        if scope["type"] != "http":
            return Match.NONE, {}
        path: str = scope["path"]
        # A server behind no other has no root path; with one, the whole pattern decides.
        if not scope.get("root_path") and not (path.startswith(self._begin) and path.endswith(self._end)):
            return Match.NONE, {}
        return self._route.matches(scope)

    async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ``Route.handle``."""
        await self._route.handle(scope, receive, send)

    @cached_property
    def _route(self) -> Route:
        return Route(self.path, self.endpoint, methods=[self._method])
