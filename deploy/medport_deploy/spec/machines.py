"""Which accelerators a machine type comes with: what a server would refuse late.

The tables are a reading of Google's public documentation of 2026-11, written by hand and checked against no API.
Source: Compute Engine, GPU machine types; ``AcceleratorType`` of
google-cloud-aiplatform 2.7.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from datetime import date

AS_OF = date(2026, 11, 1)
"""When the tables were true."""

_FIXED: Mapping[str, tuple[str, int]] = {
    **{f"g2-standard-{size}": ("NVIDIA_L4", 1) for size in (4, 8, 12, 16, 32)},
    "g2-standard-24": ("NVIDIA_L4", 2),
    "g2-standard-48": ("NVIDIA_L4", 4),
    "g2-standard-96": ("NVIDIA_L4", 8),
    **{f"a2-highgpu-{count}g": ("NVIDIA_TESLA_A100", count) for count in (1, 2, 4, 8)},
    "a2-megagpu-16g": ("NVIDIA_TESLA_A100", 16),
    **{f"a2-ultragpu-{count}g": ("NVIDIA_A100_80GB", count) for count in (1, 2, 4, 8)},
    **{f"a3-highgpu-{count}g": ("NVIDIA_H100_80GB", count) for count in (1, 2, 4, 8)},
    "a3-megagpu-8g": ("NVIDIA_H100_MEGA_80GB", 8),
    "a3-ultragpu-8g": ("NVIDIA_H200_141GB", 8),
    "a4-highgpu-8g": ("NVIDIA_B200", 8),
}
_N1 = re.compile(r"n1-(standard|highmem|highcpu)-(2|4|8|16|32)")
_ON_N1: Mapping[str, tuple[int, ...]] = {
    "NVIDIA_TESLA_T4": (1, 2, 4),
    "NVIDIA_TESLA_P4": (1, 2, 4),
    "NVIDIA_TESLA_P100": (1, 2, 4),
    "NVIDIA_TESLA_V100": (1, 2, 4, 8),
}
_PROCESSORS_ALONE = re.compile(
    r"(n1|n2|n2d|e2|c3|n4)-(standard|highmem|highcpu)-(2|4|8|16|22|32|44|48|64|80|88|96|128)|c2-standard-(4|8|16|30|60)"
)
_NAMES = (*_FIXED, *(f"n1-standard-{size}" for size in (2, 4, 8, 16, 32)))


def fault_of(machine: str, accelerator: str | None, count: int) -> str | None:
    """What is wrong with a machine and what is put into it; ``None`` if nothing is.

    Args:
        machine: a machine type, such as ``g2-standard-24``.
        accelerator: such as ``NVIDIA_L4``; ``None`` for none.
        count: of the accelerators; 0 for none.
    """
    if (accelerator is None) != (count == 0):
        return "needs an accelerator and its count, or neither"
    if (fixed := _FIXED.get(machine)) is not None:
        wanted = f"{machine} comes with {fixed[1]} {fixed[0]}"
        return None if (accelerator, count) == fixed else f"{wanted}: say so (accelerator, count)"
    if accelerator is None:
        return None if _PROCESSORS_ALONE.fullmatch(machine) or _N1.fullmatch(machine) else unlisted(machine)
    if _N1.fullmatch(machine):
        counts = _ON_N1.get(accelerator)
        if counts is None:
            return f"{machine} takes no {accelerator}, but one of {', '.join(_ON_N1)}"
        return None if count in counts else f"takes {', '.join(map(str, counts))} of {accelerator}, not {count}"
    if _PROCESSORS_ALONE.fullmatch(machine):
        return f"{machine} takes no accelerators"
    return unlisted(machine)


def is_listed(machine: str) -> bool:
    """Whether the table speaks of a machine type."""
    return machine in _FIXED or bool(_N1.fullmatch(machine) or _PROCESSORS_ALONE.fullmatch(machine))


def unlisted(machine: str) -> str:
    """The sentence about a machine type that the table does not hold."""
    near = difflib.get_close_matches(machine, _NAMES, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{machine:.60} is in no table of {AS_OF:%Y-%m} here{meant}"
