"""Our image on Vertex AI: one model behind the custom-container contract.

``python -m medport_local.container`` reads its settings from the environment and from vLLM's arguments (see
``container_settings``), fetches and verifies the model, and serves it over plain HTTP, because Vertex ends TLS in
front of it. From its first moment it listens, and says 503 until the model is loaded.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from medport import lock as locks
from medport.errors import ConfigError, MedportError, NotFound, VerificationError, row_of
from medport.lock import Lock, LockedModel
from medport_local import selection
from medport_local.container_settings import ContainerSettings
from medport_local.serving.logs import formatter
from medport_local.snapshot import Snapshot, open_snapshot
from medport_local.snapshot_source import obtain
from medport_local.stopping import Stop

if TYPE_CHECKING:
    from starlette.applications import Starlette

    from medport_local.app import Settings

__all__ = ["ContainerSettings", "main", "run", "verified"]

_HEAD_LIMIT_BYTES = 64 * 1024
_HEAD_TIMEOUT_S = 10.0
_NOT_OK = (
    b"HTTP/1.1 503 Service Unavailable\r\ncontent-type: text/plain; charset=utf-8\r\ncontent-length: 6\r\n"
    b"retry-after: 5\r\nconnection: close\r\n\r\nnot ok"
)

logger = logging.getLogger("medport_local.container")  # run as a program, __name__ is __main__


def main(environment: Mapping[str, str] | None = None, arguments: Sequence[str] | None = None) -> int:
    """Serve until SIGTERM; the exit code. A known fault is one line on standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter("json"))
    logging.basicConfig(level=logging.INFO, handlers=[handler])
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    try:
        settings = ContainerSettings.from_environment(
            os.environ if environment is None else environment, sys.argv[1:] if arguments is None else arguments
        )
        if settings.unused:
            logger.info("accepted, and not acted upon: %s", ", ".join(settings.unused))
        with ExitStack() as stack:
            listener = stack.enter_context(_bind(settings))
            return asyncio.run(_until_signal(settings, listener, stack))
    except MedportError as error:
        logger.error("%s: %s", type(error).__name__, error)
        return row_of(error).exit_code


async def run(
    settings: ContainerSettings,
    listener: socket.socket,
    *,
    stop: asyncio.Event,
    stack: ExitStack,
    on_ready: Callable[[], None] = lambda: None,
) -> None:
    """Fetch, verify, load and serve the model on a socket that listens, until ``stop`` is set.

    Args:
        stack: keeps a downloaded model until the caller is done.

    Raises:
        VerificationError: the model is not the one that was pinned. Nothing was served.
        ConfigError: a setting does not fit the model.
        MedportError: the model cannot be had; see ``snapshot_source.obtain``.
    """
    waiting = await asyncio.start_server(_not_yet, sock=listener.dup(), limit=_HEAD_LIMIT_BYTES)
    try:
        snapshot, lock_id = await asyncio.to_thread(_prepared, settings, stack)
        # In a thread, because importing torch takes seconds, in which probes are to be answered.
        served = await asyncio.to_thread(app_settings, settings, snapshot, lock_id)
        from medport_local import app

        def ready(_: Starlette) -> None:
            # A connection that `waiting` has accepted still gets its 503; the next one does not.
            waiting.close()
            logger.info("ready on port %d", listener.getsockname()[1])
            on_ready()

        await app.serve(served, listener, stop=stop, on_ready=ready)
    finally:
        waiting.close()


def app_settings(settings: ContainerSettings, snapshot: Snapshot, lock_id: str | None = None) -> Settings:
    """The server's settings for this container and the model that it verified."""
    from medport_local.app import Settings
    from medport_local.engine.embedder import EmbedderLimits
    from medport_local.engine.engine import EngineLimits
    from medport_local.opening import ModelOptions
    from medport_local.serving.routes import ContainerRoutes

    engine = {
        "max_running": settings.max_running,
        "max_images": settings.max_images,
        "kv_bytes": settings.kv_bytes,
        "reuse_bytes": settings.reuse_bytes,
        "stall_ms": settings.stall_ms,
        "max_wait_s": settings.max_wait_s,
    }
    embedder = {"max_batch": settings.max_batch, "max_per_request": settings.max_embeddings}
    return Settings(
        snapshots={snapshot.family: snapshot},
        lock_id=lock_id,
        image_digest=settings.image_digest,
        dialects=("medsiglip",) if snapshot.family == "medsiglip" else (settings.dialect,),
        container=ContainerRoutes(settings.predict_route, settings.health_route, lists=settings.batch_prediction),
        models=ModelOptions(device=settings.device, dtype=settings.dtype, embed_dtype=settings.embed_dtype),
        allow_fetch=settings.allow_fetch,
        engine_limits=EngineLimits(**{name: value for name, value in engine.items() if value is not None}),
        embedder_limits=EmbedderLimits(**{name: value for name, value in embedder.items() if value is not None}),
    )


