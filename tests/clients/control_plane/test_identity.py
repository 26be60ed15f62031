"""A service account's credential file, as `GOOGLE_APPLICATION_CREDENTIALS`: self-signed tokens and `/token`."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from google.api_core import exceptions
from google.cloud import aiplatform
from google.oauth2 import service_account
from support.client_calls import call
from support.polling import wait_until
from support.wire import text

from .conftest import LOCATION, MACHINE, PROJECT, Site, close, upload

Become = Callable[..., None]


@pytest.fixture
def become(site: Site, tmp_path: Path) -> Become:
    """Register a service account with these actions, by the command line, and be it from here on."""

    def become_(name: str, *actions: str) -> None:
        out = tmp_path / f"{name}.json"
        command = [sys.executable, "-m", "medport_local.cli", "keys", "add-service-account", name]
        command += ["--keys", str(site.keys_file), "--token-uri", f"{site.url}/token", "--out", str(out)]
        command += ["--project", PROJECT, *(part for each in actions for part in ("--action", each)), "--json"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["name"] == name
        aiplatform.init(
            project=PROJECT,
            location=LOCATION,
            api_endpoint=site.url,
            credentials=service_account.Credentials.from_service_account_file(str(out)),
        )
        wait_until(known, 10)

    def known() -> bool:
        try:
            aiplatform.Endpoint.list()
        except exceptions.Unauthorized:
            return False
        except exceptions.Forbidden:
            pass
        return True

    return become_


@call("service_account.Credentials: Model.upload(), Endpoint.create(), .deploy(), .predict(), .delete()")
def test_account_that_may_deploy_goes_all_the_way(become: Become) -> None:
    become("deployer", "read", "deploy", "infer")

    model = upload()
    made = aiplatform.Endpoint.create(display_name="by an account", dedicated_endpoint_enabled=True)
    made.deploy(model, **MACHINE)
    answer = made.predict(instances=[text("Describe this X-ray.", max_tokens=2)])

    assert answer.deployed_model_id == made.list_models()[0].id
    close(made)


@call("service_account.Credentials that may only ask: Model.upload(), Endpoint.create()", "refused", "403")
def test_account_that_may_only_ask_changes_nothing(become: Become) -> None:
    become("reader", "infer")

    with pytest.raises(exceptions.Forbidden):
        upload()
    with pytest.raises(exceptions.Forbidden):
        aiplatform.Endpoint.create(display_name="not allowed")
