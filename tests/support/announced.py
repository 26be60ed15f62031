"""``medport serve --json`` as a process: started as its users start it, and ended."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import orjson

from . import forked
from .polling import wait_until


@contextmanager
def announced(*options: str, env: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Run it with these options; gives what its ready line says.

    At the end it must not have had a fault that it kept from its callers.
    """
    command = ["medport_local.cli", "serve", "--json", "--port", "0", *options]
    with (
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as printed,
        forked.Process(*command, stdout=printed, stderr=said, env={**os.environ, **env}) as process,
    ):

        def line() -> bytes:
            return os.pread(printed.fileno(), 1 << 20, 0)

        def ready() -> bool:
            return line().endswith(b"\n") or process.poll() is not None

        try:
            wait_until(ready, 120, step_s=0.05)
            said.seek(0)
            assert process.poll() is None, said.read().decode()
            yield orjson.loads(line())
            said.seek(0)
            log = said.read()
            assert b"Traceback" not in log, "the server had a fault that no client saw: " + log.decode()[-3000:]
        finally:
            process.terminate()
            process.wait(30)
