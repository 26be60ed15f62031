"""A small DICOMweb store (WADO-RS, QIDO-RS) over pydicom data sets, for a real socket.

store = DicomStore(token="secret")
store.add(pydicom_file("CT_small.dcm"))
with store.serving() as base:              # http://127.0.0.1:PORT/dicomWeb
    base + store.paths[0]                  # …/studies/…/series/…/instances/…
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

import orjson
from pydicom import Dataset, dcmread
from pydicom.data import get_testdata_file
from pydicom.uid import generate_uid
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from .certificates import Certificate
from .web import serving

PREFIX = "/dicomWeb"
_LEVELS = ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")
_NOT_IN_METADATA = ("PixelData", "FloatPixelData", "DoubleFloatPixelData", "OverlayData", "WaveformSequence")


def pydicom_file(name: str) -> bytes:
    """One of the files that pydicom brings along."""
    return Path(str(get_testdata_file(name))).read_bytes()


def slices(count: int, name: str = "CT_small.dcm", *, brighter: int = 0) -> list[bytes]:
    """A series made from one file: ``count`` objects, 5 mm apart, numbered from 1, each with a UID of its own.

    Each may be ``brighter`` than the one below by some stored values, so that they can be told apart.
    """
    series = generate_uid()
    made = []
    for index in range(count):
        one = dcmread(BytesIO(pydicom_file(name)))
        if brighter:
            one.PixelData = (one.pixel_array + brighter * index).astype(one.pixel_array.dtype).tobytes()
        one.SeriesInstanceUID = series
        one.SOPInstanceUID = one.file_meta.MediaStorageSOPInstanceUID = generate_uid()
        one.InstanceNumber = index + 1
        x, y, _ = one.ImagePositionPatient
        one.ImagePositionPatient = [x, y, index * 5]
        out = BytesIO()
        one.save_as(out, enforce_file_format=True)
        made.append(out.getvalue())
    return made


@dataclass(frozen=True, slots=True)
class Asked:
    """One request as it came in; header names are lower-case."""

    path: str
    query: str
    headers: dict[str, str] = field(repr=False)


class DicomStore:
    """Objects by UID, and an application that gives them out.

    Attributes:
        token: the bearer token it wants; ``None``: none.
        asked: the requests so far.
        paths: of the instances, below the base address, in the order in which they were added.
        answer: replaces the answer to every retrieval, for stores that misbehave.
    """

    def __init__(self, token: str | None = None) -> None:
        self.token = token
        self.asked: list[Asked] = []
        self.paths: list[str] = []
        self.answer: Callable[[Request], Response] | None = None
        self._objects: dict[tuple[str, str, str], tuple[Dataset, bytes]] = {}
        below = f"{PREFIX}/studies/{{study}}/series/{{series}}"
        self.app = Starlette(
            routes=[
                Route(f"{PREFIX}/studies", self._search(0)),
                Route(f"{PREFIX}/studies/{{study}}/series", self._search(1)),
                Route(f"{PREFIX}/series", self._search(1)),
                Route(f"{below}/instances", self._search(2)),
                Route(f"{PREFIX}/studies/{{study}}/instances", self._search(2)),
                Route(f"{PREFIX}/instances", self._search(2)),
                Route(f"{PREFIX}/studies/{{study}}/metadata", self._metadata),
                Route(f"{below}/metadata", self._metadata),
                Route(f"{below}/instances/{{instance}}/metadata", self._metadata),
                Route(f"{PREFIX}/studies/{{study}}", self._retrieve),
                Route(below, self._retrieve),
                Route(f"{below}/instances/{{instance}}", self._retrieve),
            ]
        )

    def add(self, *files: bytes) -> str:
        """Take in Part 10 files; gives the path of the series of the last one."""
        for data in files:
            one = dcmread(BytesIO(data), stop_before_pixels=True)
            study, series, instance = (str(one[level].value) for level in _LEVELS)
            self._objects[study, series, instance] = (one, data)
            self.paths.append(f"/studies/{study}/series/{series}/instances/{instance}")
        return self.paths[-1].partition("/instances/")[0]

    @contextmanager
    def serving(self, certificate: Certificate | None = None, *, host: str = "127.0.0.1") -> Iterator[str]:
        """Serve it; gives the base address, with ``host`` as the name for this machine."""
        with serving(self.app, certificate) as port:
            yield f"{'https' if certificate else 'http'}://{host}:{port}{PREFIX}"

    def _refusal(self, request: Request) -> Response | None:
        self.asked.append(Asked(request.url.path, request.url.query, dict(request.headers)))
        shown = request.headers.get("authorization")
        if self.token is None or shown == f"Bearer {self.token}":
            return None
        return Response(status_code=401 if shown is None else 403)

    def _matching(self, request: Request) -> list[tuple[Dataset, bytes]]:
        wanted = [request.path_params.get(name) for name in ("study", "series", "instance")]
        return [
            found
            for uids, found in self._objects.items()
            if all(want in (None, uid) for want, uid in zip(wanted, uids, strict=True))
        ]

    def _retrieve(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        if self.answer is not None:
            return self.answer(request)
        found = self._matching(request)
        if not found:
            return Response(status_code=404)
        return multipart([data for _, data in found])

    def _metadata(self, request: Request) -> Response:
        refusal = self._refusal(request)
        if refusal is not None:
            return refusal
        found = self._matching(request)
        return _json([_described(one) for one, _ in found]) if found else Response(status_code=404)

    def _search(self, level: int) -> Callable[[Request], Response]:
        def search(request: Request) -> Response:
            refusal = self._refusal(request)
            if refusal is not None:
                return refusal
            unique: dict[str, Dataset] = {}
            for one, _ in self._matching(request):
                if all(_equals(one, key, value) for key, value in request.query_params.items()):
                    unique.setdefault(str(one[_LEVELS[level]].value), one)
            start = int(request.query_params.get("offset", 0))
            end = start + int(request.query_params.get("limit", 1000))
            return _json([_described(one) for one in list(unique.values())[start:end]])

        return search


def multipart(parts: list[bytes], media_type: str = "application/dicom") -> Response:
    """A ``multipart/related`` answer."""
    boundary = uuid4().hex
    head = f"--{boundary}\r\nContent-Type: {media_type}\r\n\r\n".encode()
    body = b"".join(head + part + b"\r\n" for part in parts) + f"--{boundary}--\r\n".encode()
    return Response(body, media_type=f'multipart/related; type="{media_type}"; boundary={boundary}')


def _equals(one: Dataset, key: str, value: str) -> bool:
    if key in ("limit", "offset", "includefield", "fuzzymatching"):
        return True
    return key in one and str(one[key].value) == value


def _described(one: Dataset) -> dict[str, Any]:
    kept = Dataset()
    kept.update({element.tag: element for element in one if element.keyword not in _NOT_IN_METADATA})
    described: dict[str, Any] = kept.to_json_dict(suppress_invalid_tags=True)
    return described


def _json(found: list[dict[str, Any]]) -> Response:
    return Response(orjson.dumps(found), media_type="application/dicom+json")
