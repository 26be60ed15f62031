"""The real terraform with the stand-in provider. Without one of the two, these tests are skipped and counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.configurations import Cli, copied
from support.plane_server import KEY, PlaneServer, plane_server
from support.provider import attached, reaching
from support.provider.needed import schema_or_skip, terraform_or_skip


@pytest.fixture(scope="session")
def terraform() -> str:
    """The binary."""
    return terraform_or_skip()


@pytest.fixture(scope="session")
def schema() -> Path:
    """The schema that the stand-in serves."""
    return schema_or_skip()


@pytest.fixture(scope="session")
def provider(schema: Path) -> Iterator[dict[str, str]]:
    """The variables that attach a command to a stand-in that reaches no control plane."""
    with attached(schema, {"GOOGLE_VERTEX_AI_CUSTOM_ENDPOINT": "http://127.0.0.1:9/v1/"}) as variables:
        yield variables


@pytest.fixture(scope="session")
def configurations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of all that is under ``terraform/``."""
    return copied(tmp_path_factory.mktemp("configurations"))


@pytest.fixture
def written(tmp_path: Path, provider: dict[str, str]) -> Callable[[str], Cli]:
    """Terraform in a directory that holds nothing but this text, as ``main.tf``."""

    def write(text: str) -> Cli:
        (tmp_path / "main.tf").write_text(text, encoding="utf-8")
        return Cli(tmp_path, provider).ready()

    return write


@pytest.fixture(scope="session")
def plane(schema: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane")) as server:
        yield server


@pytest.fixture(scope="session")
def reached(plane: PlaneServer, schema: Path) -> Iterator[dict[str, str]]:
    with attached(schema, reaching(plane.url, plane.line["ca_file"], KEY)) as variables:
        yield variables


@pytest.fixture(autouse=True)
def no_endpoint_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test that uses the control plane leaves it without endpoints."""
    yield
    if "plane" in request.fixturenames:
        plane: PlaneServer = request.getfixturevalue("plane")
        for endpoint in plane.ok("GET", "/endpoints").get("endpoints", []):
            short = endpoint["name"].rpartition("/")[2]
            for deployed in endpoint.get("deployedModels", []):
                operation = plane.ok(
                    "POST", f"/endpoints/{short}:undeployModel", {"deployedModelId": deployed["id"]}
                )
                plane.succeeded(operation)
            plane.succeeded(plane.ok("DELETE", f"/endpoints/{short}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """How many tests did not run, at the end, where it is seen."""
    here = str(Path(__file__).parent.relative_to(Path.cwd())) if Path.cwd() in Path(__file__).parents else ""
    skipped = [each for each in terminalreporter.stats.get("skipped", []) if each.nodeid.startswith(here or "?")]
    if skipped:
        reasons = {each.longrepr[2].removeprefix("Skipped: ") for each in skipped}
        terminalreporter.write_line(f"{len(skipped)} Terraform tests did NOT run: {'; '.join(sorted(reasons))}")
