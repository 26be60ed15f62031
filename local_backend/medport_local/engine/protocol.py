"""What serving needs of text generation, whichever engine does it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from medport_local.engine.sequence import Event, GenerationRequest

if TYPE_CHECKING:
    from medport_local.engine.codecs import ImageCodec
    from medport_local.engine.grammar import Grammars
    from medport_local.engine.prompt import PromptBuilder


DtypeRule = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineLimits:
    """What an engine takes at once, and what it may hold."""

    max_running: int = 16
    max_queue: int = 64
    max_images: int = 128
    """Images in one request; a whole-slide prompt of the reference notebooks holds 125."""
    kv_bytes: int | None = None
    """For keys and values. ``None``: a share of what is free, and no more than full places can use."""
    reuse_bytes: int = 0
    """For image features and prompt beginnings that later requests of the same tenant can use. 0, the default,
    keeps nothing of a request once it is over."""
    stall_ms: float = 200.0
    """How long a new prompt may hold up the answers that are being written, at once."""
    max_wait_s: float = 120.0
    """Whoever would wait longer for the first token is told to come back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What an engine can do beyond plain text."""

    images: bool
    seeds: bool = True
    logprobs: bool = True
    grammar: bool = True
    prefix_cache: bool = False
    adapters: tuple[str, ...] = ()
    """Names that ``GenerationRequest.adapter`` may have."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """Where an engine stands. Counts are since its start."""

    running: int
    queued: int
    steps: int
    tokens_generated: int
    finished: int
    cancelled: int
    failed: int
    held: int
    """Sequences that hold device memory."""
    expired: int = 0
    """Whose deadline passed."""
    prompt_tokens: int = 0
    """Prompt tokens that were computed."""
    cache_hits: int = 0
    """Prompt tokens that were found in the prefix cache."""
    cache_misses: int = 0
    image_hits: int = 0
    """Images whose features were found."""
    image_misses: int = 0
    kv_bytes_used: int = 0
    kv_bytes_total: int = 0
    reuse_bytes_used: int = 0
    prefill_tokens_per_s: float = 0.0


class Handle(Protocol):
    """A request on its way: an async iterator of events, the last of which has a ``finish_reason``."""

    @property
    def id(self) -> int: ...
    def __aiter__(self) -> AsyncIterator[Event]: ...


class Engine(Protocol):
    """What serving needs of text generation."""

    @property
    def prompts(self) -> PromptBuilder: ...
    @property
    def images(self) -> ImageCodec | None: ...
    @property
    def grammars(self) -> Grammars | None: ...
    @property
    def limits(self) -> EngineLimits: ...
    @property
    def capabilities(self) -> Capabilities: ...
    @property
    def healthy(self) -> bool: ...
    def submit(self, request: GenerationRequest) -> Handle: ...
    def cancel(self, id: int) -> None: ...
    def stats(self) -> Stats: ...
    def close(self, drain_s: float = 0.0) -> None: ...
