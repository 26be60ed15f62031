"""One request's state on its way through the engine. Plain Python, no tensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

from medport.errors import MedportError

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen and when to stop."""

    max_tokens: int
    temperature: float = 0.0
    """0 is greedy."""
    top_p: float = 1.0
    top_k: int = 0
    """0 or less: all tokens."""
    seed: int | None = None
    stop: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationRequest:
    """What to go on from, and how."""

    tokens: tuple[int, ...] = field(repr=False)
    images: tuple[Any, ...] = field(default=(), repr=False)
    """float32 ``[3, size, size]`` each, in the order of their places in ``tokens``."""
    sampling: Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One token's worth of progress."""

    text: str = field(default="", repr=False)
    """What became certain with this token; may be empty while a character or a stop string is incomplete."""
    logprob: float | None = None
    finish_reason: FinishReason | None = None
    """Set on the last event only."""
    completion_tokens: int = 0
    """Tokens generated so far, the end token included."""


@dataclass(slots=True, kw_only=True, eq=False)
class Sequence:
    """A request, what was generated for it, and where its events go."""

    id: int
    request: GenerationRequest
    deliver: Callable[[Event | MedportError], None] = field(repr=False)
    """Called from the device thread; must not block."""
    queued_at: float = 0.0
    generated: list[int] = field(default_factory=list, repr=False)
    prefilled: bool = False
    cancelled: bool = False

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.tokens)
