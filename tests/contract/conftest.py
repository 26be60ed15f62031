"""One client for each place a model can run and each colour of code; the tests are the same for all."""

from __future__ import annotations

import asyncio
import shutil
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from support.certificates import Authority
from support.running import LoopThread
from support.vertex import Account, Vertex

import medport
from medport import lock as locks
from medport.lock import Lock, LockedFile, LockedModel

pytest.importorskip("torch")

from medport_local import app as local_app
from medport_local import inprocess, phantom
from medport_local.phantom import draw
from medport_local.snapshot import open_snapshot

API_KEY = "contract-key-4f1c"
IMAGE_DIGEST = "c0ffee" + "0" * 58
PARENT = {"model_id": "medport/elder", "revision": None, "snapshot_sha256": "e" * 64}
"""What the snapshots' manifests say that they were made from."""
QUESTION = "Describe this chest radiograph."
BACKENDS = ("in-process", "local", "vertex")
COLOURS = ("sync", "async")


@dataclass(frozen=True)
class Capabilities:
    """Where backends differ. Tests read these, never a backend's name."""

    request_ids: bool
    """Each answer carries an id under which the server logged it."""
    names_fields: bool
    """An error that the server found names the field at fault."""


@dataclass(frozen=True)
class Place:
    """A backend that runs, as tests see it."""

    name: str
    settings: Mapping[str, Any]
    engines: Callable[[], list[Any]]
    """Those that write text, for their counters."""
    capabilities: Capabilities


@dataclass(frozen=True)
class Asked:
    """A client in plain blocking words, whichever colour is behind it."""

    place: Place
    colour: str
    run: Callable[..., Any]
    stream: Callable[..., Any]

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return lambda *args, **options: self.run(verb, *args, **options)

    def counts(self, name: str) -> int:
        return sum(getattr(engine.stats(), name) for engine in self.place.engines())


@pytest.fixture(scope="session")
def snapshots(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The phantoms, with manifests that name a parent."""
    folder = tmp_path_factory.mktemp("snapshots")
    made = {}
    for family in ("medgemma", "medsiglip"):
        made[family] = Path(shutil.copytree(phantom.weights_dir(family), folder / family))
        path = made[family] / "manifest.json"
        path.write_bytes(orjson.dumps(orjson.loads(path.read_bytes()) | {"parent": PARENT}))
    return made


@pytest.fixture(scope="session")
def lock_file(snapshots: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A lock of both."""
    models = {}
    for family, folder in snapshots.items():
        snapshot = open_snapshot(folder)
        files = {name: LockedFile(**entry.model_dump()) for name, entry in snapshot.files.items()}
        models[family] = LockedModel(
            model_id=snapshot.model_id,
            revision=snapshot.revision,
            snapshot_sha256=snapshot.snapshot_sha256,
            family=snapshot.family,
            files=files,
        )
    path = tmp_path_factory.mktemp("lock") / "medport.lock"
    locks.write(path, Lock(models=models))
    return path


@pytest.fixture(scope="session")
def places(
    snapshots: dict[str, Path],
    lock_file: Path,
    authority: Authority,
    account: Account,
    loop_thread: LoopThread,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[str], Place]]:
    """Opens each place at its first use, for the whole session."""
    openers = {
        "in-process": lambda: _in_process(snapshots, lock_file),
        "local": lambda: _local(authority, snapshots, lock_file),
        "vertex": lambda: _vertex(
            authority, account, loop_thread, tmp_path_factory.mktemp("vertex"), snapshots, lock_file
        ),
    }
    opened: dict[str, Place] = {}
    with ExitStack() as stack:

        def place(name: str) -> Place:
            if name not in opened:
                opened[name] = stack.enter_context(openers[name]())
            return opened[name]

        yield place


@pytest.fixture(scope="session", params=[f"{b}-{c}" for b in BACKENDS for c in COLOURS])
def client(
    request: pytest.FixtureRequest, places: Callable[[str], Place], loop_thread: LoopThread
) -> Iterator[Asked]:
    """Every backend, by the sync and by the async client."""
    backend, _, colour = request.param.rpartition("-")
    with asked(places(backend), colour, loop_thread) as each:
        yield each


@pytest.fixture(scope="session", params=BACKENDS)
def place(request: pytest.FixtureRequest, places: Callable[[str], Place]) -> Place:
    return places(request.param)


@pytest.fixture(scope="session")
def reference(places: Callable[[str], Place], loop_thread: LoopThread) -> Iterator[Asked]:
    """The client to compare the others with."""
    with asked(places("in-process"), "sync", loop_thread) as each:
        yield each


@pytest.fixture(scope="session")
def drawings() -> list[np.ndarray[Any, Any]]:
    """Six drawn radiographs, uint8 ``[256, 256]``, one of each finding as far as they go."""
    rng = np.random.default_rng(7)
    findings = list(draw.Finding)
    return [draw.render(draw.sample(rng, findings[i % len(findings)]), rng, 256).pixels for i in range(6)]


