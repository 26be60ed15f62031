"""Ctrl-C: once lets the call under way finish, twice waits for it no longer. Nothing is cut off in between."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from medport.errors import MedportError


class Stopped(MedportError):
    """The run was stopped by its user. The command line ends with ``EXIT_INTERRUPTED``."""


class Interrupts:
    """How often the user has asked to stop.

    Args:
        say: is told what happens now.
    """

    def __init__(self, say: Callable[[str], None] = lambda text: None) -> None:
        self._say = say
        self._asked = 0
        self.on_first: Callable[[], None] = lambda: None
        """Called at the first, by the signal's handler: it must take no lock. For terraform: ``cancel.set``."""

    @property
    def stopping(self) -> bool:
        """Begin nothing more."""
        return self._asked >= 1

    @property
    def leaving(self) -> bool:
        """Wait for nothing more."""
        return self._asked >= 2

    def ask(self) -> None:
        """What Ctrl-C does."""
        self._asked += 1
        if self._asked == 1:
            self.on_first()
            self._say("Stopping after the call under way. Ctrl-C again: do not wait for it.")
        elif self._asked == 2:
            self._say("Not waiting: the server goes on by itself.")

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT and SIGTERM in the main thread; in another one they are not ours to take."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def asked(number: int, frame: FrameType | None) -> None:
            self.ask()

        before = {number: signal.signal(number, asked) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
