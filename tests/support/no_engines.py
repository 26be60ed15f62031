"""A host that starts no engines: for what the control plane keeps, not for what answers."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable, Set
from dataclasses import dataclass, field

from medport.errors import MedportError, ServerError
from medport_local.control.host import Intent


@dataclass(frozen=True, eq=False)
class NoEngine:
    """What stands for an engine."""

    intent: Intent

    @property
    def key(self) -> tuple[str, str]:
        """Endpoint id and deployed model id."""
        return self.intent.endpoint.rpartition("/")[2], self.intent.deployed_model_id


@dataclass
class NoEngines:
    """Notes what is started and stopped; may be told to fail, or to hold starts up until they are let go."""

    running: list[NoEngine] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """``started e/1`` and ``stopped e/1``, in order."""
    failures: dict[str, MedportError | Exception] = field(default_factory=dict)
    """By deployed model id, or ``*`` for any: what a start fails with."""
    kept: set[str] = field(default_factory=set)
    """Snapshots that are held."""
    heedless: bool = False
    """Whether a start goes on although it is cancelled, as an engine may that looks seldom."""

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._go = threading.Event()
        self._go.set()
        self.starting = threading.Semaphore(0)
        """Released once for each start that begins."""

    def hold(self) -> None:
        """Let starts wait from here on."""
        self._go.clear()

    def let_go(self) -> None:
        """Let starts go on."""
        self._go.set()

    def keys(self) -> list[str]:
        """``endpoint/id`` of what runs, sorted."""
        with self._lock:
            return sorted("/".join(each.key) for each in self.running)

    def resolve(self, intent: Intent) -> str:
        """A hash made from the version's name."""
        return hashlib.sha256(f"{intent.model}@{intent.model_version_id}".encode()).hexdigest()

    def start(self, intent: Intent, cancelled: Callable[[], bool]) -> NoEngine:
        """Start nothing, and note it."""
        self.starting.release()
        while not self._go.wait(0.01):
            if cancelled() and not self.heedless:
                raise ServerError("told to leave off")
        failure = self.failures.get(intent.deployed_model_id, self.failures.get("*"))
        if failure is not None:
            raise failure
        engine = NoEngine(intent)
        with self._lock:
            assert engine.key not in [each.key for each in self.running], "two engines of one deployed model"
            self.running.append(engine)
            self._note("started", engine)
        return engine

    def keep(self, snapshots: Set[str]) -> None:
        """Note what is held."""
        self.kept = set(snapshots)

    def stop(self, running: NoEngine) -> None:
        """Stop what was started, and note it."""
        with self._lock:
            self.running.remove(running)
            self._note("stopped", running)

    def _note(self, what: str, engine: NoEngine) -> None:
        self.notes.append(f"{what} {'/'.join(engine.key)}")