def verified(settings: ContainerSettings, directory: Path) -> Snapshot:
    """The model in ``directory``, if it is the one that the settings pin.

    Raises:
        VerificationError: its bytes or its revision are others.
        ConfigError: MODEL_INPUT_WIDTH or MODEL_INPUT_HEIGHT is not the model's.
    """
    # The weights are hashed as they are loaded.
    return checked(settings, open_snapshot(directory, defer_weights=True))


def checked(settings: ContainerSettings, snapshot: Snapshot) -> Snapshot:
    """The same snapshot, if it is the one that the settings pin. Raises as ``verified``."""
    if settings.snapshot_sha256 not in (None, snapshot.snapshot_sha256):
        raise VerificationError(
            f"the model's snapshot is {snapshot.snapshot_sha256}, and another is pinned",
            field="MEDPORT_SNAPSHOT_SHA256",
            remedy="check which files the model's place holds",
        )
    if settings.revision is not None and snapshot.revision not in (None, settings.revision):
        raise VerificationError(
            f"the manifest is of revision {snapshot.revision}, and another is pinned",
            field="MEDPORT_REVISION",
            remedy="check which files the model's place holds",
        )
    if settings.revision is not None and snapshot.revision is None:
        logger.warning("no manifest proves the revision; only MEDPORT_SNAPSHOT_SHA256 can pin these files")
    if settings.parent not in (None, snapshot.parent):
        raise VerificationError(
            f"the model was derived from {snapshot.parent or 'no other'}, and another is pinned",
            field="MEDPORT_PARENT",
            remedy="check which files the model's place holds",
        )
    side = _image_side_px(snapshot)
    for name, wanted in (
        ("MODEL_INPUT_WIDTH", settings.input_width_px),
        ("MODEL_INPUT_HEIGHT", settings.input_height_px),
    ):
        if wanted is not None and wanted != side:
            raise ConfigError(
                f"is {wanted}, and the model takes {f'{side} pixels' if side else 'no images'}",
                field=name,
                remedy=f"set it to {side}, or leave it out" if side else "leave it out",
            )
    return snapshot


def _prepared(settings: ContainerSettings, stack: ExitStack) -> tuple[Snapshot, str | None]:
    """The model, and the id of the lock that it was held against."""
    lock = None if settings.lock is None else locks.read(settings.lock)
    model = None if lock is None else _only(lock)
    if lock is not None:
        selection.check_image(settings.image_digest, lock)
    snapshot = _stored(settings, model, stack)
    if snapshot is None:
        place = obtain(settings.models, revision=settings.revision, hub_token=settings.hub_token)
        snapshot = open_snapshot(stack.enter_context(place), defer_weights=True)
    if model is not None:
        selection.check_locked(snapshot, model)
    return checked(settings, snapshot), lock.lock_id if lock else None


def _only(lock: Lock) -> LockedModel:
    if len(lock.models) != 1:
        raise ConfigError(
            f"holds {len(lock.models)} models, and a container serves one",
            field="MEDPORT_LOCK",
            remedy="make a lock of one: medport snapshot lock REF",
        )
    return next(iter(lock.models.values()))


def _stored(settings: ContainerSettings, model: LockedModel | None, stack: ExitStack) -> Snapshot | None:
    """The model out of the store that the container was given, if it is to come from there."""
    if settings.store is None:
        return None
    if not settings.models:
        return None if model is None else selection.from_lock(model, settings.store, stack)
    place = settings.models[0]
    if not selection.is_reference(place, settings.store):
        return None
    pinned = "@" in place or place.startswith("sha256:")
    try:
        named = place if pinned or settings.revision is None else f"{place}@{settings.revision}"
        return selection.opened(named, settings.store, stack)
    except NotFound:
        if pinned:
            raise
        return None  # the hub may have it


def _image_side_px(snapshot: Snapshot) -> int | None:
    vision = json.loads(snapshot.read("config.json")).get("vision_config") or {}
    side = vision.get("image_size")
    return side if isinstance(side, int) else None


async def _until_signal(settings: ContainerSettings, listener: socket.socket, stack: ExitStack) -> int:
    stop = Stop()

    def ready() -> None:
        stop.ready = True

    await run(settings, listener, stop=stop.asked, stack=stack, on_ready=ready)
    return stop.exit_code


async def _not_yet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Any request, while the model is fetched and loaded: not ready."""
    with suppress(ConnectionError, TimeoutError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
        async with asyncio.timeout(_HEAD_TIMEOUT_S):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(_NOT_OK)
            await writer.drain()
    writer.close()


def _bind(settings: ContainerSettings) -> socket.socket:
    try:
        return socket.create_server((settings.host, settings.port), backlog=128)
    except OSError as fault:
        raise ConfigError(
            f"cannot listen on {settings.host}:{settings.port} ({os.strerror(fault.errno or 0)})",
            field="AIP_HTTP_PORT",
            remedy="give a port that is free",
        ) from fault


if __name__ == "__main__":
    sys.exit(main())
