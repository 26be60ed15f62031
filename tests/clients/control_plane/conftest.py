"""``medport serve --control-plane`` as a process over TLS, and google-cloud-aiplatform pointed at it.

The server has its own authority and an API key, which the client sends as the access token. What is deployed are
engines on the phantom models.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from google.api_core.client_options import ClientOptions
from google.cloud import aiplatform
from google.oauth2.credentials import Credentials
from support.announced import announced
from support.gcs import Emulator, gcs_emulator

from medport_local.phantom import weights_dir
from medport_local.serving import keys

from ..conftest import KEY, LOCATION, PROJECT

BUCKET = "control-plane"
IMAGE = "medport/server@sha256:" + "ab" * 32
MACHINE: dict[str, Any] = {
    "machine_type": "g2-standard-24",
    "accelerator_type": "NVIDIA_L4",
    "accelerator_count": 2,
}
_counter = itertools.count()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Its LRO futures are Google's own, and warn of their own retry class.
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:google.*"))
            item.add_marker(pytest.mark.filterwarnings("ignore::DeprecationWarning:vertexai.*"))


@dataclass(frozen=True)
class Site:
    """What a caller is told: the ready line, and the key."""

    url: str
    ca_file: str
    project: str
    number: str
    location: str
    keys_file: Path | None = None
    """What the server reads again when it changes."""
    key: str = KEY

    @property
    def address(self) -> str:
        return self.url.removeprefix("https://")

    @property
    def parent(self) -> str:
        """As answers have it: by the number."""
        return f"projects/{self.number}/locations/{self.location}"

    @property
    def options(self) -> ClientOptions:
        """For the generated clients."""
        return ClientOptions(api_endpoint=self.url)

    def http(self, **more: Any) -> httpx.Client:
        """A caller without any client library; paths begin behind the project's location."""
        return httpx.Client(
            verify=_trusting(self.ca_file), headers={"Authorization": f"Bearer {self.key}"}, timeout=60,
            base_url=self.url, **more,
        )  # fmt: skip


def _trusting(ca_file: str) -> Any:
    import ssl

    return ssl.create_default_context(cafile=ca_file)


@pytest.fixture(scope="session")
def bucket() -> Iterator[Emulator]:
    """A real Cloud Storage server with one bucket."""
    with gcs_emulator(BUCKET) as emulator:
        yield emulator


def opened(facts: dict[str, Any]) -> Site:
    """The site that a ready line is about."""
    plane = facts["control_plane"]
    return Site(facts["url"], facts["ca_file"], plane["project"], plane["project_number"], plane["location"])


@pytest.fixture(scope="session")
def site(bucket: Emulator, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """The server, empty at first."""
    options = ["--control-plane", str(tmp_path_factory.mktemp("plane") / "state"), "--allow-faults"]
    options += ["--tls-self-signed", str(tmp_path_factory.mktemp("tls") / "made"), "--api-key-env", "KEY"]
    options += ["--project", PROJECT, "--location", LOCATION, "--allow-fetch", f"gs://{BUCKET}"]
    keys_file = tmp_path_factory.mktemp("keys") / "keys.json"
    keys.add(keys_file, "somebody")
    options += ["--keys", str(keys_file)]
    with announced(*options, env={"KEY": KEY, "STORAGE_EMULATOR_HOST": bucket.url}) as facts:
        yield replace(opened(facts), keys_file=keys_file)


@pytest.fixture
def credentials(tokens: str) -> Credentials:
    """An access token that is the API key."""
    return Credentials(None, refresh_token="r", token_uri=tokens, client_id="c", client_secret="s")


@pytest.fixture(autouse=True)
def initialised(site: Site, credentials: Credentials, bucket: Emulator, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a program sets it up that is pointed at another API host."""
    for name in ("google.cloud.aiplatform", "vertexai"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", bucket.url)
    aiplatform.init(
        project=PROJECT,
        location=LOCATION,
        api_endpoint=site.url,
        api_transport="rest",
        credentials=credentials,
        staging_bucket=f"gs://{BUCKET}",
    )


@pytest.fixture
def http(site: Site) -> Iterator[httpx.Client]:
    with site.http() as client:
        yield client


def fresh(stem: str) -> str:
    """An id that nobody has had."""
    return f"{stem}-{next(_counter)}"


def container(family: str = "medgemma") -> dict[str, Any]:
    """How a Model version says which snapshot it is: the keywords of ``Model.upload``."""
    manifest = orjson.loads((weights_dir(family) / "manifest.json").read_bytes())
    return {
        "serving_container_image_uri": IMAGE,
        "serving_container_args": [f"--model={manifest['repo_id']}", f"--revision={manifest['revision']}"],
        "serving_container_environment_variables": {"MEDPORT_SNAPSHOT_SHA256": manifest["snapshot_sha256"]},
        "serving_container_predict_route": "/predict",
        "serving_container_health_route": "/health",
    }


def upload(family: str = "medgemma", **options: Any) -> aiplatform.Model:
    """Upload a version of a phantom model."""
    return aiplatform.Model.upload(**{**container(family), "display_name": fresh(family), **options})


@pytest.fixture(scope="session")
def made() -> dict[str, str]:
    """Resources that several tests read and none changes: what → name."""
    return {}


@pytest.fixture
def model(made: dict[str, str]) -> aiplatform.Model:
    """A MedGemma phantom with two versions, the second of which has the alias ``candidate``."""
    if "model" not in made:
        first = upload(model_id="reader", labels={"site": "ward-7"})
        upload(parent_model=first.resource_name, is_default_version=False, version_aliases=["candidate"])
        made["model"] = first.resource_name
    return aiplatform.Model(made["model"])


Open = Callable[..., aiplatform.Endpoint]


@pytest.fixture
def endpoint() -> Iterator[Open]:
    """Makes endpoints, and takes them away with what is deployed there."""
    opened_: list[aiplatform.Endpoint] = []

    def open_(**options: Any) -> aiplatform.Endpoint:
        opened_.append(aiplatform.Endpoint.create(**{"display_name": fresh("endpoint"), **options}))
        return opened_[-1]

    yield open_
    for each in opened_:
        close(each)


def close(endpoint: aiplatform.Endpoint) -> None:
    """Undeploy what is there and delete it, if it is still there."""
    from google.api_core.exceptions import NotFound

    with contextlib.suppress(NotFound):
        endpoint.delete(force=True)
    if endpoint.authorized_session is not None:
        endpoint.authorized_session.close()


@pytest.fixture
def served(made: dict[str, str], model: aiplatform.Model) -> Iterator[aiplatform.Endpoint]:
    """A dedicated endpoint with an engine; tests only ask it."""
    if "served" not in made:
        found = aiplatform.Endpoint.create(
            display_name="served", endpoint_id="served", dedicated_endpoint_enabled=True, inference_timeout=120
        )
        found.deploy(model, deployed_model_display_name="reader v1", **MACHINE)
        made["served"] = found.resource_name
    yield from _borrowed(made["served"])


@pytest.fixture
def shared(made: dict[str, str], model: aiplatform.Model) -> Iterator[aiplatform.Endpoint]:
    """An endpoint on the API's own host with an engine; tests only ask it."""
    if "shared" not in made:
        found = aiplatform.Endpoint.create(display_name="shared")
        found.deploy(model, **MACHINE)
        made["shared"] = found.resource_name
    yield from _borrowed(made["shared"])


def _borrowed(name: str) -> Iterator[aiplatform.Endpoint]:
    found = aiplatform.Endpoint(name)
    yield found
    if found.authorized_session is not None:
        found.authorized_session.close()
