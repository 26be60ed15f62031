"""Engines for deployed models: a Model version → a verified snapshot → an engine that has answered once.

torch is loaded with the first engine: a control plane without engines starts at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Set
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeVar

from medport.errors import MedportError, NotReady, QuotaExceeded, ServerError, VerificationError
from medport.wire.vertex import Pins, from_label
from medport_local.byte_sizes import format_size
from medport_local.control.host import Intent
from medport_local.control.resources import DIALECT_LABEL
from medport_local.engine.embedding_queue import EmbedderLimits
from medport_local.engine.protocol import EngineLimits
from medport_local.model_options import ModelOptions
from medport_local.serving import chat, embed
from medport_local.serving.endpoints import DEDICATED, SHARED, Bounds, Dialect, Served, Threads
from medport_local.serving.fetch import Fetcher
from medport_local.serving.outcome import Facts
from medport_local.shelf import Known, Shelf
from medport_local.snapshot import Snapshot
from medport_local.version_snapshot import snapshot_of

if TYPE_CHECKING:
    from medport_local.engine.sealed import SealedWeights

T = TypeVar("T")

PROBE_S = 120.0
"""For the first answer of an engine: it may have to warm up kernels."""
_LOCK_IN_NAME = re.compile(r"\bmp1\.([a-z2-7]{52})\b")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class HostOptions:
    """How this server runs whatever is deployed to it."""

    models: ModelOptions = field(default_factory=ModelOptions)
    engine_limits: EngineLimits = field(default_factory=EngineLimits)
    embedder_limits: EmbedderLimits = field(default_factory=EmbedderLimits)
    image_digest: str | None = None
    """sha256 of the container image that the server runs in, 64 hex digits."""


@dataclass(slots=True, eq=False)
class _Running:
    """What an engine holds beside itself."""

    snapshot: Snapshot
    held: ExitStack


class EngineHost:
    """A ``control.host.Host`` that starts engines in this process.

    Deployments of one snapshot share its verified weights where engines compute on the CPU.
    """

    def __init__(self, shelf: Shelf, threads: Threads, fetcher: Fetcher, options: HostOptions) -> None:
        self._shelf = shelf
        self._threads = threads
        self._fetcher = fetcher
        self._options = options
        self._lock = threading.Lock()
        self._loading = threading.Lock()
        """One at a time: two that look for free memory at once would both find it."""
        self._kept: dict[str, ExitStack] = {}
        """What is deployed, engine or not, by the sha256 of the snapshot."""
        self._running: dict[int, _Running] = {}
        """By the identity of what was started."""
        self._users: Counter[str] = Counter()
        """Engines by the sha256 of their snapshot."""
        self._sealed: SealedWeights | None = None

    def resolve(self, intent: Intent) -> str:
        """See ``Host.resolve``. Raises as ``version_snapshot.snapshot_of`` too."""
        return self._known(intent).snapshot_sha256

    def start(self, intent: Intent, cancelled: Callable[[], bool]) -> Served:
        """See ``Host.start``. Says nothing of paths: what it raises is answered to callers.

        Raises:
            QuotaExceeded: the memory that is free does not hold the weights.
            NotReady: ``cancelled`` while it was loaded.
        """
        try:
            return self._start(intent, cancelled)
        except BaseException as fault:
            _let_go(fault)
            raise

    def keep(self, snapshots: Set[str]) -> None:
        """See ``Host.keep``."""
        for gone in self._kept.keys() - snapshots:
            self._kept.pop(gone).close()
        for sha256 in snapshots - self._kept.keys():
            self._kept[sha256] = held = ExitStack()
            try:
                self._shelf.hold(sha256, held)
            except (MedportError, OSError) as fault:
                logger.warning("snapshot %.12s is not held against gc: %s", sha256, type(fault).__name__)

    def stop(self, running: Served) -> None:
        """See ``Host.stop``."""
        with self._lock:
            found = self._running.pop(id(running))
        found.held.close()
        logger.info("deployed model %s is stopped", running.deployed_model_id)

    def _start(self, intent: Intent, cancelled: Callable[[], bool]) -> Served:
        known = self._known(intent)
        dialect = _dialect(intent, known)
        with ExitStack() as held:
            snapshot = self._shelf.open(known, held)
            if snapshot.snapshot_sha256 != known.snapshot_sha256:
                raise VerificationError(
                    "changed while it was opened",
                    field="artifactUri",
                    remedy="stop whatever writes there, then deploy it again",
                )
            pins = _pins(intent, snapshot, self._options.image_digest)
            with self._loading:
                _go_on(cancelled)
                engine, seals = self._loaded(snapshot)
                held.callback(self._forget, snapshot, seals=seals)
                held.callback(engine.close)
            served = Served(
                endpoint_id=intent.endpoint.rpartition("/")[2],
                dialect=dialect,
                engine=engine,
                threads=self._threads,
                fetcher=self._fetcher,
                deployed_model_id=intent.deployed_model_id,
                model=intent.model,
                model_version_id=intent.model_version_id,
                model_display_name=snapshot.model_id,
                pins=pins,
                bounds=_bounds(intent),
                since=int(time.time()),
                resource_display_name=str(intent.version.get("displayName", "")),
            )
            _go_on(cancelled)
            _probe(served)
            with self._lock:
                self._running[id(served)] = _Running(snapshot, held.pop_all())
        logger.info(
            "deployed model %s is ready: %s, sha256 %.12s",
            intent.deployed_model_id, snapshot.model_id, snapshot.snapshot_sha256,
        )  # fmt: skip
        return served

    def _known(self, intent: Intent) -> Known:
        return snapshot_of(intent.version, self._shelf, pinned=intent.snapshot_sha256)

    def _loaded(self, snapshot: Snapshot) -> tuple[Any, bool]:
        """An engine, and whether it shares its weights."""
        # Here and not above: they load torch.
        from medport_local.engine import devices
        from medport_local.engine.sealed import SealedWeights
        from medport_local.opening import open_model

        options = self._options.models
        device = devices.choose(options.device)
        # A card has a copy of its own: what is kept in the host's memory would come on top.
        seals = device.type == "cpu" and options.engine == "torch"
        with self._lock:
            if seals and self._sealed is None:
                self._sealed = SealedWeights()
            shared = seals and self._users[snapshot.snapshot_sha256] > 0
        needed = 0 if shared else sum(snapshot.files[shard].size_bytes for shard in snapshot.shards)
        free = devices.describe(device).free_bytes
        if needed > free:
            raise QuotaExceeded(
                f"{snapshot.model_id} needs {format_size(needed)} of memory for its weights, "
                f"and {format_size(free)} are free on {device.type}",
                field="dedicatedResources",
                remedy="undeploy another model first, or deploy it to a larger machine",
            )
        with self._lock:
            self._users[snapshot.snapshot_sha256] += 1
        try:
            opened = open_model(
                snapshot,
                replace(options, sealed=self._sealed if seals else None),
                engine_limits=self._options.engine_limits,
                embedder_limits=self._options.embedder_limits,
            )
        except BaseException:
            self._forget(snapshot, seals=seals)
            raise
        return opened.engine, seals

    def _forget(self, snapshot: Snapshot, *, seals: bool) -> None:
        """Give up what is kept of a snapshot's weights once no engine uses it."""
        with self._lock:
            self._users[snapshot.snapshot_sha256] -= 1
            if self._users[snapshot.snapshot_sha256] == 0:
                del self._users[snapshot.snapshot_sha256]
                if seals and self._sealed is not None:
                    self._sealed.drop(snapshot)


