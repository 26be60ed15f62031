"""Our image, as far as it runs without a container engine: its Dockerfile, its install steps, its entry point."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from PIL import Image
from support import forked
from support.gcs import gcs_emulator

from medport_local.phantom import weights_dir
from medport_local.snapshot import open_snapshot

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "local_backend" / "Dockerfile"
INSTALL = ROOT / "local_backend" / "docker" / "install.sh"
PREDICT = "/v1/endpoints/42/deployedModels/7:predict"
HEALTH = "/v1/endpoints/42/deployedModels/7"
CHAT = {"messages": [{"role": "user", "content": "Describe this chest radiograph."}], "max_tokens": 16}


@dataclass
class Container:
    """A running entry point."""

    process: forked.Process | subprocess.Popen[str]
    http: httpx.Client
    first_probe: int
    """The status of the first answer there was."""
    log: list[str] = field(default_factory=list)


@contextmanager
def container(
    family: str | None, *arguments: str, python: str | None = None, **environment: str
) -> Iterator[Container]:
    """Start ``medport_local.container`` as Vertex does: with its variables and no others.

    Args:
        python: the interpreter; forked if it is none.
    """
    port = _free_port()
    given = {
        "AIP_HTTP_PORT": str(port),
        "AIP_PREDICT_ROUTE": PREDICT,
        "AIP_HEALTH_ROUTE": HEALTH,
        "AIP_MODE": "PREDICTION",
        **({"AIP_STORAGE_URI": str(weights_dir(family))} if family else {}),  # type: ignore[arg-type]
        **environment,
    }
    process: forked.Process | subprocess.Popen[str]
    if python is None:
        process = forked.Process("medport_local.container", *arguments, env=given, cwd="/", stdout=forked.DEVNULL)
    else:
        process = subprocess.Popen(
            [python, "-m", "medport_local.container", *arguments],
            env=given,
            cwd="/",
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
    log: list[str] = []
    assert process.stderr is not None
    reader = threading.Thread(target=lambda: log.extend(process.stderr), daemon=True)  # type: ignore[arg-type]
    reader.start()
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as http:
            first = _wait_until_ready(http, process, log)
            yield Container(process, http, first, log)
    finally:
        if process.poll() is None:
            process.terminate()
        process.wait(30)
        reader.join(10)
        process.stderr.close()


def _wait_until_ready(http: httpx.Client, process: forked.Process | subprocess.Popen[str], log: list[str]) -> int:
    first = 0
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert process.poll() is None, "".join(log)
        try:
            answer = http.get(HEALTH)
        except httpx.TransportError:
            time.sleep(0.02)
            continue
        first = first or answer.status_code
        if answer.status_code == 200:
            assert answer.text == "ok"
            return first
        assert (answer.status_code, answer.text) == (503, "not ok")
        time.sleep(0.05)
    raise AssertionError("the container did not become ready: " + "".join(log))


@pytest.fixture(scope="module")
def gemma() -> Iterator[Container]:
    sha = open_snapshot(weights_dir("medgemma")).snapshot_sha256
    arguments = ["python", "-m", "vllm.entrypoints.api_server", "--max-num-seqs=4", "--swap-space=16"]
    environment = {"MEDPORT_SNAPSHOT_SHA256": sha, "ENABLE_CLOUD_LOGGING": "true"}
    with container("medgemma", *arguments, python=sys.executable, **environment) as running:
        yield running


@pytest.fixture(scope="module")
def siglip() -> Iterator[Container]:
    with container(
        "medsiglip", MAX_EMBEDDINGS_PER_REQUEST="3", IMAGE_EMBEDDINGS_PER_BATCH_PREDICTION="2"
    ) as running:
        yield running


def test_health_says_no_until_the_model_is_loaded(gemma: Container) -> None:
    assert gemma.first_probe == 503
    assert gemma.http.get("/health").text == gemma.http.get("/ping").text == "ok"


def test_the_predict_route_answers_without_vertexs_envelope(gemma: Container) -> None:
    wrapped = gemma.http.post(PREDICT, json={"instances": [{"@requestFormat": "chatCompletions", **CHAT}]}).json()
    bare = gemma.http.post(PREDICT, json=CHAT).json()

    assert set(wrapped) == {"predictions"}
    assert wrapped["predictions"]["choices"][0]["message"] == bare["choices"][0]["message"]
    assert bare["object"] == "chat.completion"


def test_the_openai_routes_answer_and_stream(gemma: Container) -> None:
    whole = gemma.http.post("/v1/chat/completions", json={"model": "", **CHAT}).json()
    with gemma.http.stream("POST", "/v1/chat/completions", json={**CHAT, "stream": True}) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line]
    text = "".join(json.loads(event)["choices"][0]["delta"]["content"] for event in events[:-1])

    assert events[-1] == "[DONE]"
    assert text == whole["choices"][0]["message"]["content"]
    assert gemma.http.get("/v1/models").json()["data"]


@pytest.mark.parametrize("dialect", ["vllm", "dicom"])
def test_a_batch_job_is_answered_with_lists(dialect: str) -> None:
    with container("medgemma", BATCH_PREDICTION="true", MEDPORT_DIALECT=dialect) as running:
        (one,) = running.http.post(PREDICT, json={"instances": [CHAT]}).json()["predictions"]

    assert one["object"] == "chat.completion"


def test_what_is_not_acted_upon_is_said_once(gemma: Container) -> None:
    lines = [json.loads(line) for line in gemma.log]

    (said,) = [line["message"] for line in lines if "not acted upon" in line.get("message", "")]
    assert said.endswith("ENABLE_CLOUD_LOGGING, --swap-space")


def test_the_embedding_container_answers_each_instance(siglip: Container) -> None:
    image = {"image": {"input_bytes": _png()}}
    answer = siglip.http.post(PREDICT, json={"instances": [{"text": "a chest radiograph"}, image]}).json()
    listed = siglip.http.post("/v1/embeddings", json={"model": "", "input": "a chest radiograph"}).json()

    assert set(answer) == {"predictions"}
    assert [each["input_type"] for each in answer["predictions"]] == ["text", "image"]
    assert listed["data"][0]["embedding"] == pytest.approx(answer["predictions"][0]["embedding"], abs=1e-5)


def test_the_limit_of_embeddings_is_the_environments(siglip: Container) -> None:
    instances = [{"text": f"text {i}"} for i in range(4)]

    assert len(siglip.http.post(PREDICT, json={"instances": instances[:3]}).json()["predictions"]) == 3
    assert siglip.http.post(PREDICT, json={"instances": instances}).json() == {"error": "TOO_MANY_PATCHES_ERROR"}


def test_a_bucket_that_is_not_approved_is_not_asked(siglip: Container) -> None:
    instance = {"image": {"gcs_uri": "gs://unlisted/x.png"}}

    (prediction,) = siglip.http.post(PREDICT, json={"instances": [instance]}).json()["predictions"]

    assert set(prediction) == {"error"}


def test_the_dicom_dialect_refuses_as_that_container_does() -> None:
    with container("medgemma", MEDPORT_DIALECT="dicom") as running:
        wrong = running.http.post(PREDICT, json={"messages": [], "tools": []})
        right = running.http.post(PREDICT, json=CHAT).json()

    assert wrong.status_code == 200
    assert set(wrong.json()) == {"error"}
    assert right["choices"][0]["message"]["content"]


def test_a_model_in_a_bucket_is_fetched_verified_and_removed(tmp_path: Path) -> None:
    with gcs_emulator("models") as emulator:
        for path in weights_dir("medsiglip").iterdir():
            emulator.upload("models", f"medsiglip/{path.name}", path.read_bytes())
        environment = {
            "AIP_STORAGE_URI": "gs://models/medsiglip",
            "STORAGE_EMULATOR_HOST": emulator.url,
            "TMPDIR": str(tmp_path),
        }
        with container(None, **environment) as running:
            answer = running.http.post(PREDICT, json={"instances": [{"text": "a chest radiograph"}]}).json()
            (fetched,) = tmp_path.glob("medport-model-*")
            running.process.send_signal(signal.SIGTERM)
            code = running.process.wait(30)

    assert answer["predictions"][0]["embedding"]
    assert code == 0
    assert not fetched.exists()


def test_a_model_that_is_not_the_pinned_one_is_never_served() -> None:
    port = _free_port()
    environment = {
        "AIP_HTTP_PORT": str(port),
        "AIP_STORAGE_URI": str(weights_dir("medsiglip")),
        "MEDPORT_SNAPSHOT_SHA256": "0" * 64,
    }
    ended = subprocess.run(
        [sys.executable, "-m", "medport_local.container"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ended.returncode == 1
    assert "VerificationError" in ended.stderr
    assert "Traceback" not in ended.stderr


# -- the image -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def instructions() -> list[tuple[str, str]]:
    """``(instruction, arguments)`` of the Dockerfile, continued lines joined, comments left out."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE.read_text(), flags=re.M).replace("\\\n", " ")
    return [(line.split(None, 1)[0], line.split(None, 1)[1].strip()) for line in text.splitlines() if line.strip()]


