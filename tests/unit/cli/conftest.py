"""A small server with fixed answers in Vertex's forms, on a real socket, and the command line as a function."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from PIL import Image
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from medport.cli import main
from medport.wire.vertex import Pins, model_from_pins

PARENT = "projects/test/locations/europe-west4"
REVISION = "1f3a" + "0" * 36
SNAPSHOT = "ab" * 32
NAMES = {"medgemma": f"{PARENT}/endpoints/mg", "medsiglip": f"{PARENT}/endpoints/ms"}


@dataclass
class Canned:
    """What the server says, changed by a test before it asks, and what it was asked."""

    url: str = ""
    text: str = "No acute finding."
    finish_reason: str = "stop"
    error: tuple[int, dict[str, Any]] | None = None
    families: tuple[str, ...] = ("medgemma", "medsiglip")
    deployed: bool = True
    pinned: bool = True
    date: str | None = None
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: set[str | None] = field(default_factory=set)


def _app(canned: Canned) -> Starlette:
    def headers() -> dict[str, str]:
        dated = {"date": canned.date} if canned.date else {}
        return {"x-request-id": "req-1", **dated}

    def endpoint(family: str) -> dict[str, Any]:
        deployed = [{"id": f"d-{family}", "model": f"{PARENT}/models/{family}", "modelVersionId": "1"}]
        return {
            "name": NAMES[family],
            "labels": {"medport-family": family},
            "deployedModels": deployed if canned.deployed else [],
        }

    async def endpoints(request: Request) -> Response:
        canned.keys.add(request.headers.get("authorization"))
        return JSONResponse({"endpoints": [endpoint(family) for family in canned.families]}, headers=headers())

    async def model(request: Request) -> Response:
        family = request.path_params["name"].partition("@")[0]
        pins = Pins(f"phantom/{family}", REVISION, None, SNAPSHOT, None, "phantom") if canned.pinned else Pins()
        return JSONResponse(model_from_pins(f"{PARENT}/models/{family}", "1", pins))

    async def predict(request: Request) -> Response:
        body = json.loads(await request.body())
        canned.asked.append(body)
        if canned.error:
            return JSONResponse(canned.error[1], canned.error[0], headers())
        if request.path_params["name"] == "ms":
            vectors = [[float(i + 1), 2.0, -1.0] for i, _ in enumerate(body["instances"])]
            found = [{"embedding": v, "model_temperature": 1.0, "model_bias": -2.0} for v in vectors]
            return JSONResponse({"predictions": found}, headers=headers())
        choice = {"message": {"content": canned.text}, "finish_reason": canned.finish_reason}
        return JSONResponse({"predictions": {"choices": [choice]}}, headers=headers())

    async def stream(request: Request) -> Response:
        canned.asked.append(json.loads(await request.body()))
        if canned.error:
            return JSONResponse(canned.error[1], canned.error[0], headers())

        async def events() -> Any:
            for word in canned.text.split(" "):
                yield _event({"choices": [{"delta": {"content": word + " "}}]})
            yield _event({"choices": [{"delta": {"content": ""}, "finish_reason": canned.finish_reason}]})
            yield b"data: [DONE]\n\n"

        return StreamingResponse(events(), media_type="text/event-stream", headers=headers())

    async def other(request: Request) -> Response:
        return Response(status_code=404, headers=headers())

    return Starlette(
        routes=[
            Route("/v1/projects/-/locations/-/endpoints", endpoints),
            Route(f"/v1/{PARENT}/models/{{name}}", model),
            Route(f"/v1/{PARENT}/endpoints/{{name}}:predict", predict, methods=["POST"]),
            Route(f"/v1beta1/{PARENT}/endpoints/{{name}}/chat/completions", stream, methods=["POST"]),
            Route("/", other),
        ]
    )


def _event(value: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@contextmanager
def running(canned: Canned, **tls: str) -> Iterator[Canned]:
    """The server in a thread, over TLS if certificates are given."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(_app(canned), log_config=None, lifespan="off", date_header=canned.date is None, **tls)  # type: ignore[arg-type]
    server = uvicorn.Server(config)
    ready = threading.Event()

    async def serve() -> None:
        task = asyncio.ensure_future(server.serve(sockets=[listener]))
        while not server.started and not task.done():
            await asyncio.sleep(0.005)
        ready.set()
        await task

    thread = threading.Thread(target=asyncio.run, args=(serve(),), daemon=True)
    thread.start()
    assert ready.wait(10)
    canned.url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
    try:
        yield canned
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No configuration but the test's own, in a directory of its own."""
    for name in ("NO_COLOR", "FORCE_COLOR", "MEDPORT_PROFILE", "MEDPORT_API_KEY", "MEDPORT_CONFIG", "MEDPORT_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def canned() -> Iterator[Canned]:
    with running(Canned()) as server:
        yield server


@pytest.fixture
def canned_over() -> Callable[..., AbstractContextManager[Canned]]:
    """The canned server with a date of its own or over TLS: ``with canned_over(ssl_certfile=…) as server``."""

    def start(date: str | None = None, **tls: str) -> AbstractContextManager[Canned]:
        return running(Canned(date=date), **tls)

    return start


@pytest.fixture
def local(canned: Canned) -> list[str]:
    """The options that lead to the canned server."""
    return ["--backend", "local", "--url", canned.url]


@dataclass(frozen=True)
class Run:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The one object on stdout."""
        assert self.out.count("\n") == 1, self.out
        return json.loads(self.out)

    @property
    def error(self) -> Any:
        """The one error object on stderr."""
        assert self.err.count("\n") == 1, self.err
        return json.loads(self.err)["error"]


@pytest.fixture
def medport(capsys: pytest.CaptureFixture[str]) -> Callable[..., Run]:
    """The command line, in this process: ``medport("chat", "Hello", "--json")``."""

    def run(*arguments: str) -> Run:
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving:
            main(list(arguments))
        out, err = capsys.readouterr()
        code = leaving.value.code
        return Run(code if isinstance(code, int) else 0, out, err)

    return run


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Three small images, the second of which is none."""
    paths = [tmp_path / name for name in ("a.png", "b.png", "c.png")]
    for path in (paths[0], paths[2]):
        Image.new("L", (8, 8), 90).save(path)
    paths[1].write_bytes(b"this is no image")
    return [str(path) for path in paths]