@dataclass(slots=True, eq=False)
class _Prober:
    """Who asks, when it is the server itself."""

    deadline: float | None
    tenant: str = ""
    facts: Facts = field(default_factory=Facts)
    answer_headers: dict[str, str] = field(default_factory=dict)

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        return await asyncio.wait_for(work, PROBE_S)

    def first_token(self) -> None:
        pass


def _probe(served: Served) -> None:
    """Ask for one short answer. Raises ``ServerError`` if none comes."""
    try:
        asyncio.run(_asked(served, _Prober(time.monotonic() + PROBE_S)))
    except (MedportError, TimeoutError) as fault:
        raise ServerError(f"the engine was loaded and does not answer ({type(fault).__name__})") from fault
    if not served.engine.healthy:
        raise ServerError("the engine was loaded and is not healthy")


async def _asked(served: Served, prober: _Prober) -> None:
    if served.embedder is not None:
        await embed.texts(prober, served.embedder, ["ready"])
        return
    said = [{"role": "user", "content": [{"type": "text", "text": "ready"}]}]
    instance = {"@requestFormat": "chatCompletions", "messages": said, "max_tokens": 1}
    await chat.predict(prober, served, served.generator, [instance])


def _let_go(fault: BaseException) -> None:
    """Drop what the frames of an exception hold: weights, for as long as somebody keeps the exception."""
    each: BaseException | None = fault
    while each is not None:
        traceback.clear_frames(each.__traceback__)
        each = each.__cause__ or each.__context__


