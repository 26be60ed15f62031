"""One fetch: for which field, until when and how much; and how its failures are told."""

from __future__ import annotations

import time
from dataclasses import dataclass

from medport_local.serving.fetch.errors import FetchCode, FetchError

MIB = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchLimits:
    """What one fetch may cost."""

    max_bytes: int = 64 * MIB
    """Of one object: a file, or one DICOM instance."""
    max_series_bytes: int = 512 * MIB
    """Of all instances of a series together. They are held in memory at once."""
    max_instances: int = 2000
    timeout_s: float = 30.0
    """For the whole of one fetch, redirects included; a request's own deadline may shorten it."""
    write_timeout_s: float = 600.0
    """For the whole of one write to a bucket."""
    max_redirects: int = 3


DEFAULT_LIMITS = FetchLimits()


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """What the layers below a fetch must know of it."""

    field: str
    """The request's field, which errors name."""
    refusal: FetchCode
    """The code for what this server does not fetch."""
    deadline: float
    """In ``time.monotonic()``."""
    max_bytes: int
    """Of one answer's body."""

    def remaining(self) -> float:
        """Seconds left, always above 0.

        Raises:
            FetchError: none is left.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise self.late()
        return left

    def late(self) -> FetchError:
        return self.failed("fetching it took too long", "send the image itself, or use a nearer store")

    def too_large(self) -> FetchError:
        return self.refused(f"is larger than {self.max_bytes // MIB} MiB", "send a smaller file")

    def refused(self, message: str, remedy: str | None = None, *, code: FetchCode | None = None) -> FetchError:
        """This server does not fetch that."""
        return FetchError(message, code=code or self.refusal, field=self.field, remedy=remedy)

    def failed(self, message: str, remedy: str | None = None) -> FetchError:
        """The other side could not be reached, or did not give it."""
        return FetchError(message, code="HTTP_ERROR", field=self.field, remedy=remedy)

    def unauthorised(self, message: str, remedy: str | None = None) -> FetchError:
        """The credential is not one, may not be sent there, or was not accepted."""
        return FetchError(message, code="INVALID_CREDENTIALS_ERROR", field=self.field, remedy=remedy)

    def refused_status(self, host: str, status: int) -> FetchError:
        """The error for an answer that is not a success."""
        if status in (401, 403):
            return self.unauthorised(
                f"{host} answered {status}", "send an access_credential that may read it, and that has not expired"
            )
        return self.failed(f"{host} answered {status}")
