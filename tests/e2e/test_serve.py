"""``medport serve`` as a program, with the phantom models, over TLS and with a key."""

from __future__ import annotations

import json
import os
import queue
import signal
import socket
import ssl
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import forked

import medport
from medport_local.phantom import weights_dir

KEY = "a-key-of-some-length"
COMMAND = ["medport_local.cli", "serve"]


@contextmanager
def serving(*options: str, env: dict[str, str] | None = None) -> Iterator[tuple[dict[str, Any], forked.Process]]:
    """A server as a program, and the line it printed."""
    process = forked.Process(*COMMAND, "--port", "0", "--json", *options, env={**os.environ, **(env or {})})
    assert process.stdout is not None
    lines: queue.Queue[str] = queue.Queue()
    reader = threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True)  # type: ignore[union-attr]
    reader.start()
    try:
        line = lines.get(timeout=90)
        assert line, process.stderr and process.stderr.read()
        yield json.loads(line), process
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=30)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    directory = tmp_path_factory.mktemp("tls") / "made"
    options = ("--tls-self-signed", str(directory), "--api-key-env", "KEY", "--project", "radiology")
    with serving(*options, env={"KEY": KEY}) as (line, _):
        yield line


def test_line_says_all_that_a_client_needs(server: dict[str, Any]) -> None:
    assert set(server) == {"url", "ca_file", "endpoints", "models"}
    assert server["url"].startswith("https://127.0.0.1:")
    assert server["endpoints"] == {
        key: f"projects/radiology/locations/europe-west4/endpoints/{key.replace('_', '-')}"
        for key in ("medgemma", "medgemma_dicom", "medgemma_shared", "medsiglip")
    }
    assert stat.S_IMODE(Path(server["ca_file"]).parent.stat().st_mode) == 0o700


def test_line_says_on_what_each_model_runs_and_how_much_fits(server: dict[str, Any]) -> None:
    gemma, siglip = server["models"]["medgemma"], server["models"]["medsiglip"]

    assert (gemma["engine"], gemma["dtype"], gemma["reuse_bytes"]) == ("torch", "float32", 0)
    assert gemma["model_id"] == "medport/medgemma-phantom"
    assert gemma["device"] in ("cpu", "mps") or gemma["device"].startswith("cuda:")
    assert gemma["device_name"]
    assert gemma["weights_bytes"] > 1_000_000
    room = gemma["room"]
    assert room["kv_bytes"] == room["rings_bytes"] + room["arena_bytes"] + room["shared_bytes"] > 0
    assert (room["request_tokens"], room["requests_at_once"]) == (8192, 16)
    assert room["limited_by"] == "max-running"
    assert (siglip["dtype"], siglip["room"], siglip["agreement"]) == ("float32", None, None)


def test_options_of_the_engine_show_in_what_it_says() -> None:
    options = ("--snapshot", f"medgemma={weights_dir('medgemma')}", "--dtype", "bfloat16", "--kv-cache", "24MiB")
    more = ("--reuse", "16MiB", "--max-running", "3", "--stall-ms", "50", "--max-wait", "9", "--device", "cpu")
    with serving(*options, *more) as (line, _):
        gemma = line["models"]["medgemma"]

    assert (gemma["dtype"], gemma["device"], gemma["reuse_bytes"]) == ("bfloat16", "cpu", 16 * 2**20)
    assert gemma["room"]["rings_bytes"] + gemma["room"]["arena_bytes"] <= 24 * 2**20
    assert gemma["room"]["requests_at_once"] <= 3


def test_client_chats_and_classifies_over_tls(server: dict[str, Any]) -> None:
    with medport.Client(backend="local", url=server["url"], ca_file=server["ca_file"], api_key=KEY) as client:
        answer = client.chat("Describe this X-ray.", max_tokens=8)
        vectors = client.embed_texts(["normal lungs", "a nodule"])

    assert answer.text
    assert answer.provenance.revision is not None
    assert len(vectors.vectors) == 2


