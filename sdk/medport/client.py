"""Client and AsyncClient: one line per verb, and the loops that move the bytes."""

from __future__ import annotations

import threading
import time
from collections.abc import Awaitable, Callable, Generator, Iterator, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar, Unpack
from weakref import WeakSet

from tenacity import AsyncRetrying, Retrying

from medport import _openai, backends, config
from medport._call import Call, Deadline, Family, Flow, Reply, Request
from medport._http import AsyncHttp, Channel, Http
from medport._retry import policy
from medport._threads import in_thread
from medport.backends import Backend, Target
from medport.errors import AuthError, ConfigError, ConnectionFailed, MedportError, NotFound
from medport.images import Source
from medport.results import Chat, Classifications, Embeddings
from medport.stream import AsyncChatStream, ChatStream
from medport.tasks import chat as chat_task
from medport.tasks import classify as classify_task
from medport.tasks import embed as embed_task
from medport.tasks.chat import ChatOptions, Images, Prompt
from medport.tasks.classify import DEFAULT_TEMPLATES, Labels

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

T = TypeVar("T")
R = TypeVar("R")


class _Clients:
    """What the two clients share: the profile chain, the backends once started, the endpoints once found."""

    def __init__(self, profile: str | config.Resolved | None = None, **settings: Any) -> None:
        """Use the default profile; without any configuration, phantom models in this process.

        Args:
            profile: a profile of ``medport.toml``; or what ``config.alone`` made, which reads no file.
            settings: keys of a profile, such as ``backend="local", url=…, api_key=…, ca_file=…``.

        Raises:
            ConfigError: an unknown key or profile, or a wrong value.
            PolicyError: the policy forbids the profile. Nothing was sent.
        """
        if isinstance(profile, config.Resolved):
            if settings:
                raise ConfigError("settings do not go with a resolved profile", field="profile", remedy="name one")
            self._config = profile
        else:
            self._config = config.resolve(profile, settings)
        self._lock = threading.Lock()
        self._backends: dict[str, Backend] = {}
        self._targets: dict[tuple[str, Family], Target] = {}
        self._closed = False

    @classmethod
    def from_config(cls, profile: str | None = None, **settings: Any) -> Self:
        """A client for a named profile; without a name, the default one."""
        return cls(profile, **settings)

    def __repr__(self) -> str:
        names = " → ".join(f"{name} ({profile.backend})" for name, profile in self._config.chain)
        return f"<{type(self).__name__} {names}>"

    def _backend(self, name: str) -> Backend:
        """The backend of a link of the chain, started at its first use. May take seconds in-process."""
        with self._lock:
            if self._closed:
                raise ConfigError("the client is closed", remedy="make a new one")
            if name not in self._backends:
                self._backends[name] = backends.start(name, self._config, dict(self._config.chain)[name])
            return self._backends[name]

    def _known_target(self, name: str, family: Family) -> Target | None:
        target = self._targets.get((name, family))
        return target if target is not None and target.expires_at > time.monotonic() else None

    def _links(self, options: ChatOptions | None = None) -> Iterator[tuple[str, Deadline, bool]]:
        """Each link of the chain, its deadline, and whether it is the last. One deadline spans them all."""
        options = options or {}
        timeout_s = options.get("timeout_s") or self._config.profile.timeout_s
        whole = Deadline.after(timeout_s + (options.get("wait_until_ready") or 0))
        names = [name for name, _ in self._config.chain]
        for i, name in enumerate(names):
            left = len(names) - i
            yield name, whole if left == 1 else whole.share(left), left == 1

    def _policy(self, deadline: Deadline, options: ChatOptions | None = None) -> dict[str, Any]:
        wait = (options or {}).get("wait_until_ready")
        ready_by = Deadline.after(wait) if wait else None
        return policy(deadline, max_attempts=self._config.profile.max_attempts, ready_by=ready_by)

    def _forget(self, name: str, family: Family, error: MedportError) -> None:
        """A dedicated host may have moved: look the endpoint up again at the next attempt."""
        if isinstance(error, NotFound | ConnectionFailed):
            self._targets.pop((name, family), None)

    def _stop_all(self) -> None:
        with self._lock:
            self._closed = True
            for backend in self._backends.values():
                if backend.stop is not None:
                    backend.stop()


