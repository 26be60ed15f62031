"""What a model runs on and what it may take, told when the server is ready."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from medport_local.byte_sizes import format_size
from medport_local.engine import devices
from medport_local.engine.agreement import Agreement
from medport_local.engine.engine import EngineLimits
from medport_local.engine.footprint import Footprint
from medport_local.engine.kernels import Int8
from medport_local.engine.loading import Gemma

REQUEST_TOKENS = 8192
"""The size of request that room is told in, or the model's context where that is smaller."""

Limit = Literal["max-running", "kv-cache", "memory"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Memory that is declared for requests, and how many fit into it."""

    kv_bytes: int
    """For keys and values: rings of the sliding layers and the arena of the global ones, and what is shared."""
    rings_bytes: int
    arena_bytes: int
    shared_bytes: int
    """For prompt beginnings and image features that several requests use."""
    request_tokens: int
    """Prompt and answer of the requests that are counted here."""
    requests_at_once: int
    limited_by: Limit
    """What keeps it from being more: ``--max-running``, ``--kv-cache``, or the memory that was free."""

    @classmethod
    def of(cls, footprint: Footprint, limits: EngineLimits, *, max_context: int) -> Room:
        """The room of an engine."""
        tokens = min(REQUEST_TOKENS, max_context)
        at_once = footprint.requests_of(tokens)
        limited_by: Limit = "memory" if limits.kv_bytes is None else "kv-cache"
        return cls(
            kv_bytes=footprint.total_bytes,
            rings_bytes=footprint.slots * footprint.ring_bytes,
            arena_bytes=footprint.tokens * footprint.token_bytes,
            shared_bytes=footprint.shared_bytes,
            request_tokens=tokens,
            requests_at_once=at_once,
            limited_by="max-running" if at_once >= limits.max_running else limited_by,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Standing:
    """One model that is served."""

    model_id: str
    engine: Literal["torch", "vllm"]
    device: str
    """As ``--device`` takes it; of vLLM, as vLLM says it."""
    device_name: str
    """Of the processor or card."""
    dtype: str
    """Of the arithmetic: ``float32`` or ``bfloat16``."""
    int8: bool = False
    """Whether the language model's weights are int8."""
    weights_bytes: int
    """In memory, adapters included."""
    room: Room | None = None
    """``None`` where nothing is declared in advance."""
    reuse_bytes: int = 0
    """What may be kept of requests that are over; 0 is nothing."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters by name, and the sha256 of each."""
    agreement: Agreement | None = None
    """How bfloat16 compared with float32, where that was measured."""

    def as_json(self) -> dict[str, Any]:
        """For the line of JSON; keys are promised."""
        return asdict(self)

    def lines(self) -> list[str]:
        """For people."""
        number = f"{self.dtype}, int8 weights" if self.int8 else self.dtype
        found = [
            f"{self.engine} on {self.device} ({self.device_name}), {number}, "
            f"{format_size(self.weights_bytes)} of weights"
        ]
        if (room := self.room) is not None:
            found.append(
                f"{format_size(room.kv_bytes)} for keys and values: {room.requests_at_once} requests of "
                f"{room.request_tokens} tokens at once, limited by {_LIMITS[room.limited_by]}"
            )
            kept = f"up to {format_size(self.reuse_bytes)} for the same key" if self.reuse_bytes else "nothing"
            found.append(f"kept of a request once it is over: {kept}")
        if self.adapters:
            found.append("adapters: " + ", ".join(f"{name} {sha[:12]}" for name, sha in self.adapters.items()))
        if (measured := self.agreement) is not None:
            found.append(
                f"bfloat16 against float32 on {measured.probes} probes: cosine at least "
                f"{measured.min_cosine:.6f}, {measured.speedup:.2f} times as fast"
            )
        return found


_LIMITS: Mapping[Limit, str] = {
    "max-running": "--max-running",
    "kv-cache": "--kv-cache",
    "memory": "the memory that was free",
}


def device_name(device: torch.device) -> str:
    """Of the processor or card, such as ``NVIDIA H100``."""
    return devices.describe(device).name


def dtype_name(dtype: torch.dtype) -> str:
    """``float32``, ``bfloat16``."""
    return str(dtype).removeprefix("torch.")


def weights_bytes(gemma: Gemma) -> int:
    """What a model's weights take in memory, each counted once."""
    plain: int = sum(each.nbytes for each in gemma.model.parameters() if not each.is_meta)
    short: dict[int, Int8] = {id(each): each for each in gemma.int8.values()}
    return plain + sum(each.weight.nbytes + each.scale.nbytes for each in short.values())
