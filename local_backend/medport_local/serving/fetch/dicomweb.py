"""DICOM objects from an allowed DICOMweb store, through dicomweb-client."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace

from medport._extras import load
from medport_local.serving.fetch.allow import STORE_PATH, AllowList, has_dots
from medport_local.serving.fetch.credentials import APPLICATION_DEFAULT, READ_DICOM, OwnCredentials
from medport_local.serving.fetch.errand import Errand
from medport_local.serving.fetch.errors import FetchError
from medport_local.serving.fetch.target import Target, parse
from medport_local.serving.fetch.web import Web

_UID = r"(?=[0-9.]{1,64}(?:/|$))[0-9]+(?:\.[0-9]+)*"
_PATH = re.compile(
    rf"(?P<store>{STORE_PATH.pattern})/studies/{_UID}/series/{_UID}(?P<instance>/instances/{_UID})?"
)
_ACCEPT = 'multipart/related; type="application/dicom"; transfer-syntax=*'
_GOOGLE = re.compile(r"healthcare\.(?:[a-z0-9-]+\.rep\.)?googleapis\.com")
_FORM = "give https://…/dicomWeb/studies/UID/series/UID, with /instances/UID for one object"


@dataclass(frozen=True, slots=True)
class Place:
    """A series or an instance in a store."""

    target: Target
    store: str
    is_instance: bool


class DicomWeb:
    """Reads Part 10 objects as they are stored, in whatever transfer syntax."""

    def __init__(self, allow: AllowList, web: Web, own: OwnCredentials) -> None:
        self._allow = allow
        self._web = web
        self._own = own

    def instance(self, uri: str, credential: str | None, errand: Errand) -> bytes:
        """One object, with all its frames.

        Raises:
            FetchError: the address is not one of an instance, its store is not allowed, or it cannot be had.
            ConfigError: dicomweb-client is not installed.
        """
        place = _place(uri, errand)
        if not place.is_instance:
            raise errand.refused("the address is not one of an instance", _FORM, code="DICOM_PATH_ERROR")
        found = list(self._parts(place, credential, errand, most=1))
        if len(found) != 1:
            raise _unreadable("the store sent no object", errand)
        return found[0]

    def series(
        self, uri: str, credential: str | None, errand: Errand, *, most: int, max_bytes: int
    ) -> list[bytes]:
        """All objects of a series, in the order in which the store sends them.

        Args:
            errand: its ``max_bytes`` bound one object.
            most: how many objects it may have.
            max_bytes: of all of them together.
        """
        place = _place(uri, errand)
        if place.is_instance:
            raise errand.refused("the address is not one of a series", _FORM, code="DICOM_PATH_ERROR")
        whole = replace(errand, max_bytes=max_bytes)
        found = []
        for part in self._parts(place, credential, whole, most=most):
            if len(part) > errand.max_bytes:
                raise errand.too_large()
            found.append(part)
        if not found:
            raise _unreadable("the store sent no object", errand)
        return found

    def _parts(self, place: Place, credential: str | None, errand: Errand, *, most: int) -> Iterator[bytes]:
        permit = self._allow.store(place.target, place.store)
        if permit is None:
            raise errand.refused(
                f"no store at {place.target.netloc} with this address is on this server's allow-list",
                f"start the server with --allow-fetch {place.target.scheme}://{place.target.netloc}/PATH-OF-THE-STORE",
            )
        token = self._token(place, credential, errand)
        client = load("dicomweb_client.web", extra="fetch").DICOMwebClient
        session = load("medport_local.serving.fetch.session", extra="fetch").session
        headers = {"accept": _ACCEPT, "user-agent": "medport"}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        origin = place.target.origin
        base = f"{place.target.scheme}://{place.target.netloc}{place.store}"
        with session(self._web, errand, lambda to: permit if to.origin == origin else None, headers) as guarded:
            store = client(url=base, session=guarded, timeout=errand.remaining())
            store.set_http_retry_params(retry=False)  # it would sleep past the deadline
            address = f"{place.target.scheme}://{place.target.netloc}{place.target.path}"
            with _faults_of(place.target, errand):
                # Not retrieve_instance: it parses, and so inflates, what is sent, before our limits have seen it.
                yield from _checked(store.iter_bulkdata(address), errand, most)

    def _token(self, place: Place, credential: str | None, errand: Errand) -> str | None:
        if credential == APPLICATION_DEFAULT and not (
            _GOOGLE.fullmatch(place.target.host) or self._allow.names_store(place.target, place.store)
        ):
            raise errand.unauthorised(
                "the server's own credentials are only for stores that its allow-list names",
                "start the server with --allow-fetch and the address of the store, or send a token",
            )
        if credential and not place.target.keeps_secrets:
            raise errand.unauthorised("a credential is not sent over plain http", "use https, or send none")
        return self._own.token(credential, READ_DICOM, errand)


def _place(uri: str, errand: Errand) -> Place:
    """Read the address of a series or an instance; nothing in it is decoded, mended or optional."""
    try:
        target = parse(uri)
        parts = _PATH.fullmatch(target.path)
        if parts is None or "#" in uri or has_dots(target.path):
            raise ValueError("the address is not one of a DICOM series or instance")
    except ValueError as fault:
        raise errand.refused(str(fault), _FORM, code="DICOM_PATH_ERROR") from None
    return Place(target, parts["store"], parts["instance"] is not None)


def _checked(parts: Iterator[bytes], errand: Errand, most: int) -> Iterator[bytes]:
    """The parts of the answer, if they are DICOM files and not too many."""
    for count, part in enumerate(parts):
        if count == most:
            raise errand.refused(f"the store sent more than {most} objects", "ask for fewer", code="DICOM_ERROR")
        if part[128:132] != b"DICM":
            raise _unreadable("the store sent what is not a DICOM file", errand)
        yield bytes(part)


@contextmanager
def _faults_of(target: Target, errand: Errand) -> Iterator[None]:
    import requests

    try:
        yield
    except requests.HTTPError as fault:
        status = 0 if fault.response is None else fault.response.status_code
        raise errand.refused_status(target.host, status) from None
    except requests.RequestException:
        raise errand.failed(f"{target.host} cannot be read from") from None
    except (KeyError, ValueError, LookupError):  # no Content-Type, not multipart/related, a part without a head
        raise _unreadable("the store sent no multipart/related answer", errand) from None


def _unreadable(message: str, errand: Errand) -> FetchError:
    return errand.refused(message, "check that the address is one of a DICOMweb store", code="DICOM_ERROR")
