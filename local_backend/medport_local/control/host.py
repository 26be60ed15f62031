"""What the control plane asks of whoever runs engines. It knows neither torch nor HTTP."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Set
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Intent:
    """All that is needed to start an engine, again after a restart too. Kept as JSON with the deployment."""

    endpoint: str
    """Resource name."""
    deployed_model_id: str
    model: str
    """Resource name without a version."""
    model_version_id: str
    display_name: str
    """The deployed model's."""
    version: Mapping[str, Any] = field(default_factory=dict)
    """The Model version as a GET shows it: containerSpec, artifactUri, labels …; versions do not change."""
    dedicated: bool = True
    """Whether the endpoint has a DNS name of its own."""
    snapshot_sha256: str = ""
    """What ``resolve`` found, so that a restart starts the same bytes."""


class Host(Protocol[T]):
    """Starts and stops engines. Called in worker threads; several calls may run at once."""

    def resolve(self, intent: Intent) -> str:
        """The sha256 of the snapshot that a model version means. Quick: nothing is loaded.

        Raises:
            VerificationError, NotFound, ConfigError: there is none, or the version contradicts itself.
        """
        ...

    def start(self, intent: Intent, cancelled: Callable[[], bool]) -> T:
        """Verify the snapshot, load the engine, see that it is healthy.

        Raises:
            VerificationError, ConfigError, QuotaExceeded, MedportError: why not. Nothing is left running.
        """
        ...

    def keep(self, snapshots: Set[str]) -> None:
        """Let nothing remove these snapshots: they are deployed, with an engine or asleep.

        What an earlier call kept and this does not name is given up. Never called twice at once.

        Args:
            snapshots: sha256s.
        """
        ...

    def stop(self, running: T) -> None:
        """End an engine whose requests are over, and give its memory back."""
        ...
