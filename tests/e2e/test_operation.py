"""``medport serve`` as a program that is operated: ended in the middle, audited, traced, with named keys."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from support import forked
from support.polling import wait_until

from medport_local.phantom import weights_dir

GEMMA = ("--snapshot", f"medgemma={weights_dir('medgemma')}")
CHAT = {"messages": [{"role": "user", "content": "Describe."}], "max_tokens": 60}


def medport(*arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
    return forked.run("medport.cli", *arguments, env={**os.environ, **env})


@contextmanager
def serving(stderr: Path, *options: str, **env: str) -> Iterator[tuple[str, forked.Process]]:
    """A server as a program, and its URL. What it logs goes to ``stderr``."""
    with stderr.open("w") as log:
        command = ["medport_local.cli", "serve", "--port", "0", "--json", *GEMMA, *options]
        process = forked.Process(*command, stderr=log, env={**os.environ, **env})
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            assert line, stderr.read_text()
            yield json.loads(line)["url"], process
        finally:
            if process.poll() is None:
                process.terminate()
            process.communicate(timeout=30)


def lines_of(log: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line]


def test_stream_is_finished_while_new_requests_are_refused(tmp_path: Path) -> None:
    with serving(tmp_path / "log") as (url, process), httpx.Client(base_url=url, timeout=60) as other:
        assert other.get("/health/ready").status_code == 200
        body = {**CHAT, "stream": True, "max_tokens": 250, "ignore_eos": True}
        with httpx.stream("POST", f"{url}/v1/chat/completions", json=body, timeout=60) as response:
            lines = response.iter_lines()
            next(lines)
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: httpx.get(f"{url}/health/ready").status_code == 503, 20)
            live = httpx.get(f"{url}/health/live")
            refused = httpx.post(f"{url}/v1/chat/completions", json=CHAT)
            rest = [each for each in lines if each]

        assert rest[-1] == "data: [DONE]"
        assert live.status_code == 200
        assert refused.status_code == 503
        assert int(refused.headers["Retry-After"]) >= 1
        assert process.wait(timeout=30) == 0


def test_within_the_grace_health_says_no_and_requests_are_still_served(tmp_path: Path) -> None:
    with serving(tmp_path / "log", "--drain-grace", "3") as (url, process):
        process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{url}/health").status_code == 503)
        served = httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=30)

        assert served.status_code == 200
        assert process.wait(timeout=30) == 0


def test_idle_server_ends_at_once_without_a_grace(tmp_path: Path) -> None:
    with serving(tmp_path / "log") as (url, process), httpx.Client(base_url=url) as idle:
        idle.get("/health")
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)

        assert process.wait(timeout=30) == 0
        assert time.monotonic() - started < 8  # and not the ten seconds that running requests get


def test_named_keys_audit_and_json_log_work_together(tmp_path: Path) -> None:
    file, log, audit = tmp_path / "keys.json", tmp_path / "log", tmp_path / "audit"
    key = medport("keys", "add", "gateway", "--keys", str(file), "--model", "medgemma").stdout.strip()
    options = ("--keys", str(file), "--audit", str(audit), "--log-format", "json")

    with serving(log, *options) as (url, process):
        headers = {"Authorization": f"Bearer {key}", "X-Request-Id": "e2e-1"}
        assert httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60).status_code == 401
        answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT, headers=headers, timeout=60)
        assert answer.status_code == 200
        assert httpx.get(f"{url}/metrics", headers=headers).status_code == 403
        verified = medport("audit", "verify", str(audit), "--json")
        assert medport("keys", "revoke", "gateway", "--keys", str(file)).returncode == 0
        wait_until(lambda: httpx.get(f"{url}/v1/models", headers=headers).status_code == 401)
        process.terminate()
        assert process.wait(timeout=30) == 0

    assert json.loads(verified.stdout)["unbroken"] is True
    shown = medport("audit", "show", "e2e-1", "--json", MEDPORT_AUDIT_DIR=str(audit))
    (record,) = json.loads(shown.stdout)["records"]
    assert (record["key"], record["endpoint"], record["status"]) == ("gateway", "medgemma", 200)
    access = [line for line in lines_of(log) if line["logger"] == "medport_local.access"]
    assert ("e2e-1", 200, "gateway") in [(line["request_id"], line["status"], line["key"]) for line in access]
    assert key not in log.read_text()
    assert "Describe" not in log.read_text()


def test_killed_server_leaves_a_log_that_goes_on(tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    for _ in range(2):
        with serving(tmp_path / "log", "--audit", str(audit)) as (url, process):
            httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60)
            process.kill()
            process.wait(timeout=30)

    report = json.loads(medport("audit", "verify", str(audit), "--json").stdout)
    assert (report["unbroken"], report["lines"]) == (True, 2)


class _Collector(BaseHTTPRequestHandler):
    bodies: list[bytes]

    def do_POST(self) -> None:
        self.bodies.append(self.path.encode() + self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def collector() -> Iterator[tuple[str, list[bytes]]]:
    """A place for OTLP over HTTP, and what came there."""
    bodies: list[bytes] = []
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Collector", (_Collector,), {"bodies": bodies}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", bodies
    server.shutdown()
    server.server_close()
    thread.join()


def test_spans_reach_the_collector_that_the_environment_names(
    tmp_path: Path, collector: tuple[str, list[bytes]]
) -> None:
    endpoint, bodies = collector
    env = {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint, "OTEL_SERVICE_NAME": "reading-room"}
    with serving(tmp_path / "log", **env) as (url, process):
        httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60)
        process.terminate()
        assert process.wait(timeout=30) == 0

    sent = b"".join(bodies)
    assert sent.startswith(b"/v1/traces")
    for part in (b"chat medgemma", b"gen_ai.usage.output_tokens", b"reading-room"):
        assert part in sent
    assert b"Describe" not in sent


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--log-format", "xml"), "log-format"),
        (("--keys", "nowhere.json"), "medport keys add"),
        (("--tls-client-ca", "nowhere.pem"), "needs TLS"),
        (("--tls-self-signed", "tls", "--tls-client-ca", "nowhere.pem"), "no such file"),
        (("--audit", "/dev/null/audit"), "cannot be used"),
    ],
)
def test_wrong_setting_of_operation_ends_it_at_once(options: tuple[str, ...], said: str, tmp_path: Path) -> None:
    done = forked.run("medport_local.cli", "serve", "--port", "0", *GEMMA, *options, cwd=tmp_path)

    assert done.returncode == 64
    assert said in done.stderr
    assert "Traceback" not in done.stderr
