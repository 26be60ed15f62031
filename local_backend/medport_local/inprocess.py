"""The server inside the caller's own process: the same app, one thread, a private Unix socket.

It is quiet, touches no signal handler, and any number may run side by side.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import os
import secrets
import shutil
import socket
import tempfile
import threading
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from starlette.applications import Starlette

from medport_local.app import Settings, phantom_snapshots, serve
from medport_local.engine.engine import EngineLimits
from medport_local.engine.loading import DtypeRule
from medport_local.opening import ModelOptions
from medport_local.selection import IMAGE_DIGEST, Selection, Wanted, image_digest_of, select

# Without a handler Python prints warnings of libraries to stderr.
logging.getLogger("uvicorn").addHandler(logging.NullHandler())
logging.getLogger("medport_local").addHandler(logging.NullHandler())

_MAX_SOCKET_PATH = 100
"""Bytes; Linux takes 107 and macOS 103."""


class Server:
    """A running server. Close it, or use it as a context manager; an exiting interpreter closes it too."""

    def __init__(self, settings: Settings, listener: socket.socket, directory: Path | None) -> None:
        self._settings = settings
        self._listener = listener
        self._directory = directory
        self._pid = os.getpid()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._closed = False
        self.held = ExitStack()
        """What the server closes at its end: it keeps its snapshots from being collected."""
        self.app: Starlette | None = None
        """Once it runs; ``app.state.engines`` tells what they are doing."""
        self._thread = threading.Thread(target=self._run, name="medport-server", daemon=True)

    @property
    def socket_path(self) -> Path | None:
        """The Unix socket; ``None`` where it is a loopback port instead."""
        return self._directory / "s" if self._directory else None

    @property
    def base_url(self) -> str:
        """``http://localhost``, or with the port where there is no Unix socket."""
        if self._directory is not None:
            return "http://localhost"
        host, port = self._listener.getsockname()[:2]
        return f"http://{host}:{port}"

    @property
    def api_key(self) -> str | None:
        """A random key that guards the loopback port; the socket's directory needs none."""
        return self._settings.api_key

    def close(self) -> None:
        """Stop, drop what still runs after two seconds, remove the socket. Closing twice does nothing."""
        if self._closed or os.getpid() != self._pid:
            return
        self._closed = True
        atexit.unregister(self.close)
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._stop.set)
            self._thread.join()
        self._listener.close()
        self.held.close()
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def wait_until_ready(self) -> None:
        """Start the thread and return when the server answers; raise what kept it from that."""
        # A daemon, because an exiting interpreter waits for other threads before it calls exit handlers.
        atexit.register(self.close)
        self._thread.start()
        try:
            self._ready.wait()
        except BaseException:
            self.close()
            raise
        if self._failure is not None:
            self.close()
            raise self._failure

    def _began(self, app: Starlette) -> None:
        self.app = app
        self._ready.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(
                serve(self._settings, self._listener, stop=self._stop, on_ready=self._began)
            )
        except BaseException as failure:
            self._failure = failure
        finally:
            self._loop.run_until_complete(self._loop.shutdown_asyncgens())
            self._loop.run_until_complete(self._loop.shutdown_default_executor())
            self._loop.close()
            self._ready.set()


def start(
    snapshots: Mapping[str, str | os.PathLike[str]] | None = None,
    *,
    store: str | os.PathLike[str] | None = None,
    lock: str | os.PathLike[str] | None = None,
    device: str | None = None,
    dtype: DtypeRule = "auto",
    reuse_bytes: int = 0,
) -> Server:
    """Load the models and serve them inside this process. Takes seconds, or as long as the snapshots need.

    Args:
        snapshots: by family a model directory, or a snapshot of the store, ``google/medgemma-4b-it@COMMIT``; the
            shipped phantoms if neither they nor a lock are given. Nothing is downloaded.
        store: the store's directory; by default ``MEDPORT_STORE``, else in the user's data directory.
        lock: serve what this file names and nothing else.
        device: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``; by default CUDA, else Apple's GPU, else the CPU.
        dtype: of MedGemma's arithmetic; ``auto`` is bfloat16, and float32 for a small model.
        reuse_bytes: memory in which beginnings of prompts and images of past requests are kept, so that the next
            request that has them begins sooner. 0 keeps nothing of a request once it is over.

    Raises:
        ConfigError: a directory is missing, or holds another family; or an option is wrong.
        NotFound: the store has no such snapshot.
        VerificationError: a snapshot is not what its manifest or the lock says.
    """
    image = image_digest_of(os.environ.get(IMAGE_DIGEST))
    wanted = Wanted(
        snapshots={name: os.fspath(path) for name, path in (snapshots or {}).items()},
        store=None if store is None else Path(store),
        lock=None if lock is None else Path(lock),
        image_digest=image,
    )
    with ExitStack() as held:
        selection = held.enter_context(select(wanted))
        server = _made(selection, image, ModelOptions(device=device, dtype=dtype), reuse_bytes)
        server.held = held.pop_all()
    server.wait_until_ready()
    return server


def _made(selection: Selection, image_digest: str | None, models: ModelOptions, reuse_bytes: int) -> Server:
    """A server at its socket that has not begun."""
    private = _has_unix_sockets()
    settings = Settings(
        snapshots=selection.snapshots or phantom_snapshots(),
        lock_id=selection.lock_id,
        image_digest=image_digest,
        models=models,
        engine_limits=EngineLimits(reuse_bytes=reuse_bytes),
        drain_s=2.0,
        api_key=None if private else secrets.token_urlsafe(32),
    )
    directory = _private_directory() if private else None
    try:
        if directory is not None:
            listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            listener.bind(str(directory / "s"))
        else:
            listener = socket.create_server(("127.0.0.1", 0))
        return Server(settings, listener, directory)
    except BaseException:
        if directory is not None:
            shutil.rmtree(directory, ignore_errors=True)
        raise


def _has_unix_sockets() -> bool:
    return hasattr(socket, "AF_UNIX")  # not on Windows


def _private_directory() -> Path:
    """A new directory that only this user may enter, with a path short enough for a socket."""
    directory = Path(tempfile.mkdtemp(prefix="medport-"))  # 0700 by contract
    if len(os.fsencode(directory)) > _MAX_SOCKET_PATH:
        directory.rmdir()
        directory = Path(tempfile.mkdtemp(prefix="medport-", dir="/tmp"))
    return directory
