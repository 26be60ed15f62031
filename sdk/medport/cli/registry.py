"""The control plane behind a profile, read over the client's own HTTP: endpoints, models, their versions."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Literal, Self, TypeVar
from urllib.parse import urlencode

from tenacity import Retrying

from medport import _retry, backends, config
from medport._call import Deadline, Reply
from medport._http import Http
from medport.backends import Backend
from medport.cli.session import Session
from medport.config import Profile, location_of
from medport.errors import AuthError, InputError, MedportError, NotFound, PolicyError, ProtocolError
from medport.wire import checked
from medport.wire.inventory import EndpointPage, ListedEndpoint, ListedVersion, ModelPage
from medport.wire.vertex import Resource

A = TypeVar("A")
B = TypeVar("B")
R = TypeVar("R", bound=Resource)
Page = TypeVar("Page", EndpointPage, ModelPage)
Kind = Literal["endpoints", "models"]
PAGE_SIZE = 100
MAX_PAGES = 1000
_AT_ONCE = 8
_PARENT = r"projects/(?!\.)[A-Za-z0-9_.:-]{1,100}/locations/[A-Za-z0-9-]{1,63}"
_ID = {"endpoints": r"[A-Za-z0-9_-]{1,128}", "models": r"[A-Za-z0-9_-]{1,128}(@[A-Za-z0-9-]{1,128})?"}


class Registry:
    """What is there, for one profile: the first of a chain.

    Nothing is sent that the policy forbids: the profile's location is checked when it is resolved, and a name that
    is given must be in it.

    Raises:
        ConfigError, PolicyError: as a client is made.
    """

    def __init__(self, session: Session) -> None:
        resolved = config.resolve(session.profile, session.settings)
        self._policy = resolved.policy
        self.name, self._profile = resolved.chain[0]
        self.project, self.location = _home(self._profile)
        self._backend: Backend = backends.start(self.name, resolved, self._profile)
        self._http = Http(self._backend.channel)
        self._deadline = Deadline.after(self._profile.timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()
        if self._backend.stop is not None:
            self._backend.stop()

    def endpoint(self, name: str) -> ListedEndpoint:
        """One endpoint, by its id or resource name."""
        return self._one(ListedEndpoint, self._named(name, "endpoints"))

    def endpoints(self, wanted: str | None, limit: int | None) -> list[ListedEndpoint]:
        """All endpoints that a filter of Vertex's lets through, or the first ``limit``."""
        return _first(
            (each for page in self._pages(EndpointPage, "endpoints", wanted, limit) for each in page.endpoints),
            limit,
        )

    def version(self, name: str) -> ListedVersion:
        """One model version: ``ID@VERSION``, ``ID@ALIAS``, or ``ID`` for the default one."""
        return self._one(ListedVersion, self._named(name, "models"))

    def models(self, wanted: str | None, limit: int | None) -> list[ListedVersion]:
        """All models, each in its default version; filter and limit as for endpoints."""
        return _first(
            (each for page in self._pages(ModelPage, "models", wanted, limit) for each in page.models), limit
        )

    def versions_of(self, models: Iterable[ListedVersion]) -> list[list[ListedVersion]]:
        """All versions of each model, the oldest first. What cannot list them has the one it showed."""
        return self._side_by_side(self._versions, models)

    def deployed(self, endpoints: Iterable[ListedEndpoint]) -> Mapping[str, ListedVersion | None]:
        """The versions that are deployed to endpoints, by ``version_name``; ``None`` for one that may not be read.

        Each is asked for once: without its number the default version would answer, which need not be the one.
        """
        names = {version_name(each.model, each.model_version_id) for e in endpoints for each in e.deployed_models}
        wanted = sorted(names - {""})
        return dict(zip(wanted, self._side_by_side(self._version_if_any, wanted), strict=True))

    def _versions(self, model: ListedVersion) -> list[ListedVersion]:
        bare = model.name.partition("@")[0]
        try:
            found = [
                each
                for page in self._pages(ModelPage, f"{self._named(bare, 'models')}:listVersions", None, None)
                for each in page.models
            ]
        except (AuthError, NotFound):
            found = []
        return sorted(found, key=lambda each: (len(each.version_id), each.version_id)) or [model]

    def _version_if_any(self, name: str) -> ListedVersion | None:
        try:
            return self.version(name)
        except (AuthError, NotFound, InputError, PolicyError):
            return None

    def _side_by_side(self, work: Callable[[A], B], items: Iterable[A]) -> list[B]:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            return [*pool.map(work, items)]

    def _named(self, name: str, kind: Kind) -> str:
        """The path of a resource in this profile's place. What is no name does not get into a URL."""
        if not re.fullmatch(f"({_PARENT}/{kind}/)?{_ID[kind]}", name):
            said = f"projects/…/locations/…/{kind}/ID"
            raise InputError("is neither an id nor a resource name", field="name", remedy=f"give ID or {said}")
        if "/" not in name:
            return f"projects/{self.project}/locations/{self.location}/{kind}/{name}"
        location = location_of(name)
        if self.location not in ("-", location):
            config.check_location(self.name, location, self._policy)
            raise InputError(
                f"is in {location}, and the profile asks in {self.location}",
                field="name",
                remedy="choose a profile of that location",
            )
        return name

    def _one(self, form: type[R], path: str) -> R:
        found = _read(form, self._get(path))
        answered = location_of(str(getattr(found, "name", "")))
        if self.location not in ("-", answered):
            raise PolicyError(
                f"was asked for in {self.location} and says that it is in {answered or 'no location'}",
                field="name",
                remedy="check the control plane's URL",
            )
        return found

    def _pages(self, form: type[Page], path: str, wanted: str | None, limit: int | None) -> Iterator[Page]:
        """Page by page, as far as they are asked for."""
        whole = path if "/" in path else f"projects/{self.project}/locations/{self.location}/{path}"
        query = {"pageSize": str(min(limit or PAGE_SIZE, PAGE_SIZE)), **({"filter": wanted} if wanted else {})}
        seen = set()
        for _ in range(MAX_PAGES):
            page = _read(form, self._get(f"{whole}?{urlencode(query)}"))
            yield page
            if not page.next_page_token:
                return
            if page.next_page_token in seen:
                raise ProtocolError("the list leads back to a page that was read", field="nextPageToken")
            seen.add(page.next_page_token)
            query["pageToken"] = page.next_page_token
        raise ProtocolError(f"the list has more than {MAX_PAGES} pages", remedy="give --filter or --limit")

    def _get(self, path: str) -> Reply:
        attempts = 0
        try:
            for attempt in Retrying(**_retry.policy(self._deadline, max_attempts=self._profile.max_attempts)):
                with attempt:
                    attempts += 1
                    return self._send(path)
        except MedportError as error:
            backends.named(error, self.name, attempts)
            raise
        raise AssertionError("tenacity returns or raises")

    def _send(self, path: str) -> Reply:
        try:
            return self._http.send(self._backend.get(path), self._deadline)
        except AuthError as refused:  # a token may be revoked before its time: one fresh try
            if not refused.renewable or not self._backend.credential.renew():
                raise
        return self._http.send(self._backend.get(path), self._deadline)


def version_name(model: str, version_id: str) -> str:
    """The name under which exactly that version is read; ``""`` if there is no model."""
    bare = model.partition("@")[0]
    return f"{bare}@{version_id}" if bare and version_id else model


def id_of(name: str) -> str:
    """The last part of a resource name."""
    return name.rpartition("/")[2]


def _home(profile: Profile) -> tuple[str, str]:
    """Project and location of a profile; ``-``, which stands for any, where it has none."""
    endpoint = profile.medgemma or profile.medsiglip
    parts = endpoint.endpoint.split("/") if endpoint and location_of(endpoint.endpoint) else []
    named = (parts[1], parts[3]) if parts else (None, None)
    return profile.project or named[0] or "-", profile.location or named[1] or "-"


def _read(form: type[R], reply: Reply) -> R:
    try:
        return checked(form, reply.json())
    except InputError as fault:
        raise ProtocolError(
            "the answer cannot be read", field=fault.field, remedy="check the control plane's URL"
        ) from None


def _first(found: Iterator[R], limit: int | None) -> list[R]:
    taken = []
    for each in found:
        taken.append(each)
        if limit is not None and len(taken) >= limit:
            break
    return taken
