"""schemathesis reads the server's OpenAPI document and tries all of it, on a real socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import fuzzing
from unit.local.conftest import save_gemma, save_siglip, write_manifest

from medport_local import inprocess
from medport_local.app import Settings
from medport_local.serving.routes import ContainerRoutes

KEY = "a-key-of-some-length"
THOROUGH = "FUZZ_EXAMPLES" in os.environ
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "10"))
"""Generated requests for each operation. If the variable is set, every operation has its coverage phase as well:
with 1000 that is some ten minutes."""
SEED = "20260101"
OPEN = {"OpenApi", "EndpointResource", "ListedEndpoint", "DeployedModel", "ModelResource", "ListedVersion"}
"""Documents of somebody else's, of which ours name what we read."""
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[inprocess.Server]:
    gemma, siglip = (tmp_path_factory.mktemp("toys") / name for name in ("gemma", "siglip"))
    save_gemma(gemma)
    write_manifest(gemma, "medgemma")
    save_siglip(siglip)
    write_manifest(siglip, "medsiglip")
    settings = Settings(
        snapshots={"medgemma": gemma, "medsiglip": siglip},
        api_key=KEY,
        batch_dir=tmp_path_factory.mktemp("jobs"),
        container=ContainerRoutes(predict="/predict", health="/healthz"),
    )
    running = inprocess.Server(settings, socket.create_server(("127.0.0.1", 0)), None)
    running.wait_until_ready()
    with running:
        yield running


def closed(document: dict[str, Any]) -> dict[str, Any]:
    """The document with no room for fields of a reply that it does not name: each would be a mistake in it."""
    schemas = document["components"]["schemas"]
    waiting = [document["components"]["responses"]]
    waiting += [each["responses"] for item in document["paths"].values() for each in item.values()]
    seen: set[str] = set()
    while waiting:
        for name in references(waiting.pop()) - seen:
            seen.add(name)
            waiting.append(schemas[name])
            if "properties" in schemas[name] and name not in OPEN:
                schemas[name].setdefault("additionalProperties", False)
    return document


def references(part: Any) -> set[str]:
    if isinstance(part, list):
        return {name for each in part for name in references(each)}
    if not isinstance(part, dict):
        return set()
    found = {name for value in part.values() for name in references(value)}
    pointer = part.get("$ref", "")
    return found | ({pointer.rpartition("/")[2]} if pointer.startswith("#/components/schemas/") else set())


def known(document: dict[str, Any], http: httpx.Client) -> dict[str, Any]:
    """The document with the names that this server has: a path made of random ones ends at 404."""
    endpoints = http.get("/v1/projects/-/locations/-/endpoints").json()["endpoints"]
    ids = [each["name"].rpartition("/")[2] for each in endpoints]
    _, project, _, location, *_ = endpoints[0]["name"].split("/")
    names = {
        "project": [project],
        "location": [location],
        "endpoint": ids,
        "model": ids,
        "model_version": ["1", "default"],
        "deployed_model": [each["deployedModels"][0]["id"] for each in endpoints],
    }
    for item in document["paths"].values():
        for operation in item.values():
            for parameter in operation["parameters"]:
                if parameter.get("name") in names:
                    parameter["schema"] = {"type": "string", "enum": names[parameter["name"]]}
                    del parameter["example"]
    return document


# What only Vertex has is refused as UNIMPLEMENTED: that is an answer, and no fault of the server.
REFUSED_IN_WORDS = """
[checks]
not_a_server_error.expected-statuses = ["2xx", "3xx", "4xx", "501"]
"""

# Its bodies are those of the operations that are left, at other paths: some thirty thousand requests more.
BRIEFLY = """
[[operations]]
include-path-regex = "^/v1beta1/|/invoke/|[rR]awPredict$|^/predict$"
phases.coverage.enabled = false
"""


@pytest.mark.timeout(1800)
def test_nothing_that_the_document_allows_or_forbids_makes_the_server_fail(
    server: inprocess.Server, tmp_path: Path
) -> None:
    with httpx.Client(base_url=server.base_url, headers={"Authorization": f"Bearer {KEY}"}) as http:
        document = known(closed(http.get("/openapi.json").json()), http)
    (tmp_path / "openapi.json").write_text(json.dumps(document))
    (tmp_path / "schemathesis.toml").write_text(
        f'hooks = "{fuzzing.__file__}"\n'
        "continue-on-failure = true\n"
        "[headers]\n"
        f'Authorization = "Bearer {KEY}"\n'
        "[generation]\n"
        "deterministic = true\n"
        "no-shrink = true\n"
        'database = "none"\n'
        "[output.sanitization]\n"
        "enabled = false\n" + REFUSED_IN_WORDS + ("" if THOROUGH else BRIEFLY)
    )
    # A process of its own: its plug-ins and warnings stay out of ours, and it runs beside the server's thread.
    command = [
        *(sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run", "openapi.json"),
        *("--url", server.base_url, "--phases", "examples,coverage,fuzzing", "--checks", ",".join(CHECKS)),
        *("--max-examples", str(EXAMPLES), "--seed", SEED, "--workers", "2", "--warnings", "off"),
        *("--request-timeout", "60", "--suppress-health-check", "all"),
    ]

    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=1800)

    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-4000:]
    count = sum(len(item) for item in document["paths"].values())
    assert f"Selected: {count}/{count}" in done.stdout
    assert f"Tested: {count}" in done.stdout
