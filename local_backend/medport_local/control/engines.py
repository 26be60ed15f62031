"""The engines of deployed models: started, put to sleep, woken, stopped; always beside what the disk says of them.

Nothing here relies on what a process remembers: each step is recorded before the next begins, and another process
may begin it again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any, Generic, TypeVar

from medport.errors import MedportError, NotReady, ServerError
from medport_local.control import deployed
from medport_local.control.database import Database, Transaction
from medport_local.control.deployed import Deployment
from medport_local.control.fleet import Fleet
from medport_local.control.host import Host, Intent
from medport_local.control.scaling import scaling_of
from medport_local.control.worker import LeftOff, Worker

T = TypeVar("T")
R = TypeVar("R")

ATTEMPTS = 3
"""Starts of an engine that ended with the whole process; then it is the engine's fault."""
AGAIN_S = 30.0
"""Before an engine that failed for a passing reason is tried again, or one that sleeps for any reason: each try
may read a whole snapshot."""

logger = logging.getLogger(__name__)


class Engines(Generic[T]):
    """What jobs do with engines. Those of one endpoint are never done side by side."""

    def __init__(self, database: Database, fleet: Fleet[T], host: Host[T], worker: Worker) -> None:
        self._database = database
        self._fleet = fleet
        self._host = host
        self._worker = worker

    def wake(self, endpoint: str, id_: str) -> None:
        """Start the engine of a model that is deployed and has none: it sleeps, or the server was restarted."""
        row = self.keep(lambda tx: deployed.find(tx, endpoint, id_))
        if row is None or not row.standing or self._fleet.has(endpoint, id_):
            return
        try:
            row = self.keep(lambda tx: _count(tx, endpoint, id_))
            running = self.start(row.intent, lambda: False)
        except MedportError as error:
            self._failed(endpoint, id_, error)
            return
        self.keep(lambda tx: change(tx, endpoint, id_, state="READY", attempts=0, last_error=None))
        self._fleet.install(endpoint, id_, running)
        self._fleet.reread(endpoint)

    def sleep(self, endpoint: str, id_: str) -> None:
        """Scale to zero, unless a request came in between."""
        running = self._fleet.doze(endpoint, id_)
        if running is None:
            return
        if not self.keep(lambda tx: _asleep(tx, endpoint, id_)):
            self._fleet.install(endpoint, id_, running)
            return
        self.end(running)
        self._fleet.reread(endpoint)

    def resolved(self, deployment: Deployment) -> Intent:
        """What is started, the first time and after each restart: the snapshot that the version meant first."""
        intent = deployment.intent
        if not intent.snapshot_sha256:
            intent = replace(
                intent, snapshot_sha256=self._asked(lambda: self._host.resolve(deployment.intent), intent)
            )
            self.keep(lambda tx: change(tx, intent.endpoint, intent.deployed_model_id, intent=intent))
        return intent

    def start(self, intent: Intent, unwanted: Callable[[], bool]) -> T:
        """An engine that runs. Whatever goes wrong is a ``MedportError``.

        Args:
            unwanted: asked now and then; true: leave off. The server's end is asked for too.
        """
        return self._asked(lambda: self._host.start(intent, lambda: self._worker.closing or unwanted()), intent)

    def _asked(self, what: Callable[[], R], intent: Intent) -> R:
        try:
            return what()
        except MedportError:
            raise
        except Exception as fault:
            # Its text may name a file or a path of this machine; the log has it for the operator.
            logger.error("the engine of %s failed", intent.model, exc_info=fault)
            raise ServerError(f"the engine failed with {type(fault).__name__}") from fault

    def end(self, running: T) -> None:
        """Stop an engine; one that fails at that is not needed any more either."""
        try:
            self._host.stop(running)
        except Exception as fault:
            logger.error("an engine could not be stopped", exc_info=fault)

    def remove(self, endpoint: str, id_: str) -> None:
        """Stop the engine of a deployed model, if it has one."""
        running = self._fleet.remove(endpoint, id_)
        if running is not None:
            self.end(running)

    def spare(self, endpoint: str, id_: str) -> None:
        """The server is stopped while it starts an engine: that is no attempt that failed."""
        with suppress(MedportError):
            self._database.write(lambda tx: change(tx, endpoint, id_, attempts=0))

    def keep(self, work: Callable[[Transaction], R]) -> R:
        """A transaction of a job that has gone too far to be refused: a full disk is waited for."""
        while True:
            try:
                return self._database.write(work)
            except NotReady as error:
                logger.error("the state cannot be kept: %s", error)
                if self._worker.pause(1.0):
                    raise LeftOff from error

    def _failed(self, endpoint: str, id_: str, error: MedportError) -> None:
        if self._worker.closing:
            self.spare(endpoint, id_)
            raise LeftOff
        logger.warning("deployed model %s could not be started: %s", id_, type(error).__name__)
        row = self.keep(lambda tx: change(tx, endpoint, id_, attempts=0, last_error=str(error)))
        again_s = AGAIN_S if row.state == "ASLEEP" or error.retryable else None
        self._fleet.failed(endpoint, id_, str(error), again_s=again_s)
        self._fleet.reread(endpoint)


def change(tx: Transaction, endpoint: str, id_: str, **fields: Any) -> Deployment:
    """Change fields of a deployment that is there."""
    row = deployed.find(tx, endpoint, id_)
    assert row is not None, "only a job of its endpoint's lane takes a deployment away"
    return deployed.update(tx, replace(row, **fields))


def _asleep(tx: Transaction, endpoint: str, id_: str) -> bool:
    """Note that a model sleeps, unless it shall have a replica since it was found idle."""
    row = deployed.find(tx, endpoint, id_)
    assert row is not None, "only a job of its endpoint's lane takes a deployment away"
    if not scaling_of(row.body).to_zero:
        return False
    deployed.update(tx, replace(row, state="ASLEEP"))
    return True


def _count(tx: Transaction, endpoint: str, id_: str) -> Deployment:
    row = deployed.find(tx, endpoint, id_)
    assert row is not None
    if row.attempts >= ATTEMPTS:
        raise ServerError(
            f"the server ended {ATTEMPTS} times while it loaded this model",
            remedy="restart the server to try again, or undeploy it",
        )
    return change(tx, endpoint, id_, attempts=row.attempts + 1)
