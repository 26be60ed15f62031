"""The promise to a site with no network: one file in, one key to trust, and nothing is ever asked outside.

Everything happens in a network namespace. Its only way out leads nowhere and is listened to; a guard in the site's
Python writes down every address and every name. With ``MEDPORT_OFFLINE_FULL=1`` (``make offline``) every package
comes from the bundle; else the large ones are lent by this environment.
"""

from __future__ import annotations

import ipaddress
import json
import os
import socket
import subprocess
import sys
import venv
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import netns, offline_site
from support.netns import Report
from support.site_parts import provider_mirror, repack

from medport_local.bundle.collect import closure, installed_here
from medport_local.bundle.wheels import read_wheel
from medport_local.phantom import weights_dir

# Read here: tests run without a setting of whoever started them.
FULL = os.environ.get("MEDPORT_OFFLINE_FULL") == "1"
TRANSCRIPT = os.environ.get("MEDPORT_OFFLINE_TRANSCRIPT")
EXTRAS = "bundle,dicom,local"
FROM_BUNDLE = ("httpx", "setuptools", "starlette", "tenacity", "typer", "uvicorn")
"""Small and of Python alone; with medport itself they come as wheels in any case."""
TIMEOUT_S = 1800 if FULL else 420
STEPS = [
    "checksum", "unpack wheels", "environment", "pip", "verify", "install", "chat", "classify", "embed",
    "audit show", "serve", "audit verify", "in-process", "doctor",
]  # fmt: skip

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(TIMEOUT_S + 300),
    pytest.mark.skipif(netns.entering() is None, reason="no network namespace can be made here (unshare -n, -rn)"),
]


@dataclass(frozen=True)
class Visited:
    """What came of the visit."""

    steps: dict[str, dict[str, Any]]
    network: Report
    guarded: list[dict[str, Any]]
    lock_id: str
    snapshots: dict[str, str]
    """``snapshot_sha256`` by family, as locked."""


def _medport(*arguments: str, folder: Path) -> str:
    """The connected side: this environment's own command line."""
    command = [sys.executable, "-m", "medport.cli", *arguments]
    environment = {**os.environ, "MEDPORT_STORE": str(folder / "store")}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def _export(connected: Path) -> dict[str, Any]:
    for family in ("medgemma", "medsiglip"):
        _medport("snapshot", "add", str(weights_dir(family)), folder=connected)  # type: ignore[arg-type]
    _medport(
        "snapshot", "lock", "medport/medgemma-phantom", "medport/medsiglip-phantom", "-o", "medport.lock",
        folder=connected,
    )  # fmt: skip
    _medport("bundle", "keygen", "key.pem", "pub.pem", folder=connected)
    wheels = "auto"
    if not FULL:
        wheels = "wheels"
        (connected / wheels).mkdir()
        for name in ("medport", *FROM_BUNDLE):
            repack(name, connected / wheels)
    provider_mirror(connected / "mirror")
    exported = _medport(
        "bundle", "export", "--lock", "medport.lock", "--wheels", wheels, "--providers", "mirror",
        "--sign", "key.pem", "-o", "site.mpb", "--json", folder=connected,
    )  # fmt: skip
    return json.loads(exported)  # type: ignore[no-any-return]


def _lend(folder: Path, wheel: Path) -> Path:
    """A directory with the large packages of this environment, and with nothing that comes from the bundle."""
    folder.mkdir()
    for each in closure(read_wheel(wheel), EXTRAS.split(","), installed_here()):
        if each.metadata["Name"].lower() not in FROM_BUNDLE:
            for top in _tops(each):
                link = folder / top.name
                if not link.exists():
                    link.symlink_to(top)
    return folder


def _tops(there: Distribution) -> Iterator[Path]:
    for part in {file.parts[0] for file in there.files or ()} - {"..", "__pycache__"}:
        yield Path(str(there.locate_file(part)))


@pytest.fixture(scope="module")
def visited(tmp_path_factory: pytest.TempPathFactory) -> Visited:
    """The whole story, told once."""
    root = tmp_path_factory.mktemp("offline")
    connected, directory = root / "connected", root / "site"
    connected.mkdir()
    directory.mkdir()
    exported = _export(connected)
    for name in ("site.mpb", "pub.pem"):
        (connected / name).rename(directory / name)
    (directory / "site.mpb.sha256").write_text(offline_site.checksum(directory / "site.mpb"))
    Image.new("L", (64, 64), 90).save(directory / "cxr.png")
    outside = None
    if not FULL:
        (wheel,) = (connected / "wheels").glob("medport-*.whl")
        outside = str(_lend(root / "outside", wheel))
    given = offline_site.Visit(
        directory=str(directory), extras=EXTRAS, outside=outside, guard_log=str(root / "guard.jsonl")
    )
    (root / "plan.json").write_text(offline_site.plan_of(given))
    command = [sys.executable, offline_site.__file__, str(root / "plan.json"), str(root / "steps.json")]
    network = netns.run(command, root / "network.json", env=os.environ, timeout_s=TIMEOUT_S)
    steps = json.loads((root / "steps.json").read_text())
    if TRANSCRIPT:
        Path(TRANSCRIPT).write_text(_transcript(steps, root))
    lock = json.loads((connected / "medport.lock").read_text())
    return Visited(
        steps={step["name"]: step for step in steps},
        network=network,
        guarded=[json.loads(line) for line in (root / "guard.jsonl").read_text().splitlines()],
        lock_id=exported["lock_id"],
        snapshots={name: model["snapshot_sha256"] for name, model in lock["models"].items()},
    )


