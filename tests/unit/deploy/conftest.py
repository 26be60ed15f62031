"""One control plane for all tests of the deploy tools that need one; each names its deployment after itself."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support import deploying
from support.plane_server import KEY, PlaneServer, plane_server

from medport_deploy.control.plane import ControlPlane


@pytest.fixture(scope="session")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    """A server that takes orders of faults."""
    with plane_server(tmp_path_factory.mktemp("plane"), "--allow-faults") as server:
        yield server


@pytest.fixture
def control(plane: PlaneServer) -> Iterator[ControlPlane]:
    """At that server, which has no faults left afterwards."""
    with deploying.plane(plane.url, plane.line["ca_file"], KEY) as control:
        yield control
    plane.http.delete("/medport/v1/faults").raise_for_status()
