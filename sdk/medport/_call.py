"""What to send and how to read the answer, as values. Everything that decides works on these."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import orjson

from medport.errors import ProtocolError
from medport.results import Provenance

T = TypeVar("T")
Family = Literal["medgemma", "medsiglip"]
Verb = Literal["predict", "chat/completions"]

BASE64_STEP_BYTES = 3 * 64 * 1024
"""A multiple of three: the pieces, end to end, are the base64 of the whole."""


@dataclass(frozen=True, slots=True)
class Reply:
    """One HTTP answer with a good status. Header names are lower-case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)

    def json(self) -> object:
        """The body, parsed.

        Raises:
            ProtocolError: it is not JSON, as a login page of a proxy is not.
        """
        try:
            return orjson.loads(self.body)
        except orjson.JSONDecodeError:
            kind = self.headers.get("content-type", "no content type").partition(";")[0]
            raise ProtocolError(
                f"the answer is not JSON but {kind}, {len(self.body)} bytes",
                remedy="check the URL, and whether a proxy or a login page answers in its place",
            ) from None


@dataclass(frozen=True, slots=True)
class Base64:
    """Bytes to be sent as base64. They are encoded as they go out, so that megabytes are not held twice."""

    data: bytes = field(repr=False)

    def __len__(self) -> int:
        return (len(self.data) + 2) // 3 * 4

    def __iter__(self) -> Iterator[bytes]:
        import pybase64

        whole = memoryview(self.data)
        for start in range(0, len(whole), BASE64_STEP_BYTES):
            yield pybase64.b64encode(whole[start : start + BASE64_STEP_BYTES])


@dataclass(frozen=True, slots=True)
class Body:
    """What a request carries: iterate for the bytes, piece by piece, as often as it is sent."""

    parts: tuple[bytes | Base64, ...] = field(repr=False)

    def __len__(self) -> int:
        return sum(map(len, self.parts))

    def __iter__(self) -> Iterator[bytes]:
        for part in self.parts:
            if isinstance(part, bytes):
                yield part
            else:
                yield from part


@dataclass(frozen=True, slots=True)
class Request:
    """One HTTP request, complete. ``server_name`` is the name its certificate must carry, if not the host's."""

    method: Literal["GET", "POST"]
    url: str
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    content: Body | None = None
    server_name: str | None = None


@dataclass(frozen=True, slots=True)
class Call(Generic[T]):
    """One request to a model: which, how, the body, and how to read the answer.

    ``read`` raises ProtocolError or the error that the body reports; it never touches the network.
    """

    model: Family
    verb: Verb
    body: Body
    read: Callable[[Reply, Provenance], T]
    sampling: Mapping[str, Any] = field(default_factory=dict)


Flow = Generator[Call[Any], Any, T]
"""A job of several calls: it yields each call and is sent what the call read."""


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock by which a call, with all its retries, must be done."""

    at: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        return cls(time.monotonic() + seconds)

    def remaining_s(self) -> float:
        return self.at - time.monotonic()

    def share(self, parts: int) -> Deadline:
        """An earlier deadline: one of ``parts`` equal shares of the time that is left."""
        return Deadline(time.monotonic() + max(0.0, self.remaining_s()) / parts)