def arguments_of(instructions: list[tuple[str, str]], name: str) -> list[str]:
    return [arguments for instruction, arguments in instructions if instruction == name]


def test_every_stage_is_built_on_the_digest_that_is_given(instructions: list[tuple[str, str]]) -> None:
    bases = [arguments.split()[0] for arguments in arguments_of(instructions, "FROM")]

    assert set(bases) == {"${BASE}"}
    assert instructions[0] == ("ARG", "BASE")  # no default
    assert not re.search(r"[\w-]+\.(io|dev|com)/", DOCKERFILE.read_text())


@pytest.mark.parametrize(
    ("base", "accepted"),
    [
        (f"python@sha256:{'0a' * 32}", True),
        (f"registry:5000/a/python:3.12@sha256:{'0a' * 32}", True),
        ("python:3.12", False),
        (f"python@sha256:{'0a' * 31}", False),
        (f"python@sha256:{'0a' * 32}x", False),
        ("", False),
    ],
)
def test_the_first_step_refuses_a_base_without_a_digest(
    instructions: list[tuple[str, str]], base: str, accepted: bool
) -> None:
    first = next(i for i, (name, _) in enumerate(instructions) if name == "RUN")
    ended = subprocess.run(
        ["/bin/sh", "-c", instructions[first][1]],
        env={"BASE": base, "PATH": os.environ["PATH"]},
        capture_output=True,
    )

    assert (ended.returncode == 0) is accepted


