"""Who asks, and what they may do: one form for keys, service accounts and those who need neither.

A principal that is for some endpoints changes those only. What belongs to the whole project (uploading or deleting
a model, creating an endpoint, accepting a licence) is not in its actions, because it would reach endpoints of
others; whoever is to do it all the same has that verb by its full name.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from medport.errors import Forbidden
from medport_local.serving.limits import Rate
from medport_local.serving.verbs import ACTIONS, CHANGES, Action, covers

_NAMED = re.compile(
    r"/(?:v1|v1beta1|ui)/([A-Za-z0-9._@*-]{1,128}(?:/[A-Za-z0-9._@*-]{1,128}){1,11})(?::[A-Za-z]+)?"
)
_SAID = {
    "infer": "run a model",
    "read": "read resources",
    "metrics": "read metrics",
    "deploy": "change resources",
    "admin": "run the server",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """Who asks, and what they may do."""

    name: str
    actions: frozenset[str]
    models: frozenset[str] | None
    """Endpoint ids, and ``models/ID`` for batch jobs that ask a model itself; ``None`` means all."""
    verbs: tuple[str, ...] = ()
    """Permissions beside those of the actions; see ``verbs.covers``."""
    rate: Rate | None = None
    concurrent: int | None = None

    def may(self, endpoint: str) -> bool:
        """Whether it is for this endpoint."""
        return self.models is None or endpoint in self.models

    def check(self, action: Action, verb: str = "", *, endpoint: str | None = None, resource: str = "") -> None:
        """Raise ``Forbidden`` unless this may be done.

        Args:
            verb: Google's name of the permission; ``""`` where there is none.
            endpoint: id of the one that is named in the path; ``None`` if none is.
            resource: name of what it is done to, for the message.
        """
        named = any(covers(pattern, verb) for pattern in self.verbs)
        if action not in self.actions and not named:
            remedy = f"ask for a key with the action {action}" + (f" or the verb {verb}" if verb else "")
            raise _denied(verb, resource, f"this key may not {_SAID[action]}", remedy)
        if endpoint is not None:
            self.check_model(endpoint)
        elif self.models is not None and action in CHANGES and verb not in self.verbs:
            said = "this key is for some endpoints, and this is about the whole project"
            remedy = "ask for a key for all endpoints" + (f", or with the verb {verb}" if verb else "")
            raise _denied(verb, resource, said, remedy)

    def check_model(self, endpoint: str) -> None:
        """Raise ``Forbidden`` unless it is for this endpoint."""
        if not self.may(endpoint):
            # The endpoint isn't named: the answer must not tell which endpoints there are.
            raise Forbidden("this key is not for this endpoint", remedy="ask for a key with this model")


ANYONE = Principal(name="-", actions=frozenset(ACTIONS), models=None)
"""Who asks where the server has no keys."""


def resource_in(path: str) -> str:
    """The name of the resource that a URL's path is about, a collection's parent; ``""`` if it has no such form.

    A path is the caller's word: nothing else of it may get into messages and logs.
    """
    found = _NAMED.fullmatch(path)
    parts = found[1].split("/") if found else []
    return "/".join(parts[: len(parts) // 2 * 2])


def _denied(verb: str, resource: str, said: str, remedy: str) -> Forbidden:
    if not verb:
        return Forbidden(said, remedy=remedy)
    place = f"resource '//aiplatform.googleapis.com/{resource}'"
    return Forbidden(f"Permission '{verb}' denied on {place} (or it may not exist).", remedy=f"{said}: {remedy}")
