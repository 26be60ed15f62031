"""The keys and service accounts of a running server: whose bearer token it is."""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from medport.errors import AuthError, ConfigError
from medport_local.serving import keys
from medport_local.serving.identity import ANYONE, Principal
from medport_local.serving.keys import KeyEntry, KeyFile
from medport_local.serving.tokens import Tokens
from medport_local.serving.verbs import ACTIONS

logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0


@dataclass(frozen=True, slots=True)
class _Held:
    digest: bytes = field(repr=False)
    principal: Principal
    expires: float
    """Seconds since the epoch."""


class KeyRing:
    """Who may ask one server: a key that may do everything, and those of a file, read again when it changes.

    With neither, everyone is ``ANYONE``. A file that cannot be read any more leaves the last good keys in force.
    Belongs to one event loop.

    Args:
        hosts: ``host:port`` by which clients know this server, which tokens may be for.

    Raises:
        ConfigError: the file is missing or is none, at the start.
    """

    def __init__(
        self,
        api_key: str | None = None,
        file: Path | None = None,
        *,
        hosts: Iterable[str] = (),
        clock: Callable[[], float] = time.time,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._file = file
        self._tokens = Tokens(hosts)
        self._open = api_key is None and file is None
        # Hashes have one length, so that not even a key's length can be measured.
        root = Principal(name="root", actions=frozenset(ACTIONS), models=None)
        self._root = (_Held(keys.digest_of(api_key), root, float("inf")),) if api_key else ()
        self._held: tuple[_Held, ...] = self._root
        self._looked = monotonic()
        self._stamp = _stamp(file) if file else None
        if file is not None:
            self._hold(keys.load(file))

    @property
    def guarded(self) -> bool:
        """Whether a key is needed at all."""
        return not self._open

    def identify(self, token: str) -> Principal:
        """Whose key or token it is; ``""`` stands for none.

        Every key is compared, each in constant time, and nothing is looked up by what the caller sent: how long
        it takes says nothing about how close a guess was.

        Raises:
            AuthError: it is missing, unknown or expired.
            Forbidden: it is a good token for something else.
        """
        if self._open:
            return ANYONE
        self._look()
        given, found = keys.digest_of(token), None
        for each in self._held:
            if hmac.compare_digest(given, each.digest):
                found = each
        if found is None or not token:
            if (principal := self._tokens.identify(token, self._clock())) is not None:
                return principal
            said = "the API key is wrong" if token else "this server wants an API key"
            raise AuthError(said, remedy="send it as: Authorization: Bearer KEY")
        if self._clock() >= found.expires:
            raise AuthError("the API key has expired", remedy="ask for a new one")
        return found.principal

    def grant(self, assertion: str) -> str:
        """An access token for a service account's assertion; see ``tokens.Tokens.grant``.

        A server that lets everybody in gives everybody one: Google's clients cannot do without.
        """
        if self._open:
            return "anyone"
        self._look()
        return self._tokens.grant(assertion, self._clock())

    def _look(self) -> None:
        now = self._monotonic()
        if self._file is None or now - self._looked < _LOOK_EVERY_S:
            return
        self._looked = now
        if (stamp := _stamp(self._file)) == self._stamp:
            return
        self._stamp = stamp
        try:
            found = keys.load(self._file)
        except ConfigError as error:
            logger.error("the file of keys cannot be read, the keys of before stay in force: %s", error.message)
            return
        self._hold(found)
        logger.info("%d API keys are in force", len(found.everybody))

    def _hold(self, found: KeyFile) -> None:
        self._held = self._root + tuple(_held(entry) for entry in found.keys)
        self._tokens.replace(found.service_accounts)


def _held(entry: KeyEntry) -> _Held:
    return _Held(bytes.fromhex(entry.sha256), entry.principal, entry.expires_s)


def _stamp(file: Path) -> tuple[int, int, int] | None:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