@contextmanager
def asked(place: Place, colour: str, loop: LoopThread) -> Iterator[Asked]:
    if colour == "sync":
        with medport.Client(**place.settings) as client:
            yield Asked(place, colour, lambda verb, *a, **o: getattr(client, verb)(*a, **o), client.chat_stream)
        return
    client = medport.AsyncClient(**place.settings)
    yield Asked(
        place,
        colour,
        lambda verb, *a, **o: loop.run(_call(getattr(client, verb), *a, **o)),
        lambda *a, **o: _Blocking(client.chat_stream(*a, **o), loop),
    )
    loop.run(client.close())


async def _call(verb: Callable[..., Any], *args: Any, **options: Any) -> Any:
    return await verb(*args, **options)


class _Blocking:
    """An async stream, read from outside its loop."""

    def __init__(self, stream: medport.AsyncChatStream, loop: LoopThread) -> None:
        self._stream, self._loop = stream, loop

    def __iter__(self) -> _Blocking:
        return self

    def __next__(self) -> medport.Delta:
        try:
            return self._loop.run(_call(self._stream.__anext__))
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> _Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._loop.run(self._stream.close())

    @property
    def result(self) -> medport.Chat:
        return self._stream.result


@contextmanager
def _in_process(snapshots: Mapping[str, Path], lock_file: Path) -> Iterator[Place]:
    started: list[inprocess.Server] = []
    start = inprocess.start

    def watched(*args: Any, **options: Any) -> inprocess.Server:
        if options.get("lock") != lock_file:  # of a test that has nothing to do with these
            return start(*args, **options)
        with pytest.MonkeyPatch.context() as only_now:
            only_now.setenv("MEDPORT_IMAGE_DIGEST", f"sha256:{IMAGE_DIGEST}")
            started.append(start(*args, **options))
        return started[-1]

    def engines() -> list[Any]:
        return [server.app.state.engines["medgemma"] for server in started if server.app is not None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inprocess, "start", watched)
        yield Place(
            "in-process",
            {"backend": "in-process", "snapshot": dict(snapshots), "lock": lock_file},
            engines,
            Capabilities(request_ids=True, names_fields=True),
        )


@contextmanager
def _local(authority: Authority, snapshots: Mapping[str, Path], lock_file: Path) -> Iterator[Place]:
    certificate = authority.issue("localhost")
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    settings = local_app.Settings(
        snapshots=snapshots,
        lock_id=locks.read(lock_file).lock_id,
        image_digest=IMAGE_DIGEST,
        api_key=API_KEY,
        advertised=f"localhost:{port}",
        drain_s=1,
    )
    loop, stop, ready = asyncio.new_event_loop(), asyncio.Event(), threading.Event()
    apps: list[Any] = []

    def began(app: Any) -> None:
        apps.append(app)
        ready.set()

    async def serve() -> None:
        try:
            tls = local_app.Tls(certificate.certificate, certificate.key)
            await local_app.serve(settings, listener, stop=stop, on_ready=began, tls=tls)
        finally:
            ready.set()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(120)
    assert apps, "the server did not start"
    try:
        yield Place(
            "local",
            {
                "backend": "local",
                "url": f"https://localhost:{port}",
                "api_key": API_KEY,
                "ca_file": str(authority.ca_file),
            },
            lambda: [app.state.engines["medgemma"] for app in apps],
            Capabilities(request_ids=True, names_fields=True),
        )
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(30)
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


@contextmanager
def _vertex(
    authority: Authority,
    account: Account,
    loop: LoopThread,
    folder: Path,
    snapshots: Mapping[str, Path],
    lock_file: Path,
) -> Iterator[Place]:
    inner = local_app.create_app(local_app.Settings(snapshots=snapshots))
    lifespan = inner.router.lifespan_context(inner)
    loop.run(lifespan.__aenter__(), timeout_s=120)
    vertex = Vertex(authority, folder, account, inner)
    for family, served in vertex.models.items():
        snapshot = open_snapshot(snapshots[family])
        served.model_id, served.snapshot_sha256 = snapshot.model_id, snapshot.snapshot_sha256
        served.revision, served.notice = snapshot.revision or "", snapshot.notice or ""
        served.parent, served.image_digest = snapshot.parent or "", IMAGE_DIGEST
        served.lock_id = locks.read(lock_file).lock_id
    try:
        with vertex.serving(loop):
            yield Place(
                "vertex",
                vertex.settings(),
                lambda: [inner.state.engines["medgemma"]],
                Capabilities(request_ids=False, names_fields=False),
            )
    finally:
        loop.run(lifespan.__aexit__(None, None, None), timeout_s=30)
