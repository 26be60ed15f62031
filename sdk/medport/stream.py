"""A streamed answer: typed deltas as they come, the whole result at the end, one class per colour."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import AsyncExitStack, ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from medport import backends
from medport._call import Call, Deadline, Reply, Request
from medport._http import AsyncHttp, Http
from medport._threads import in_thread
from medport.backends import Backend, Target
from medport.errors import ConfigError, ConnectionFailed, MedportError, ProtocolError, Timeout
from medport.results import Chat, Delta
from medport.tasks import chat as chat_task
from medport.tasks.chat import ChatOptions
from medport.wire import sse

if TYPE_CHECKING:
    from medport.client import AsyncClient, Client

R = TypeVar("R")


class ChatStream:
    """Deltas as they come; ``result`` when they have all come. Use as a context manager to leave early."""

    def __init__(self, client: Client, call: Call[Chat], options: ChatOptions) -> None:
        self._client, self._call, self._options = client, call, options
        self._stack = ExitStack()
        self._deltas: Generator[Delta, None, Chat] | None = None
        self._result: Chat | None = None
        self.streamed = True
        """``False`` once a server that does not stream has sent its answer as a whole: it comes as one delta."""

    @property
    def result(self) -> Chat:
        """The whole answer.

        Raises:
            ConfigError: the stream has not ended yet.
        """
        return _finished(self._result)

    def __iter__(self) -> Iterator[Delta]:
        return self

    def __next__(self) -> Delta:
        if self._result is not None:
            raise StopIteration
        if self._deltas is None:
            self._deltas = self._read()
        try:
            return next(self._deltas)
        except StopIteration as end:
            self._result = end.value
            raise StopIteration from None

    def close(self) -> None:
        """Stop reading. The server stops generating."""
        if self._deltas is not None:
            self._deltas.close()
        self._stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def _read(self) -> Generator[Delta, None, Chat]:
        began = time.monotonic()
        # Retries and fall-backs happen before the first byte; a stream that has begun is not retried.
        backend, target, (head, chunks), attempts, deadline = self._client._through(
            self._call, self._options, self._enter, _opened
        )
        collector = chat_task.Collector()
        with self._stack:
            try:
                self.streamed = _streams(head)
                for event in _events(chunks) if self.streamed else _whole(chunks):
                    yield from collector.take(event)
                    _check(deadline)
                yield from collector.end()
            except MedportError as error:
                raise backends.named(error, backend.name, attempts) from error.__cause__
        source = backends.provenance(
            backend, target, head, began_at=began, attempts=attempts, sampling=self._call.sampling
        )
        return collector.result(source)

    def _enter(self, pool: Http, request: Request, deadline: Deadline) -> tuple[Reply, Iterator[bytes]]:
        return self._stack.enter_context(pool.open(request, deadline))


class AsyncChatStream:
    """Deltas as they come; ``result`` when they have all come. Use as an async context manager to leave early."""

    def __init__(self, client: AsyncClient, build: Callable[[], Call[Chat]], options: ChatOptions) -> None:
        self._client, self._build, self._options = client, build, options
        self._stack = AsyncExitStack()
        self._deltas: AsyncGenerator[Delta, None] | None = None
        self._result: Chat | None = None
        self.streamed = True
        """``False`` once a server that does not stream has sent its answer as a whole: it comes as one delta."""

    @property
    def result(self) -> Chat:
        """The whole answer.

        Raises:
            ConfigError: the stream has not ended yet.
        """
        return _finished(self._result)

    def __aiter__(self) -> AsyncIterator[Delta]:
        return self

    async def __anext__(self) -> Delta:
        if self._deltas is None:
            self._deltas = self._read()
        return await anext(self._deltas)

    async def close(self) -> None:
        """Stop reading. The server stops generating."""
        if self._deltas is not None:
            await self._deltas.aclose()
        await self._stack.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _read(self) -> AsyncGenerator[Delta, None]:
        began = time.monotonic()
        call = await in_thread(self._build)
        backend, target, (head, chunks), attempts, deadline = await self._client._through(
            call, self._options, self._enter, _opened
        )
        collector = chat_task.Collector()
        async with self._stack:
            try:
                self.streamed = _streams(head)
                async for event in _aevents(chunks) if self.streamed else _awhole(chunks):
                    for delta in collector.take(event):
                        yield delta
                    _check(deadline)
                for delta in collector.end():
                    yield delta
            except MedportError as error:
                raise backends.named(error, backend.name, attempts) from error.__cause__
        source = backends.provenance(
            backend, target, head, began_at=began, attempts=attempts, sampling=call.sampling
        )
        self._result = collector.result(source)

    async def _enter(
        self, pool: AsyncHttp, request: Request, deadline: Deadline
    ) -> tuple[Reply, AsyncIterator[bytes]]:
        return await self._stack.enter_async_context(pool.open(request, deadline))


def _opened(
    backend: Backend, target: Target, answer: R, attempts: int, deadline: Deadline
) -> tuple[Backend, Target, R, int, Deadline]:
    return backend, target, answer, attempts, deadline


def _finished(result: Chat | None) -> Chat:
    if result is None:
        raise ConfigError("the stream has not ended", field="result", remedy="iterate to its end first")
    return result


def _events(chunks: Iterator[bytes]) -> Iterator[bytes]:
    decoder = sse.Decoder()
    for chunk in chunks:
        for event in decoder.feed(chunk):
            if event == sse.DONE:
                return
            yield event
    raise _cut()


async def _aevents(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    decoder = sse.Decoder()
    async for chunk in chunks:
        for event in decoder.feed(chunk):
            if event == sse.DONE:
                return
            yield event
    raise _cut()


def _streams(head: Reply) -> bool:
    """MedGemma's "dicom" container answers a request for a stream with the whole completion."""
    return head.headers.get("content-type", "").partition(";")[0].strip() != "application/json"


def _whole(chunks: Iterator[bytes]) -> Iterator[bytes]:
    body = bytearray()
    for chunk in chunks:
        _gather(body, chunk)
    yield bytes(body)


async def _awhole(chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    body = bytearray()
    async for chunk in chunks:
        _gather(body, chunk)
    yield bytes(body)


def _gather(body: bytearray, chunk: bytes) -> None:
    body += chunk
    if len(body) > sse.MAX_EVENT_BYTES:
        raise ProtocolError("the answer is longer than 4 MiB", remedy="check what the URL serves")


def _cut() -> MedportError:
    return ConnectionFailed("the stream ended before its end mark", remedy="ask again")


def _check(deadline: Deadline) -> None:
    if deadline.remaining_s() < 0:
        raise Timeout("the deadline passed while the answer was streamed", remedy="give a longer timeout_s")
