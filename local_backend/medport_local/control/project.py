"""The project and location that a server stands for, and the names of what is in them."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field

from medport.errors import Forbidden, InputError, NotFound


@dataclass(frozen=True, slots=True)
class Project:
    """One project in one location. Callers write its id or number; answers hold the number, as on Vertex."""

    id: str
    location: str
    number: str = field(default="")
    """Digits; made from the id if it is not given, so that it is the same after every start."""

    def __post_init__(self) -> None:
        if not self.number:
            digest = hashlib.sha256(self.id.encode()).digest()
            object.__setattr__(self, "number", str(10**11 + int.from_bytes(digest[:8], "big") % (9 * 10**11)))

    @property
    def parent(self) -> str:
        """``projects/{number}/locations/{location}``."""
        return f"projects/{self.number}/locations/{self.location}"

    def check(self, project: str, location: str) -> None:
        """Pass what is about this project and location; ``-`` stands for any.

        Raises:
            Forbidden: another project, which Vertex does not tell from one that is not there.
            NotFound: another location.
        """
        if project not in ("-", self.id, self.number):
            raise Forbidden(
                "this server is not for that project (or it does not exist)",
                field="project",
                remedy=f"use {self.id} or {self.number}",
            )
        if location not in ("-", self.location):
            raise NotFound("this location is not served here", field="location", remedy=f"use {self.location}")

    def canonical(self, name: str, *, kind: str = "", field: str = "name") -> str:
        """A resource name as it is kept: with the project's number.

        Args:
            name: with the project's id or number; a bare id where ``kind`` says whose.
            kind: such as ``models``; the name must be of it.

        Raises:
            InputError: it has no form of a name.
            Forbidden, NotFound: as ``check``.
        """
        parts = name.split("/")
        if len(parts) == 1 and kind and name:
            return f"{self.parent}/{kind}/{name}"
        if len(parts) < 6 or len(parts) % 2 or parts[0] != "projects" or parts[2] != "locations" or "" in parts:
            raise InputError(
                "is not a resource name", field=field, remedy=f"write {self.parent}/{kind or 'KIND'}/ID"
            )
        if kind and parts[4] != kind:
            raise InputError(f"is not the name of one of the {kind}", field=field)
        self.check(parts[1], parts[3])
        return "/".join([self.parent, *parts[4:]])