def _transcript(steps: list[dict[str, Any]], root: Path) -> str:
    lines = []
    for step in steps:
        lines += [
            f"$ {step['command']}    # {step['seconds']} s, exit code {step['code']}",
            step["out"] + step["err"],
        ]
    return "\n".join(lines).replace(str(root), "")


def _answer(visited: Visited, step: str) -> Any:
    return json.loads(visited.steps[step]["out"])


def test_every_step_ends_well(visited: Visited) -> None:
    failed = {name: step["err"] + step["out"] for name, step in visited.steps.items() if step["code"] != 0}

    assert failed == {}
    assert list(visited.steps) == STEPS
    assert visited.network.exit_code == 0


@pytest.mark.parametrize("step", ["chat", "in-process"])
def test_answer_names_the_locked_snapshot_and_the_lock(visited: Visited, step: str) -> None:
    source = _answer(visited, step)["provenance"]

    assert source["snapshot_sha256"] == visited.snapshots["medgemma"]
    assert source["lock_id"] == visited.lock_id


def test_audit_log_says_which_bytes_answered(visited: Visited) -> None:
    records = _answer(visited, "audit show")["records"]

    assert {record["snapshot_sha256"] for record in records} == {visited.snapshots["medgemma"]}
    assert {record["lock_id"] for record in records} == {visited.lock_id}
    assert "The chain is unbroken" in visited.steps["audit verify"]["out"]


def test_doctor_finds_nothing_broken_and_checks_the_installed_bundle(visited: Visited) -> None:
    said = visited.steps["doctor"]["out"]

    assert "All is well." in said
    for name in ("store", "snapshots", "bundle", "wheels", "keys", "audit", "clock"):
        assert f"ok       {name} " in said
    assert "files as listed" in said
    assert "signed by key sha256:" in said
    assert "NOT checked" not in said


def test_python_uses_no_address_but_loopback_and_looks_up_no_name(visited: Visited) -> None:
    assert [line for line in visited.guarded if not _stays_here(line)] == []
    # The guard was there: the server and its clients did talk.
    assert any(line["event"] == "socket.connect" for line in visited.guarded)
    assert any(line["event"] == "socket.bind" for line in visited.guarded)


def test_no_packet_leaves_and_no_name_look_up_is_sent(visited: Visited) -> None:
    if visited.network.capture is None:
        pytest.skip("no link can be made or listened to here; there was no route at all")

    assert visited.network.packets == []
    assert visited.network.dropped == 0


def _stays_here(line: dict[str, Any]) -> bool:
    """A Unix socket, a loopback address, or no address at all."""
    address = line["address"]
    if line["family"] == socket.AF_UNIX or address is None:
        return True
    host = address[0] if isinstance(address, list) else address
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


DELIBERATE = {
    "name": "socket.getaddrinfo('registry.example', 443)",
    "name without a dot": "socket.gethostbyname('registry')",
    "address": "socket.create_connection(('198.51.100.7', 443), 1)",
    "datagram": "socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b'x', ('198.51.100.7', 53))",
    "address of IPv6": "socket.create_connection(('2001:db8:1::7', 443), 1)",
}


@pytest.fixture(scope="module")
def guarded_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("guarded")
    venv.create(folder, with_pip=False, symlinks=True)
    offline_site.plant(folder, None)
    return folder / "bin" / "python"


@pytest.mark.parametrize("deed", DELIBERATE)
def test_guard_and_capture_see_a_deliberate_deed(guarded_python: Path, tmp_path: Path, deed: str) -> None:
    code = f"import socket\ntry: {DELIBERATE[deed]}\nexcept OSError: pass"
    log = tmp_path / "guard.jsonl"
    environment = {**os.environ, "SOCKET_GUARD_LOG": str(log), "RES_OPTIONS": "timeout:1 attempts:1"}

    report = netns.run([str(guarded_python), "-c", code], tmp_path / "report", env=environment, timeout_s=60)

    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(not _stays_here(line) for line in lines)
    if report.capture is not None and _reachable(deed):
        assert report.packets


def test_name_look_up_by_a_library_in_c_is_captured(tmp_path: Path) -> None:
    if not _resolver():
        pytest.skip("this machine names no resolver")
    environment = {**os.environ, "RES_OPTIONS": "timeout:1 attempts:1"}

    report = netns.run(["getent", "hosts", "registry.example"], tmp_path / "r", env=environment, timeout_s=60)

    if report.capture is None:
        pytest.skip("no link can be made or listened to here")
    assert any(" port 53" in packet for packet in report.packets)


def test_namespace_that_nobody_listens_in_has_no_route(tmp_path: Path) -> None:
    code = f"import socket, sys\nsys.exit(socket.socket().connect_ex(('{netns.OUTSIDE}', 443)))"

    report = netns.run([sys.executable, "-c", code], tmp_path / "r", env=os.environ, timeout_s=60, listen=False)

    assert os.strerror(report.exit_code) == "Network is unreachable"


def _reachable(deed: str) -> bool:
    """Whether the kernel would send something: a name needs a resolver, IPv6 a kernel that has it."""
    if "name" in deed:
        return _resolver()
    return "IPv6" not in deed or Path("/proc/net/if_inet6").exists()


def _resolver() -> bool:
    try:
        lines = Path("/etc/resolv.conf").read_text().splitlines()
    except OSError:
        return False
    return any(line.startswith("nameserver") for line in lines)