def test_the_image_runs_as_a_numeric_user_and_starts_no_shell(instructions: list[tuple[str, str]]) -> None:
    (user,) = arguments_of(instructions, "USER")
    (entry,) = arguments_of(instructions, "ENTRYPOINT")
    (check,) = arguments_of(instructions, "HEALTHCHECK")

    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user)
    assert json.loads(entry)[-2:] == ["-m", "medport_local.container"]
    assert json.loads(check[check.index("CMD") + 3 :])[1] == "-c"
    assert arguments_of(instructions, "STOPSIGNAL") == ["SIGTERM"]
    assert [name for name, _ in instructions].index("USER") < [name for name, _ in instructions].index(
        "ENTRYPOINT"
    )


def test_nothing_is_fetched_but_by_pip_and_nothing_at_run_time(instructions: list[tuple[str, str]]) -> None:
    text = DOCKERFILE.read_text() + INSTALL.read_text()
    (_, run_time) = arguments_of(instructions, "ENV")

    assert not arguments_of(instructions, "ADD")
    assert not re.search(r"\b(curl|wget|apt|apt-get|apk|git)\b", text)
    assert {"HF_HUB_OFFLINE=1", "TRANSFORMERS_OFFLINE=1"} <= set(run_time.split())


def test_every_copied_source_is_there_and_let_through(instructions: list[tuple[str, str]]) -> None:
    let_through = [line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")]
    sources = [
        source
        for arguments in arguments_of(instructions, "COPY")
        if not arguments.startswith("--from")
        for source in arguments.split()[:-1]
    ]

    assert sources
    assert all((ROOT / source).exists() for source in sources)
    assert {source.split("/")[0] for source in sources} == set(let_through)


def test_the_health_check_tells_a_container_that_serves_from_one_that_does_not(
    instructions: list[tuple[str, str]], gemma: Container
) -> None:
    (check,) = arguments_of(instructions, "HEALTHCHECK")
    command = [sys.executable, *json.loads(check[check.index("CMD") + 3 :])[1:]]
    port = str(gemma.http.base_url.port)

    def code(**environment: str) -> int:
        return subprocess.run(command, env=environment, capture_output=True, timeout=30).returncode

    assert code(AIP_HTTP_PORT=port, AIP_HEALTH_ROUTE=HEALTH) == 0
    assert code(AIP_HTTP_PORT=port, AIP_HEALTH_ROUTE="/not-there") != 0
    assert code(AIP_HTTP_PORT=str(_free_port())) != 0


def test_a_wrong_hash_ends_the_install(tmp_path: Path) -> None:
    """A lock is what pip checks, so a package that is not the locked one is not installed."""
    lock = tmp_path / "requirements.lock"
    lock.write_text(f"sniffio==1.3.1 --hash=sha256:{hashlib.sha256(b'another').hexdigest()}\n")
    ended = subprocess.run(
        ["/bin/sh", str(INSTALL), str(ROOT), str(tmp_path / "venv"), str(lock)],
        env={**os.environ, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
    )

    assert ended.returncode != 0
    assert "DO NOT MATCH THE HASHES" in ended.stderr
    assert not list((tmp_path / "venv").glob("lib/*/site-packages/medport*"))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_the_install_steps_install_serves_with_vertexs_variables_alone(tmp_path: Path) -> None:
    venv = tmp_path / "venv"
    # Compiling what this run never imports takes half of the time.
    environment = {**os.environ, "PYTHON": sys.executable, "PIP_NO_COMPILE": "1"}
    subprocess.run(["/bin/sh", str(INSTALL), str(ROOT), str(venv)], env=environment, check=True)

    with container("medgemma", python=str(venv / "bin" / "python")) as running:
        answer = running.http.post(PREDICT, json={"instances": [{"@requestFormat": "chatCompletions", **CHAT}]})
        running.process.send_signal(signal.SIGTERM)
        code = running.process.wait(30)

    assert answer.json()["predictions"]["choices"][0]["message"]["content"]
    assert code == 0
    installed = shlex.split(
        subprocess.run(
            [venv / "bin" / "python", "-c", "import medport_local; print(medport_local.__path__[0])"],
            capture_output=True,
            text=True,
            check=True,
            cwd=tmp_path,
        ).stdout
    )
    assert Path(installed[0]).is_relative_to(venv)  # and not the repository


def _png() -> str:
    stream = io.BytesIO()
    Image.new("L", (32, 32), 90).save(stream, "PNG")
    return base64.b64encode(stream.getvalue()).decode()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