def test_idle_connections_do_not_hold_up_the_end(tmp_path: Path) -> None:
    options = ("--tls-self-signed", str(tmp_path / "tls"), "--snapshot", f"medsiglip={weights_dir('medsiglip')}")
    with serving(*options) as (line, process), httpx.Client(verify=False) as client:
        client.get(f"{line['url']}/health")

        process.terminate()

        assert process.wait(timeout=8) == 0


def test_certificate_is_trusted_through_the_file_alone(server: dict[str, Any]) -> None:
    trusting = ssl.create_default_context(cafile=server["ca_file"])
    assert httpx.get(f"{server['url']}/health", verify=trusting).text == "ok"
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server['url']}/health", verify=ssl.create_default_context())


def test_request_without_the_key_is_refused(server: dict[str, Any]) -> None:
    trusting = ssl.create_default_context(cafile=server["ca_file"])

    response = httpx.post(
        f"{server['url']}/v1/{server['endpoints']['medgemma']}:predict", verify=trusting, json={}
    )

    assert response.status_code == 401
    assert response.json()["error"]["status"] == "UNAUTHENTICATED"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_signal_ends_it_with_the_promised_code(number: signal.Signals, code: int) -> None:
    with serving("--snapshot", f"medsiglip={weights_dir('medsiglip')}") as (line, process):
        assert list(line["endpoints"]) == ["medsiglip"]
        assert line["ca_file"] is None
        assert httpx.get(f"{line['url']}/health").text == "ok"

        process.send_signal(number)

        assert process.wait(timeout=30) == code
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read() == ""
        assert "Traceback" not in process.stderr.read()


def test_running_request_is_finished_before_it_stops() -> None:
    with serving("--snapshot", f"medgemma={weights_dir('medgemma')}") as (line, process):
        body = {"messages": [{"role": "user", "content": "Describe."}], "stream": True, "max_tokens": 40}
        with httpx.stream("POST", f"{line['url']}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            rest = [each for each in lines if each]

        assert rest[-1] == "data: [DONE]"
        assert process.wait(timeout=30) == 0


def test_without_json_it_tells_people_what_it_serves() -> None:
    # Not forked: it has to import all that it needs.
    command = [sys.executable, "-m", *COMMAND, "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    text = ""
    while "Stop with" not in text:
        line = process.stdout.readline()
        assert line
        text += line
    process.terminate()
    process.communicate(timeout=30)

    assert "http://127.0.0.1:" in text
    assert "medport/medgemma-phantom" in text
    assert "Not for medical use" in text
    assert 'Client(backend="local"' in text
    assert "16 requests of 8192 tokens at once, limited by --max-running" in text
    assert "kept of a request once it is over: nothing" in text


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--host", "0.0.0.0"), "TLS is missing"),
        (("--host", "0.0.0.0", "--tls-self-signed", "tls"), "an API key is missing"),
        (("--api-key-env", "NOT_SET_ANYWHERE"), "NOT_SET_ANYWHERE is not set"),
        (("--snapshot", "medgemma=nowhere"), "no model directory"),
        (("--snapshot", "nowhere"), "NAME=DIR"),
        (("--location", "moon"), "not the name of a region"),
        (("--tls-cert", "x.pem"), "go together"),
        (("--kv-cache", "lots"), "kv-cache: is not a size of memory"),
        (("--kv-cache", "1KiB"), "do not hold one request"),
        (("--dtype", "float16"), "auto, float32, bfloat16"),
        (("--adapter", "chest"), "NAME=DIR"),
        (("--adapter", "chest=nowhere"), "no adapter directory"),
        (("--engine", "llama"), "torch or vllm"),
    ],
)
def test_wrong_setting_ends_it_at_once(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = forked.run(*COMMAND, "--port", "0", *options, cwd=tmp_path)

    assert done.returncode == 64
    assert said in done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr


def test_port_in_use_is_said_before_models_are_loaded() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = forked.run(*COMMAND, "--port", port)

    assert done.returncode == 64
    assert "cannot listen" in done.stderr
