"""OpenAI's own clients, pointed at the profile's MedGemma endpoint and sending over our pools."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from medport import _extras
from medport._call import Deadline, Request
from medport._http import AsyncHttp, Http
from medport._lend import alent, lent
from medport._threads import in_thread
from medport.backends import Backend, Target, expected_url
from medport.errors import AuthError

if TYPE_CHECKING:
    from openai import AsyncOpenAI, OpenAI

    from medport.client import AsyncClient, Client

_STAND_IN = "the-credential-is-added-when-a-request-is-sent"
"""OpenAI's clients refuse to be made without a key, and would look for one in OPENAI_API_KEY."""


def blocking(client: Client) -> OpenAI:
    """See ``Client.openai``."""
    loan = _Loan(client)
    base_url = loan.find()[2].openai_url
    made: OpenAI = _package().OpenAI(http_client=lent(loan, base_url), **_settings(client, base_url))
    return made


def awaited(client: AsyncClient) -> AsyncOpenAI:
    """See ``Client.openai``. Nothing is looked up yet: that would hold up the loop."""
    name, profile = client._config.chain[0]
    known = client._known_target(name, "medgemma")
    base_url = known.openai_url if known else expected_url(profile, "medgemma")
    http_client = alent(_AsyncLoan(client), base_url)
    made: AsyncOpenAI = _package().AsyncOpenAI(http_client=http_client, **_settings(client, base_url))
    return made


def _package() -> Any:
    return _extras.load("openai", extra="openai")


def _settings(client: Client | AsyncClient, base_url: str) -> dict[str, Any]:
    _, profile = client._config.chain[0]
    return {
        "base_url": base_url,
        "api_key": client._config.secret(profile) or _STAND_IN,
        "timeout": profile.timeout_s,
        "max_retries": profile.max_attempts - 1,
    }


class _Loan:
    """The first backend of a client's chain. Each request asks anew where it is and which credential holds."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._name, self._profile = client._config.chain[0]

    def find(self) -> tuple[Backend, Http, Target]:
        client = self._client
        backend = client._backend(self._name)
        pool = client._pool(backend)
        deadline = Deadline.after(self._profile.timeout_s)
        try:
            return backend, pool, client._target(backend, pool, "medgemma", deadline)
        except AuthError as refused:
            if not refused.renewable or not backend.credential.renew():
                raise
        return backend, pool, client._target(backend, pool, "medgemma", deadline)

    def aim(self, rest: str) -> tuple[Http, Request]:
        backend, pool, target = self.find()
        return pool, _request(backend, target, rest)

    def renew(self) -> bool:
        return self._client._backend(self._name).credential.renew()

    def lost(self) -> None:
        self._client._targets.pop((self._name, "medgemma"), None)


class _AsyncLoan:
    """The same for asyncio."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._name, self._profile = client._config.chain[0]

    async def aim(self, rest: str) -> tuple[AsyncHttp, Request]:
        client = self._client
        backend = await client._ready(self._name)
        pool = client._pool(backend)
        deadline = Deadline.after(self._profile.timeout_s)
        try:
            target = await client._target(backend, pool, "medgemma", deadline)
        except AuthError as refused:
            if not refused.renewable or not await in_thread(backend.credential.renew):
                raise
            target = await client._target(backend, pool, "medgemma", deadline)
        return pool, _request(backend, target, rest)

    async def renew(self) -> bool:
        return await in_thread(self._client._backend(self._name).credential.renew)

    def lost(self) -> None:
        self._client._targets.pop((self._name, "medgemma"), None)


def _request(backend: Backend, target: Target, rest: str) -> Request:
    return Request("POST", target.openai_url + rest, backend.credential.headers(), None, target.server_name)
