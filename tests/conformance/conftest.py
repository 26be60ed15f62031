"""The phantom models on a loopback port, a caller without a key, and other servers that images come from."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route
from support.dicomweb import DicomStore, pydicom_file, slices
from support.gcs import Emulator, gcs_emulator
from support.web import serving
from support.wire import Endpoint, png

from medport_local import inprocess
from medport_local.app import Settings

BUCKET = "phantoms"
SLICES = 5


@pytest.fixture(scope="session")
def bucket() -> Iterator[Emulator]:
    """A real Cloud Storage server with one bucket."""
    with gcs_emulator(BUCKET) as emulator:
        emulator.upload(BUCKET, "a.png", png(seed=1))
        emulator.upload(BUCKET, "b.png", png(seed=2))
        yield emulator


@pytest.fixture(autouse=True)
def storage_is_the_bucket(bucket: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """For each test anew: tests of other folders, which run in between, have storage of their own."""
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)


@pytest.fixture(scope="session")
def server(bucket: Emulator) -> Iterator[inprocess.Server]:
    listener = socket.create_server(("127.0.0.1", 0))
    host, port = listener.getsockname()
    settings = Settings(advertised=f"{host}:{port}", allow_fetch=("127.0.0.1", f"gs://{BUCKET}"), drain_s=1.0)
    running = inprocess.Server(settings, listener, None)
    running.wait_until_ready()
    with running:
        yield running


@pytest.fixture(scope="session")
def http(server: inprocess.Server) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=server.base_url, timeout=60) as client:
        yield client


@pytest.fixture(scope="session")
def server_address(server: inprocess.Server) -> str:
    return server.base_url.removeprefix("http://")


@pytest.fixture(scope="session")
def files() -> Iterator[str]:
    """The base address of a server with ``a.png`` (seed 1) and ``b.png`` (seed 2)."""
    pictures = {"a.png": png(seed=1), "b.png": png(seed=2)}

    async def give(request: Request) -> Response:
        found = pictures.get(request.path_params["name"])
        return Response(found, media_type="image/png") if found else Response(status_code=404)

    with serving(Starlette(routes=[Route("/{name}", give)])) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def store() -> Iterator[tuple[str, list[str]]]:
    """A DICOMweb store: the addresses of a CT series and of its instances, by position."""
    held = DicomStore()
    base = held.add(*slices(SLICES))
    with held.serving() as root:
        yield root + base, [root + path for path in held.paths]


@pytest.fixture(scope="session")
def ct_object() -> bytes:
    return pydicom_file("CT_small.dcm")


@pytest.fixture(scope="session")
def gemma(http: httpx.Client) -> Endpoint:
    return Endpoint(http, "medgemma")


@pytest.fixture(scope="session")
def shared(http: httpx.Client) -> Endpoint:
    return Endpoint(http, "medgemma-shared")


@pytest.fixture(scope="session")
def dicom(http: httpx.Client) -> Endpoint:
    return Endpoint(http, "medgemma-dicom")


@pytest.fixture(scope="session")
def siglip(http: httpx.Client) -> Endpoint:
    return Endpoint(http, "medsiglip")
