"""What is known of a request in the end. The access log, metrics, traces and the audit log all read it.

None of it is content: names from our own tables, counts, times and digests.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol, TypeAlias, TypeVar

from medport.wire.vertex import Pins

T = TypeVar("T")

Operation = Literal["chat", "text_completion", "embeddings"]
"""Names of OpenTelemetry's GenAI conventions."""


@dataclass(slots=True, kw_only=True, eq=False)
class Facts:
    """What a handler learns about its request. A request is audited once ``deployed_model`` is set."""

    endpoint: str | None = None
    """Endpoint id, such as ``medgemma``; a name of ours, never what the caller wrote."""
    deployed_model: str | None = None
    model: str | None = None
    """Resource name of the model, with its version."""
    pins: Pins = field(default_factory=Pins)
    """Which bytes answer."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """LoRA adapters that took part, by name, and the sha256 of each."""
    operation: Operation | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    embeddings: int = 0
    finish_reasons: Sequence[str] = field(default_factory=list)


class Asking(Protocol):
    """What answering must know of who asks: a request at a connection, or a row of a batch job."""

    facts: Facts
    answer_headers: dict[str, str]

    @property
    def tenant(self) -> str:
        """On whose behalf: the name of the key; ``""`` where the server has none."""
        ...

    @property
    def deadline(self) -> float | None:
        """In ``time.monotonic()``."""
        ...

    async def attended(self, work: Coroutine[Any, Any, T]) -> T:
        """Await ``work`` while somebody waits for it."""
        ...

    def first_token(self) -> None:
        """Note that the answer begins."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A request that is over."""

    method: str
    route: str
    """The template, never the path; ``-`` where no route matched."""
    action: str | None
    status: int
    error: str | None
    """Class of the error, such as ``InputError``; also of one that was sent inside a stream."""
    code: str | None
    """Its google.rpc code, such as ``INVALID_ARGUMENT``."""
    request_id: str
    key: str | None
    """Name of the API key."""
    facts: Facts
    began_ns: int
    """Since the epoch."""
    seconds: float
    first_token_s: float | None
    """From the request's first byte to the first token of its answer."""
    bytes_in: int
    bytes_out: int
    parent: tuple[str, str] = ("", "")
    """The W3C headers ``traceparent`` and ``tracestate``."""
    server: tuple[str, int | None] | None = None
    """The address that was connected to, as the socket knows it; the Host header is the caller's word."""


Observer: TypeAlias = Callable[[Outcome], None]
"""Is told of each request once its answer is sent. Must be quick, for it runs in the event loop."""
