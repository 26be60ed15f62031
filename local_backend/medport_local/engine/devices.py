"""Where a model runs: the device by name or by what there is, and how much memory it has."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from medport.errors import ConfigError

_NAME = re.compile(r"cpu|mps|cuda(?::(\d{1,3}))?")
_SYSTEM = Path("/")


@dataclass(frozen=True, slots=True)
class DeviceFacts:
    """A device and its memory."""

    name: str
    """Of the processor or card, such as ``NVIDIA H100``."""
    total_bytes: int
    """What this process could ever have: less than is built in where a container or the system sets a limit."""
    free_bytes: int
    """What it can still take now."""


def choose(name: str | None) -> torch.device:
    """The device of that name; without one the first CUDA card, else Apple's GPU, else the CPU.

    Args:
        name: ``cpu``, ``cuda``, ``cuda:1`` or ``mps``.

    Returns:
        Always with its number for CUDA, so that it equals a tensor's device.

    Raises:
        ConfigError: there is no such device here.
    """
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    named = _NAME.fullmatch(name)
    if named is None:
        raise ConfigError(f"{name:.40} is no device", field="device", remedy="give cpu, cuda, cuda:1 or mps")
    if name == "mps" and not torch.backends.mps.is_available():
        raise ConfigError("there is no Apple GPU that torch can use", field="device", remedy="give cpu")
    if name.startswith("cuda"):
        return _card(int(named[1] or 0))
    return torch.device(name)


def describe(device: torch.device) -> DeviceFacts:
    """What a device that ``choose`` gave is and has."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return DeviceFacts(torch.cuda.get_device_name(device), total, free)
    if device.type == "mps":
        total = torch.mps.recommended_max_memory()
        return DeviceFacts(_processor(_SYSTEM), total, max(0, total - torch.mps.driver_allocated_memory()))
    total, free = _host_memory(_SYSTEM)
    for limit, used in _limits(_SYSTEM):
        total, free = min(total, limit), min(free, max(0, limit - used))
    return DeviceFacts(_processor(_SYSTEM), total, free)


def wait(device: torch.device) -> None:
    """Until the device has done what it was given: only then does a clock say how long that took."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def attention(device: torch.device) -> AbstractContextManager[object]:
    """While it is open, torch chooses among the attentions that suit an engine.

    cuDNN's makes a plan for each number of keys that it has not seen, and in a decode step the number is another
    each time: such a step of a 4B model took 90 ms on an H100, of which 14 were the card's.
    """
    if device.type != "cuda":
        return nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def _card(number: int) -> torch.device:
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if number >= count:
        there = f"{count} there" if count else "none that torch can use"
        remedy = "give cuda:0" if count else "give cpu, or install the driver and a torch built for CUDA"
        raise ConfigError(f"there is no CUDA card {number}: {there}", field="device", remedy=remedy)
    return torch.device("cuda", number)


def _host_memory(system: Path) -> tuple[int, int]:
    try:
        facts = dict(line.split(":", 1) for line in (system / "proc/meminfo").read_text().splitlines())
        total, free = (int(facts[key].split()[0]) * 1024 for key in ("MemTotal", "MemAvailable"))
    except (OSError, KeyError):
        total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        # Not told without Linux's file; what the system itself and others use is left to them.
        free = total // 2
    return total, free


def _limits(system: Path) -> Iterator[tuple[int, int]]:
    """Limit and use in bytes of each control group that this process is in, and of those around it.

    Source: docs.kernel.org, admin-guide/cgroup-v2 (``memory.max``, ``memory.current``) and cgroup-v1/memory.
    """
    try:
        lines = (system / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, names = system / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            root = system / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        inside = Path(path.lstrip("/"))
        # A container sees its own group as the root, whatever path it is told.
        for group in dict.fromkeys((root / inside, *(root / parent for parent in inside.parents), root)):
            found = _group(group, *names)
            if found is not None:
                yield found


def _group(group: Path, limit: str, usage: str, inactive: str) -> tuple[int, int] | None:
    try:
        most, used = (group / limit).read_text().strip(), int((group / usage).read_text())
        if most == "max":
            return None
        # Files that were read count as used, and go as soon as memory is wanted.
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return int(most), max(0, used - int(statistics.get(inactive, 0)))
    except (OSError, ValueError):
        return None


def _processor(system: Path) -> str:
    try:
        lines = (system / "proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
