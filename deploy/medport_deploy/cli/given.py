"""Which files a command was given, so that what it tells people to type next names them too."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from medport.errors import MedportError
from medport_deploy.cli import options

_COMMANDS = (
    "init",
    "lock",
    "plan",
    "apply",
    "verify",
    "promote",
    "rollback",
    "status",
    "history",
    "sweep",
    "destroy",
)
_COMMAND = re.compile(rf"\bmedport deploy (?P<name>{'|'.join(_COMMANDS)})\b(?! -f )")


@dataclass(frozen=True, slots=True)
class Given:
    """The options ``--spec`` and ``--lock`` as they were typed."""

    spec: Path
    lock: Path | None = None

    def told(self, text: str) -> str:
        """A text whose commands name the files, where they are not those that a command takes by itself."""
        return _COMMAND.sub(self._named, text)

    @contextmanager
    def in_errors(self) -> Iterator[None]:
        """The same for what an error says."""
        try:
            yield
        except MedportError as error:
            self.name_in(error)
            raise

    def name_in(self, error: MedportError) -> None:
        """The same for one error."""
        error.message = self.told(error.message)
        error.remedy = self.told(error.remedy) if error.remedy else error.remedy

    def _named(self, command: re.Match[str]) -> str:
        init = command["name"] == "init"
        words = ["-o" if init else "-f", str(self.spec)] if self.spec != options.SPEC else []
        if self.lock is not None and not init:
            words += ["--lock", str(self.lock)]
        return " ".join([command[0], shlex.join(words)]) if words else command[0]
