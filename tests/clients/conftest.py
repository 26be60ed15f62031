"""``medport serve`` as a process over TLS with a key, where its images come from, and other people's clients.

The clients are installed as they are published. They find the server by its address, trust its authority by the
usual variables, and must reach nothing beyond this machine.
"""

from __future__ import annotations

import io
import os
import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# They are read when those packages are imported, which is when the tests are collected.
os.environ.update(
    {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_MODE": "PRODUCTION",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "LANGSMITH_TRACING": "false",
        "TRANSFORMERS_VERBOSITY": "error",
    }
)
for package in ("torch", "openai", "google.cloud.aiplatform", "litellm", "langchain_openai", "huggingface_hub"):
    pytest.importorskip(package)

from support.announced import announced  # noqa: E402
from support.certificates import Authority  # noqa: E402
from support.dicomweb import DicomStore, slices  # noqa: E402
from support.gcs import Emulator, gcs_emulator  # noqa: E402
from support.proxy import playing  # noqa: E402
from support.web import serving  # noqa: E402
from support.wire import png  # noqa: E402

import medport  # noqa: E402
from medport_local.phantom import draw  # noqa: E402
from medport_local.serving import keys  # noqa: E402

KEY = "a-key-for-other-peoples-clients"
PROJECT, LOCATION = "radiology", "europe-west4"
BUCKET = "published-examples"
QUESTION = "Describe this X-ray."
NOTHING_ELSE = {"GOOGLE_API_USE_MTLS_ENDPOINT": "never", "GOOGLE_API_USE_CLIENT_CERTIFICATE": "false"}

# What the clients' own code warns of; nothing of ours is silenced.
THIRD_PARTY = (
    "ignore::DeprecationWarning:litellm.*",
    "ignore::UserWarning:pydantic.*",  # litellm's and langchain's models, not ours
    "ignore::FutureWarning:google.*",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for each in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(each))


@dataclass(frozen=True)
class Site:
    """What a caller is told: the ready line of ``medport serve --json``, and the key."""

    url: str
    ca_file: str
    endpoints: dict[str, str]
    slow_key: str
    """One with which a request a second may be made."""
    key: str = KEY

    @property
    def address(self) -> str:
        return self.url.removeprefix("https://")

    def base_url(self, endpoint: str = "medgemma", version: str = "v1beta1") -> str:
        """Of the OpenAI path under an endpoint resource."""
        return f"{self.url}/{version}/{self.endpoints[endpoint]}"


@dataclass(frozen=True)
class Sources:
    """Where images can be fetched from."""

    picture: bytes
    picture_url: str
    gcs_uri: str
    radiograph: bytes
    radiograph_uri: str
    ct: list[bytes]
    ct_uri: str
    slide_uri: str
    emulator_url: str
    store_url: str

    @property
    def allowed(self) -> list[str]:
        web = self.picture_url.removeprefix("http://").partition("/")[0]
        return [f"http://{web}", self.store_url, f"gs://{BUCKET}"]


@pytest.fixture(scope="session")
def drawing() -> np.ndarray[Any, Any]:
    """A drawn radiograph with a nodule, uint8 ``[256, 256]``."""
    rng = np.random.default_rng(3)
    return draw.render(draw.sample(rng, draw.Finding.NODULE), rng, 256).pixels


@pytest.fixture(scope="session")
def sources(drawing: np.ndarray[Any, Any]) -> Iterator[Sources]:
    """A web server, a DICOMweb store and a Cloud Storage emulator, on loopback."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    picture, radiograph, ct = png(128, seed=5), radiograph_file(drawing), slices(85)

    async def give(request: Request) -> Response:
        return Response(picture, media_type="image/png")

    store = DicomStore()
    with ExitStack() as stack:
        web = stack.enter_context(serving(Starlette(routes=[Route("/chest.png", give)])))
        root = stack.enter_context(store.serving())
        emulator: Emulator = stack.enter_context(gcs_emulator(BUCKET))
        emulator.upload(BUCKET, "chest.png", picture)
        emulator.upload(BUCKET, "slide.tiff", pyramid())
        ct_path = store.add(*ct)
        store.add(radiograph)
        yield Sources(
            picture=picture,
            picture_url=f"http://127.0.0.1:{web}/chest.png",
            gcs_uri=f"gs://{BUCKET}/chest.png",
            radiograph=radiograph,
            radiograph_uri=root + store.paths[-1],
            ct=ct,
            ct_uri=root + ct_path,
            slide_uri=f"gs://{BUCKET}/slide.tiff",
            emulator_url=emulator.url,
            store_url=root,
        )


@pytest.fixture(scope="session")
def site(sources: Sources, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server, started as its users start it."""
    keys_file = tmp_path_factory.mktemp("keys") / "keys.json"
    slow_key = keys.add(keys_file, "slow", rate="1/s")
    options = ["--tls-self-signed", str(tmp_path_factory.mktemp("tls") / "made"), "--api-key-env", "KEY"]
    options += ["--keys", str(keys_file), "--project", PROJECT, "--location", LOCATION]
    for each in sources.allowed:
        options += ["--allow-fetch", each]
    with announced(*options, env={"KEY": KEY, "STORAGE_EMULATOR_HOST": sources.emulator_url}) as facts:
        yield Site(facts["url"], facts["ca_file"], facts["endpoints"], slow_key)