def _go_on(cancelled: Callable[[], bool]) -> None:
    if cancelled():
        raise NotReady("the deployment was cancelled")


def _dialect(intent: Intent, known: Known) -> Dialect:
    if known.family == "medsiglip":
        return "medsiglip"
    wanted = {_label(intent, DIALECT_LABEL), _env(intent).get("MEDPORT_DIALECT")} - {None, ""}
    if not wanted <= {"vllm", "dicom"} or len(wanted) > 1:
        raise VerificationError(
            "is neither vllm nor dicom, or is said twice and differs",
            field=f"labels {DIALECT_LABEL}",
            remedy="upload a version with one of them",
        )
    return "dicom" if "dicom" in wanted else "vllm"


def _pins(intent: Intent, snapshot: Snapshot, image: str | None) -> Pins:
    """Which bytes answer. Only what is true of this server: the image is the one that it runs in."""
    _, _, asked = str((intent.version.get("containerSpec") or {}).get("imageUri", "")).partition("@sha256:")
    if image and asked and asked != image:
        raise VerificationError(
            f"says sha256:{asked:.64}, and this server runs in sha256:{image}",
            field="containerSpec.imageUri",
            remedy="start the image that the version names, or upload a version that names this one",
        )
    return Pins(
        model_id=snapshot.model_id,
        revision=snapshot.revision,
        image_digest=image,
        snapshot_sha256=snapshot.snapshot_sha256,
        lock_id=_lock_id(intent),
        notice=snapshot.notice,
        parent=snapshot.parent,
    )


def _lock_id(intent: Intent) -> str | None:
    """Of the lock that the version was uploaded from: its label, or the token in the deployed model's name."""
    named = _LOCK_IN_NAME.search(intent.display_name)
    found = {
        place: from_label(text)
        for place, text in (
            ("labels medport-lock", _label(intent, "medport-lock")),
            ("deployedModel.displayName", named and named[1]),
        )
        if text
    }
    if len(set(found.values())) > 1:
        raise VerificationError(
            "the version's label medport-lock and the deployed model's displayName name two locks",
            field="deployedModel.displayName",
            remedy="deploy it with the lock that the version was made from",
        )
    return next(iter(found.values()), None)


def _bounds(intent: Intent) -> Bounds:
    return DEDICATED if intent.dedicated else SHARED


def _label(intent: Intent, key: str) -> str | None:
    labels: Mapping[str, str] = intent.version.get("labels") or {}
    return labels.get(key)


def _env(intent: Intent) -> dict[str, str]:
    spec = intent.version.get("containerSpec") or {}
    return {each["name"]: each.get("value", "") for each in spec.get("env", ())}
