"""Which quotas a plan needs, how much of them at its peak, and whether there is as much.

A canary needs two fleets at once, so the peak is not the end. Google tells a project's limits; what others in the
project use of them is not asked.

Source: Service Usage API v1beta1, services.consumerQuotaMetrics; Vertex AI, quotas of custom model serving.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol
from urllib.parse import quote

from medport import _extras
from medport.errors import MedportError, NotFound, ProtocolError, QuotaExceeded
from medport.wire.vertex import error_from
from medport_deploy.control.errors import translated
from medport_deploy.plan.capacity import Capacity, Machines

SERVICE = "aiplatform.googleapis.com"
_ADDRESS = "https://serviceusage.googleapis.com"
_UNLIMITED = -1
_TIMEOUT_S = 15.0
# Spelt otherwise than AcceleratorType. What is not here has a name that is not known here.
_ACCELERATORS: Mapping[str, str] = {
    "NVIDIA_L4": "nvidia_l4_gpus",
    "NVIDIA_TESLA_T4": "nvidia_t4_gpus",
    "NVIDIA_TESLA_P4": "nvidia_p4_gpus",
    "NVIDIA_TESLA_P100": "nvidia_p100_gpus",
    "NVIDIA_TESLA_V100": "nvidia_v100_gpus",
    "NVIDIA_TESLA_A100": "nvidia_a100_gpus",
    "NVIDIA_A100_80GB": "nvidia_a100_80gb_gpus",
    "NVIDIA_H100_80GB": "nvidia_h100_gpus",
    "NVIDIA_H200_141GB": "nvidia_h200_gpus",
}
_PROCESSORS = re.compile(r"[a-z0-9]+-(?:standard|highmem|highcpu)-(\d+)")


class Limits(Protocol):
    """Where limits are read."""

    def limit(self, metric: str, location: str) -> int | None:
        """Of a metric in a location; ``None``: there is none. Raises errors of ours."""
        ...


@dataclass(frozen=True, slots=True)
class Headroom:
    """One quota."""

    metric: str
    """Its name with the service, or a sentence where the name is not known."""
    now: int
    """What this deployment uses, as far as can be seen."""
    peak: int
    """What it needs at once, at least, while the plan is done."""
    most: int
    """What it needs at once if every fleet grows to its maximum."""
    limit: int | None = None
    """Of the project in the location; ``None``: unlimited, or not read."""
    unread: str | None = None
    """Why the limit is not read."""

    @property
    def short(self) -> bool:
        """Whether the plan cannot be done with this limit."""
        return self.limit is not None and self.peak > self.limit


class ServiceUsage:
    """The limits of a project, as Google tells them.

    Args:
        credentials: of google-auth.
        address: of the Service Usage API.
    """

    def __init__(self, project: str, credentials: Any, *, address: str = _ADDRESS) -> None:
        self._project = project
        self._address = address.rstrip("/")
        self._session = _extras.load("google.auth.transport.requests", extra="deploy").AuthorizedSession(
            credentials
        )

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def limit(self, metric: str, location: str) -> int | None:
        """See ``Limits.limit``."""
        path = (
            f"/v1beta1/projects/{self._project}/services/{SERVICE}/consumerQuotaMetrics/{quote(metric, safe='')}"
        )
        doing = "read a quota"
        with translated(doing):
            answer = self._session.get(self._address + path, timeout=_TIMEOUT_S)
        if answer.status_code != 200:
            raise error_from(answer.status_code, answer.content)
        try:
            return _effective(answer.json(), location)
        except (ValueError, TypeError, AttributeError, KeyError):
            raise ProtocolError(f"{doing}: the answer cannot be read", field=metric) from None


def needs(capacity: Capacity) -> tuple[Headroom, ...]:
    """Which quotas a plan needs, without their limits."""
    metrics = sorted({metric for phase in capacity.phases for each in phase if (metric := _metric(each))})
    return tuple(
        Headroom(
            metric=metric,
            now=_sum(capacity.now, metric, most=False),
            peak=max(_sum(phase, metric, most=False) for phase in capacity.phases),
            most=max(_sum(phase, metric, most=True) for phase in capacity.phases),
        )
        for metric in metrics
    )


def headroom(found: Iterable[Headroom], limits: Limits | None, location: str) -> tuple[Headroom, ...]:
    """The same with their limits. What cannot be read is no failure: the reason is told.

    Args:
        limits: ``None``: nobody is to be asked.
    """
    return tuple(_with_limit(each, limits, location) for each in found)


def require(found: Iterable[Headroom], location: str) -> None:
    """Refuse to begin what a limit will stop half way.

    Raises:
        QuotaExceeded: a limit is lower than the peak. Names metric and numbers.
    """
    for each in found:
        if each.short:
            raise QuotaExceeded(
                f"{each.metric} is {each.limit} in {location}, and {each.peak} are needed at once",
                field="quota",
                remedy="ask for more of it, take strategy: recreate, which needs one fleet at a time,"
                " or another machine or location",
            )


def _with_limit(found: Headroom, limits: Limits | None, location: str) -> Headroom:
    limit, unread = None, None
    if limits is None:
        unread = "not asked"
    elif not found.metric.startswith(SERVICE):
        unread = "its name is not known here"
    else:
        try:
            limit = limits.limit(found.metric, location)
        except MedportError as fault:
            unread = fault.message
    return Headroom(found.metric, found.now, found.peak, found.most, limit, unread)


def _metric(machine: Machines) -> str | None:
    if machine.accelerator is None:
        return f"{SERVICE}/custom_model_serving_cpus" if _PROCESSORS.fullmatch(machine.machine_type) else None
    name = _ACCELERATORS.get(machine.accelerator)
    return f"{SERVICE}/custom_model_serving_{name}" if name else f"serving quota of {machine.accelerator}"


def _sum(machines: Iterable[Machines], metric: str, *, most: bool) -> int:
    return sum((each.most if most else each.least) * _units(each) for each in machines if _metric(each) == metric)


def _units(machine: Machines) -> int:
    """What one machine takes of its quota: accelerators, or processors where it has none."""
    if machine.accelerator is not None:
        return machine.count
    found = _PROCESSORS.fullmatch(machine.machine_type)
    return int(found[1]) if found else 0


def _effective(said: Mapping[str, Any], location: str) -> int | None:
    """The limit of a location: its own, else that of all locations."""
    regional = [each for each in said.get("consumerQuotaLimits", ()) if "{region}" in each.get("unit", "")]
    buckets = [bucket for each in regional for bucket in each.get("quotaBuckets", ())]
    here = [each for each in buckets if each.get("dimensions", {}) == {"region": location}]
    everywhere = [each for each in buckets if not each.get("dimensions")]
    for each in (*here, *everywhere):
        # proto3 JSON writes int64 as text and leaves a zero out.
        limit = int(each.get("effectiveLimit", 0))
        return None if limit == _UNLIMITED else limit
    raise NotFound("the quota has no limit for this location", field="location", remedy=f"is {location} right?")
