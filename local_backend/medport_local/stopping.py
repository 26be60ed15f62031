"""SIGTERM and SIGINT → an event, for the programs that serve."""

from __future__ import annotations

import asyncio
import os
import signal

from medport.errors import EXIT_INTERRUPTED


class Stop:
    """Waits for a signal. Made in the event loop that serves.

    Attributes:
        asked: set by the first signal.
        ready: to be set once there is something to drain. Until then a signal ends the process at once, for
            loading cannot be interrupted and leaves nothing behind; so does a second one.
    """

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.ready = False
        self.exit_code = 0
        """Of the signal that came; 0 if none did."""
        loop = asyncio.get_running_loop()
        for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, EXIT_INTERRUPTED)):
            try:
                loop.add_signal_handler(number, self._leave, code)
            except NotImplementedError:  # Windows
                signal.signal(number, lambda *_, code=code: loop.call_soon_threadsafe(self._leave, code))

    def _leave(self, code: int) -> None:
        if self.asked.is_set() or not self.ready:
            os._exit(code)
        self.exit_code = code
        self.asked.set()
