"""Service accounts of ``medport keys`` in Google's own libraries, over TLS: both kinds of token."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google.auth
import orjson
import pytest
from google.api_core import exceptions
from google.auth.exceptions import RefreshError
from google.auth.transport.requests import AuthorizedSession
from google.cloud import aiplatform
from google.oauth2 import service_account
from support.announced import announced
from typer.testing import CliRunner

from medport_local import cli_keys
from medport_local.phantom import weights_dir
from medport_local.serving import chain

from .conftest import LOCATION, PROJECT

SCOPE = "https://www.googleapis.com/auth/cloud-platform"
_FORGET_S = 1.3
"""Within a second a server has read its keys again."""


@dataclass(frozen=True)
class Place:
    """Where a server runs, and will run again."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def ca_file(self) -> str:
        return str(self.folder / "tls" / "ca.pem")

    @property
    def endpoints(self) -> str:
        return f"{self.url}/v1/projects/{PROJECT}/locations/{LOCATION}/endpoints"

    def running(self) -> AbstractContextManager[dict[str, Any]]:
        return announced(
            "--port", str(self.port), "--control-plane", str(self.folder / "state"),
            "--tls-self-signed", str(self.folder / "tls"), "--keys", str(self.folder / "keys.json"),
            "--audit", str(self.folder / "audit"), "--project", PROJECT, "--location", LOCATION,
            env={},
        )  # fmt: skip

    def keys(self, *arguments: str) -> None:
        done = CliRunner().invoke(cli_keys.app, [*arguments, "--keys", str(self.folder / "keys.json")])
        assert done.exit_code == 0, done.exception or done.output

    def account(self, name: str, *grants: str) -> str:
        """The file of a new service account."""
        out = self.folder / f"{name}.json"
        uri = f"{self.url}/token"
        self.keys(
            "add-service-account", name, "--project", PROJECT, "--token-uri", uri, "--out", str(out), *grants
        )
        return str(out)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    """A server with keys, and a control plane that is empty at first."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    place = Place(tmp_path_factory.mktemp("site"), port)
    place.account("everything", "--action", "deploy", "--action", "read", "--action", "infer")
    with place.running():
        yield place


def credentials(file: str, *, scopes: tuple[str, ...] = (SCOPE,)) -> service_account.Credentials:
    return service_account.Credentials.from_service_account_file(file, scopes=scopes)


def everything(site: Place) -> str:
    return str(site.folder / "everything.json")


def test_session_gets_an_access_token_from_the_server_itself(site: Place) -> None:
    made = credentials(everything(site))

    with AuthorizedSession(made) as session:
        answer = session.get(site.endpoints)

    assert answer.status_code == 200
    assert made.token.startswith("mpt_")


@pytest.mark.parametrize("scopes", [(SCOPE,), ()])
def test_session_with_self_signed_tokens_needs_no_token_server(site: Place, scopes: tuple[str, ...]) -> None:
    file = json.loads(Path(everything(site)).read_text()) | {"token_uri": "https://127.0.0.1:1/token"}
    made = service_account.Credentials.from_service_account_info(
        file, scopes=scopes, always_use_jwt_access=bool(scopes)
    )

    with AuthorizedSession(made, default_host="aiplatform.googleapis.com") as session:
        answer = session.get(site.endpoints)

    assert answer.status_code == 200
    assert made.token.count(".") == 2


def test_application_default_credentials_are_the_file(site: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", everything(site))

    made, project = google.auth.default(scopes=[SCOPE])
    with AuthorizedSession(made) as session:
        answer = session.get(site.endpoints)

    assert (answer.status_code, project) == (200, PROJECT)


def test_vertex_client_deploys_and_predicts_with_the_account_alone(site: Place) -> None:
    manifest = orjson.loads((weights_dir("medsiglip") / "manifest.json").read_bytes())
    made = credentials(everything(site))
    aiplatform.init(
        project=PROJECT, location=LOCATION, api_endpoint=site.url, api_transport="rest", credentials=made
    )

    model = aiplatform.Model.upload(
        display_name="embedder",
        serving_container_image_uri="medport/server@sha256:" + "ab" * 32,
        serving_container_args=[f"--model={manifest['repo_id']}", f"--revision={manifest['revision']}"],
        serving_container_environment_variables={"MEDPORT_SNAPSHOT_SHA256": manifest["snapshot_sha256"]},
        serving_container_predict_route="/predict",
        serving_container_health_route="/health",
    )
    endpoint = aiplatform.Endpoint.create(display_name="embed", dedicated_endpoint_enabled=True)
    endpoint.deploy(model, machine_type="g2-standard-24", accelerator_type="NVIDIA_L4", accelerator_count=2)
    answer = endpoint.predict(instances=[{"text": "a chest X-ray"}], use_dedicated_endpoint=True)
    endpoint.delete(force=True)
    endpoint.authorized_session.close()

    assert len(answer.predictions[0]["embedding"]) > 8
    lines = [
        json.loads(line)
        for file in (site.folder / "audit").glob("*.jsonl")
        for line in file.read_text().splitlines()
    ]
    changes = {each["verb"]: each["key"] for each in lines if each["event"] == "request" and "verb" in each}
    assert changes == dict.fromkeys(
        ["aiplatform.models.upload", "aiplatform.endpoints.create", "aiplatform.endpoints.deploy",
         "aiplatform.endpoints.undeploy", "aiplatform.endpoints.delete"], "everything",
    )  # fmt: skip
    assert {each["key"] for each in lines if each["event"] == "request" and each["action"] == "infer"} == {
        "everything"
    }
    assert chain.verify(site.folder / "audit").unbroken


def test_account_that_may_only_read_is_forbidden_to_create_in_googles_words(site: Place) -> None:
    reader = credentials(site.account("reader", "--action", "read"))
    time.sleep(_FORGET_S)
    aiplatform.init(
        project=PROJECT, location=LOCATION, api_endpoint=site.url, api_transport="rest", credentials=reader
    )

    assert aiplatform.Endpoint.list() == []
    with pytest.raises(exceptions.Forbidden, match=r"Permission 'aiplatform.endpoints.create' denied on resource"):
        aiplatform.Endpoint.create(display_name="mine")


def test_account_that_was_revoked_gets_neither_in_nor_a_token(site: Place) -> None:
    made = credentials(site.account("leaver", "--action", "read"))
    time.sleep(_FORGET_S)

    with AuthorizedSession(made) as session:
        assert session.get(site.endpoints).status_code == 200
        site.keys("revoke", "leaver")
        time.sleep(_FORGET_S)
        with pytest.raises(RefreshError, match="invalid_grant") as refused:
            session.get(site.endpoints)

    assert not refused.value.retryable


def test_server_that_was_started_again_is_asked_for_another_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        place = Place(tmp_path, listener.getsockname()[1])
    made = credentials(place.account("ci", "--action", "read"))
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", place.ca_file)
    tokens = set()
    with AuthorizedSession(made) as session:
        for _ in range(2):
            with place.running():
                tokens.add(_asked(session, place))

    assert len(tokens) == 2


def _asked(session: AuthorizedSession, place: Place) -> str:
    """The token with which a call succeeded."""
    assert session.get(place.endpoints).status_code == 200
    return str(session.credentials.token)