class Client(_Clients):
    """MedGemma and MedSigLIP, wherever they run. Safe to share between threads; use as a context manager."""

    def __init__(self, profile: str | config.Resolved | None = None, **settings: Any) -> None:
        super().__init__(profile, **settings)
        self._pools: dict[Channel, Http] = {}
        self._lent: WeakSet[OpenAI] = WeakSet()

    def chat(self, prompt: Prompt, images: Images = (), **options: Unpack[ChatOptions]) -> Chat:
        """Ask MedGemma.

        Args:
            prompt: a question, or messages ``[{"role": "user", "content": …}, …]`` whose content is text or a
                list of texts and images.
            images: one image or several: path, bytes, file, PIL image, uint8/uint16 array, DICOM.
            options: see ``ChatOptions``.

        Raises:
            InputError: the prompt, an option or an image is wrong; names the field.
            MedportError: see ``medport.errors``.
        """
        return self._send(chat_task.call(prompt, images, options, stream=False), options)

    def chat_stream(self, prompt: Prompt, images: Images = (), **options: Unpack[ChatOptions]) -> ChatStream:
        """Ask MedGemma and get the answer as it is written.

        Iterate for typed deltas; ``result`` is the whole answer afterwards. Leaving early, by ``close`` or the
        end of a ``with`` block, stops the work on the server. Arguments and errors as for ``chat``.
        """
        return ChatStream(self, chat_task.call(prompt, images, options, stream=True), options)

    def embed_images(self, images: Source | Sequence[Source]) -> Embeddings:
        """Embed one image or several with MedSigLIP.

        Returns:
            Vectors float32 ``[n, d]``, L2-normalised. An image that cannot be read is in ``errors``; it does
            not fail the others.

        Raises:
            ImageError: not one of the images could be used.
        """
        return self._run(embed_task.embed(embed_task.image_instances(images), "images"))

    def embed_texts(self, texts: str | Sequence[str]) -> Embeddings:
        """Embed one text or several with MedSigLIP. Texts longer than 64 tokens are cut by the model.

        Raises:
            InputError: a text is empty; names which.
        """
        return self._run(embed_task.embed(embed_task.text_instances(texts), "texts"))

    def classify(
        self,
        images: Source | Sequence[Source],
        labels: Labels,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> Classifications:
        """Score each label for each image, zero-shot, with MedSigLIP.

        Args:
            images: one image or several.
            labels: names, or ``{name: [prompt, …]}`` with prompts of your own.
            templates: sentences with ``{}`` for the label; their embeddings are averaged per label.

        Returns:
            One entry per image, labels best first, with logit, sigmoid probability and softmax share.

        Raises:
            InputError: no label, one twice, or a template without ``{}``.
            ImageError: not one of the images could be used.
        """
        return self._run(classify_task.classify(embed_task.image_instances(images), labels, templates))

    def openai(self) -> OpenAI:
        """OpenAI's own client for MedGemma: what it is asked goes to the profile's endpoint, and nowhere else.

        It sends over this client's connections, with the same TLS settings, and ends when this client is closed.
        Each request gets the credential that holds at that moment; the ``api_key`` it shows for Google is a
        stand-in. ``model`` may be ``""``. Of a fall-back chain it uses the first profile. Retries are OpenAI's
        own, as many as the profile allows; each attempt may take ``timeout_s``.

        A fault of the server is raised as OpenAI's error classes say; a wrong setting, a policy or a credential
        that cannot be had is still a MedportError.

        Raises:
            ConfigError: the openai package is not installed.
            NotFound, AuthError, …: the endpoint cannot be looked up; for asyncio at the first request.
        """
        made = _openai.blocking(self)
        self._lent.add(made)
        return made

    def close(self) -> None:
        """Close all connections; the in-process server ends."""
        for each in list(self._lent):
            each.close()
        for pool in self._pools.values():
            pool.close()
        self._stop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pool(self, backend: Backend) -> Http:
        with self._lock:
            if backend.channel not in self._pools:
                self._pools[backend.channel] = Http(backend.channel)
            return self._pools[backend.channel]

    def _run(self, flow: Flow[T]) -> T:
        answer = None
        while True:
            try:
                answer = self._send(flow.send(answer))
            except StopIteration as end:
                result: T = end.value
                return result

    def _send(self, call: Call[T], options: ChatOptions | None = None) -> T:
        return self._through(call, options, Http.send, backends.reader(call))

    def _through(
        self,
        call: Call[Any],
        options: ChatOptions | None,
        send: Callable[[Http, Request, Deadline], R],
        done: Callable[[Backend, Target, R, int, Deadline], T],
    ) -> T:
        """The loop of every call: retries within each link of the chain, then the next link.

        ``send`` moves the bytes; ``done`` makes the result, and what it raises is tried again alike.
        """
        attempts = 0
        for name, deadline, last in self._links(options):
            try:
                for attempt in Retrying(**self._policy(deadline, options)):
                    with attempt:
                        attempts += 1
                        backend, target, answer = self._exchange(name, call, deadline, send)
                        return done(backend, target, answer, attempts, deadline)
            except MedportError as error:
                backends.named(error, name, attempts)
                if last or not error.retryable:
                    raise
        raise AssertionError("a chain has at least one link")

    def _exchange(
        self,
        name: str,
        call: Call[Any],
        deadline: Deadline,
        send: Callable[[Http, Request, Deadline], R],
    ) -> tuple[Backend, Target, R]:
        """One attempt: the endpoint found, the request sent by ``send``, and that once more with a new token."""
        backend = self._backend(name)
        pool = self._pool(backend)
        try:
            try:
                target = self._target(backend, pool, call.model, deadline)
                return backend, target, send(pool, backend.request(call, target), deadline)
            except AuthError as refused:  # a token may be revoked before its time: one fresh try
                if not refused.renewable or not backend.credential.renew():
                    raise
            target = self._target(backend, pool, call.model, deadline)
            return backend, target, send(pool, backend.request(call, target), deadline)
        except MedportError as error:
            self._forget(name, call.model, error)
            raise

    def _target(self, backend: Backend, pool: Http, family: Family, deadline: Deadline) -> Target:
        if (known := self._known_target(backend.name, family)) is not None:
            return known
        target = backends.look_up(backend, family, lambda request: pool.send(request, deadline))
        self._targets[backend.name, family] = target
        return target


class AsyncClient(_Clients):
    """MedGemma and MedSigLIP, wherever they run, for asyncio. Safe to share between tasks of one loop."""

    def __init__(self, profile: str | config.Resolved | None = None, **settings: Any) -> None:
        super().__init__(profile, **settings)
        self._pools: dict[Channel, AsyncHttp] = {}
        self._lent: WeakSet[AsyncOpenAI] = WeakSet()

    async def chat(self, prompt: Prompt, images: Images = (), **options: Unpack[ChatOptions]) -> Chat:
        build = partial(chat_task.call, prompt, images, options, stream=False)
        call = await in_thread(build) if _heavy(prompt, images) else build()
        return await self._send(call, options)

    def chat_stream(self, prompt: Prompt, images: Images = (), **options: Unpack[ChatOptions]) -> AsyncChatStream:
        build = partial(chat_task.call, prompt, images, options, stream=True)
        return AsyncChatStream(self, build, options)

    async def embed_images(self, images: Source | Sequence[Source]) -> Embeddings:
        instances = await in_thread(partial(embed_task.image_instances, images))
        return await self._run(embed_task.embed(instances, "images"))

    async def embed_texts(self, texts: str | Sequence[str]) -> Embeddings:
        return await self._run(embed_task.embed(embed_task.text_instances(texts), "texts"))

    async def classify(
        self,
        images: Source | Sequence[Source],
        labels: Labels,
        templates: Sequence[str] = DEFAULT_TEMPLATES,
    ) -> Classifications:
        instances = await in_thread(partial(embed_task.image_instances, images))
        return await self._run(classify_task.classify(instances, labels, templates))

    def openai(self) -> AsyncOpenAI:
        made = _openai.awaited(self)
        self._lent.add(made)
        return made

    async def close(self) -> None:
        for each in list(self._lent):
            await each.close()
        for pool in self._pools.values():
            await pool.close()
        await in_thread(self._stop_all)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def _pool(self, backend: Backend) -> AsyncHttp:
        if backend.channel not in self._pools:
            self._pools[backend.channel] = AsyncHttp(backend.channel)
        return self._pools[backend.channel]

    async def _run(self, flow: Flow[T]) -> T:
        answer = None
        while True:
            try:
                answer = await self._send(flow.send(answer))
            except StopIteration as end:
                result: T = end.value
                return result

    async def _send(self, call: Call[T], options: ChatOptions | None = None) -> T:
        return await self._through(call, options, AsyncHttp.send, backends.reader(call))

    async def _through(
        self,
        call: Call[Any],
        options: ChatOptions | None,
        send: Callable[[AsyncHttp, Request, Deadline], Awaitable[R]],
        done: Callable[[Backend, Target, R, int, Deadline], T],
    ) -> T:
        attempts = 0
        for name, deadline, last in self._links(options):
            try:
                async for attempt in AsyncRetrying(**self._policy(deadline, options)):
                    with attempt:
                        attempts += 1
                        backend, target, answer = await self._exchange(name, call, deadline, send)
                        return done(backend, target, answer, attempts, deadline)
            except MedportError as error:
                backends.named(error, name, attempts)
                if last or not error.retryable:
                    raise
        raise AssertionError("a chain has at least one link")

    async def _exchange(
        self,
        name: str,
        call: Call[Any],
        deadline: Deadline,
        send: Callable[[AsyncHttp, Request, Deadline], Awaitable[R]],
    ) -> tuple[Backend, Target, R]:
        backend = await self._ready(name)
        pool = self._pool(backend)
        try:
            try:
                target = await self._target(backend, pool, call.model, deadline)
                return backend, target, await send(pool, backend.request(call, target), deadline)
            except AuthError as refused:
                if not refused.renewable or not await in_thread(backend.credential.renew):
                    raise
            target = await self._target(backend, pool, call.model, deadline)
            return backend, target, await send(pool, backend.request(call, target), deadline)
        except MedportError as error:
            self._forget(name, call.model, error)
            raise

    async def _ready(self, name: str) -> Backend:
        """Starting a backend and fetching a token may block: off the loop."""
        started = self._backends.get(name)
        backend = started if started is not None else await in_thread(partial(self._backend, name))
        if backend.credential.may_block:
            await in_thread(backend.credential.headers)
        return backend

    async def _target(self, backend: Backend, pool: AsyncHttp, family: Family, deadline: Deadline) -> Target:
        if (known := self._known_target(backend.name, family)) is not None:
            return known
        target = await _adrive(backends.locate(backend, family), pool, deadline)
        self._targets[backend.name, family] = target
        return target


for _verb in ("chat", "chat_stream", "embed_images", "embed_texts", "classify", "openai", "close"):
    getattr(AsyncClient, _verb).__doc__ = getattr(Client, _verb).__doc__


def _heavy(prompt: Prompt, images: object) -> bool:
    """Whether building the call decodes images. A short text is built faster than a thread is found."""
    return not isinstance(prompt, str) or not (isinstance(images, list | tuple) and not images)


async def _adrive(flow: Generator[Request, Reply, T], pool: AsyncHttp, deadline: Deadline) -> T:
    try:
        request = next(flow)
        while True:
            try:
                reply = await pool.send(request, deadline)
            except MedportError as error:
                request = flow.throw(error)
            else:
                request = flow.send(reply)
    except StopIteration as end:
        result: T = end.value
        return result
