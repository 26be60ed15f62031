"""A real server whose engine answers at once: what is left is the server. Prints its address when it listens.

``--engine noop`` puts the no-op engine in the place of the real one; prompts are rendered and tokenised as ever.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import socket
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from medport_local import app
from medport_local.engine.engine import Engine
from medport_local.engine.sequence import Event, GenerationRequest


class _Answered:
    """One event, there at once."""

    id = 0

    async def __aiter__(self) -> AsyncIterator[Event]:
        yield Event(text="No acute finding.", finish_reason="stop", completion_tokens=4)


class NoopEngine:
    """Everything of the real engine but its work."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def submit(self, request: GenerationRequest) -> _Answered:
        return _Answered()

    def cancel(self, id: int) -> None:
        pass


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--engine", choices=("noop", "real"), default="noop")
    parser.add_argument("--audit", type=Path)
    given = parser.parse_args()
    if given.engine == "noop":
        opened = app._open

        def with_noop(*arguments: Any) -> Any:
            found = opened(*arguments)
            if found.snapshot.family != "medgemma":
                return found
            return replace(found, engine=NoopEngine(found.engine))  # type: ignore[arg-type]

        app._open = with_noop  # type: ignore[assignment]
    listener = socket.create_server(("127.0.0.1", 0))
    settings = app.Settings(api_key="a-key-of-some-length", audit_dir=given.audit)

    def ready(_: Any) -> None:
        print(json.dumps({"port": listener.getsockname()[1]}), flush=True)

    await app.serve(settings, listener, stop=asyncio.Event(), on_ready=ready)


if __name__ == "__main__":
    asyncio.run(main())