@pytest.fixture(autouse=True)
def trusting(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Clients trust the server's own authority, by the variables that they know, and go nowhere else."""
    monkeypatch.setenv("SSL_CERT_FILE", site.ca_file)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", site.ca_file)
    for name, value in NOTHING_ELSE.items():
        monkeypatch.setenv(name, value)
    look_up = socket.getaddrinfo

    def only_here(host: Any, *arguments: Any, **options: Any) -> Any:
        name = host.decode() if isinstance(host, bytes) else host
        assert name in (None, "", "localhost", "127.0.0.1", "::1"), f"a client wants to reach {name}"
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket, "getaddrinfo", only_here)


@pytest.fixture(scope="session")
def tokens(site: Site) -> Iterator[str]:
    """A token server: whatever is asserted, the server's API key is the access token. Gives its URL.

    Beside it, ``…/other`` gives a token that the server does not know.
    """
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def give(request: Request) -> JSONResponse:
        token = "unknown" if request.url.path.endswith("/other") else site.key
        return JSONResponse({"access_token": token, "token_type": "Bearer", "expires_in": 3600})

    routes = [Route(path, give, methods=["POST"]) for path in ("/token", "/token/other")]
    with serving(Starlette(routes=routes)) as port:
        yield f"http://127.0.0.1:{port}/token"


@pytest.fixture(scope="session")
def client(site: Site) -> Iterator[medport.Client]:
    """Our own client, to compare the others with."""
    with medport.Client(backend="local", url=site.url, ca_file=site.ca_file, api_key=site.key) as each:
        yield each


@pytest.fixture
def googles_host(
    site: Site, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """A proxy that plays the shared host of Vertex AI. Gives a file of all authorities that are to be trusted."""
    trusted = tmp_path / "both.pem"
    trusted.write_bytes(Path(site.ca_file).read_bytes() + authority.ca_file.read_bytes())
    host = f"{LOCATION}-aiplatform.googleapis.com"
    with playing(authority, host, site.address, ssl.create_default_context(cafile=site.ca_file)) as proxy:
        monkeypatch.setenv("HTTPS_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        for name in ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE"):
            monkeypatch.setenv(name, str(trusted))
        yield str(trusted)


def radiograph_file(pixels: np.ndarray[Any, Any]) -> bytes:
    """A digital radiograph (DX) whose window is the identity on 8 bits."""
    from pydicom import Dataset
    from pydicom.dataset import FileMetaDataset
    from pydicom.uid import DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian, generate_uid

    ds = Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = DigitalXRayImageStorageForPresentation, generate_uid()
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.Modality = generate_uid(), generate_uid(), "DX"
    ds.Rows, ds.Columns = pixels.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation, ds.PixelRepresentation = 1, "MONOCHROME2", 0
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 8, 8, 7
    ds.WindowCenter, ds.WindowWidth = 128, 256
    ds.PixelData = pixels.tobytes()
    ds["PixelData"].VR = "OB"
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def pyramid() -> bytes:
    """A small whole slide: 2048 x 1024 pixels in tiles, and a level of a quarter of each side."""
    import tifffile

    y, x = np.mgrid[0:1024, 0:2048]
    base = np.stack([x % 251, y % 241, (x // 7 + y // 5) % 239], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    options: dict[str, Any] = {"tile": (256, 256), "photometric": "rgb", "compression": "zlib", "metadata": None}
    with tifffile.TiffWriter(file) as writer:
        writer.write(base, subfiletype=0, **options)
        writer.write(np.ascontiguousarray(base[::4, ::4]), subfiletype=1, **options)
    return file.getvalue()
