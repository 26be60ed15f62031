"""The real program as a process: against a real server over TLS, in its own process, on a terminal, in a pipe."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support import forked

MEDPORT = [sys.executable, "-m", "medport.cli"]
KEY = "a-key-for-this-test"
NOTICE = "Preliminary: needs independent verification by a qualified person."
CANARY = "CANARY-Jane-Doe"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command-line")


@pytest.fixture(scope="module")
def environment(folder: Path) -> Iterator[dict[str, str]]:
    """That of a user whose default profile is a ``medport serve`` process with TLS and a key."""
    unwanted = ("NO_COLOR", "FORCE_COLOR")
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MEDPORT_") and k not in unwanted}
    clean |= {"XDG_CONFIG_HOME": str(folder / "home"), "MEDPORT_API_KEY": KEY, "TERM": "xterm-256color"}
    arguments = [
        "serve",
        "--port",
        "0",
        "--tls-self-signed",
        str(folder / "tls"),
        "--api-key-env",
        "MEDPORT_API_KEY",
    ]
    with (folder / "serve.log").open("w") as log:
        process = subprocess.Popen([*MEDPORT, *arguments, "--json"], stdout=subprocess.PIPE, stderr=log, env=clean)
        assert process.stdout is not None
        try:
            ready = json.loads(process.stdout.readline())
            yield clean | {
                "MEDPORT_BACKEND": "local", "MEDPORT_URL": ready["url"], "MEDPORT_CA_FILE": ready["ca_file"],
            }  # fmt: skip
        finally:
            process.terminate()
            process.wait(30)
            process.stdout.close()


@pytest.fixture(scope="module")
def images(folder: Path) -> list[str]:
    """A drawn X-ray as PNG and as DICOM."""
    from medport_local.phantom import draw, files

    rng = np.random.default_rng(7)
    drawing = draw.render(draw.sample(rng, next(iter(draw.Finding))), rng, 256)
    png = files.write_png(folder / f"{CANARY}.png", drawing.pixels)
    dicom = files.write_dicom(folder / f"{CANARY}.dcm", drawing.pixels, inverted=False)
    return [str(png), str(dicom)]


def run(environment: dict[str, str], *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    if "input" not in options:
        return forked.run("medport.cli", *arguments, env=environment, timeout=120, **options)
    return subprocess.run(
        [*MEDPORT, *arguments], env=environment, capture_output=True, text=True, timeout=120, **options
    )


def test_chat_about_a_dicom_file_over_tls(environment: dict[str, str], images: list[str]) -> None:
    found = run(environment, "chat", "Describe this chest radiograph.", "-i", images[1], "--json")

    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["text"]
    assert answer["preliminary"] is True
    assert answer["provenance"]["kind"] == "local"
    assert answer["provenance"]["snapshot_sha256"]
    assert found.stderr == ""


def test_in_process_gives_the_same_text_as_the_server(
    environment: dict[str, str], images: list[str], folder: Path
) -> None:
    arguments = ("chat", "Describe this chest radiograph.", "-i", images[0], "--json")
    alone = {k: v for k, v in environment.items() if not k.startswith("MEDPORT_")}

    there, here = run(environment, *arguments), run(alone, *arguments, cwd=folder)

    assert here.returncode == 0, here.stderr
    assert json.loads(here.stdout)["provenance"]["kind"] == "in-process"
    assert json.loads(here.stdout)["text"] == json.loads(there.stdout)["text"]
    assert here.stderr == ""


def test_prompt_from_stdin_is_streamed_as_json_lines(environment: dict[str, str]) -> None:
    found = run(environment, "chat", "-", "--stream", "--json", input="Describe this chest radiograph.\n")

    lines = [json.loads(line) for line in found.stdout.splitlines()]
    assert found.returncode == 0, found.stderr
    assert len(lines) > 2
    assert lines[-1]["type"] == "result"
    assert "".join(line["text"] for line in lines[:-1]).strip() == lines[-1]["text"]


def test_classify_and_embed_real_images(environment: dict[str, str], images: list[str], folder: Path) -> None:
    labels = ["--label", "pneumothorax", "--label", "no acute finding"]

    classes = run(environment, "classify", *images, *labels, "--json")
    vectors = run(environment, "embed", *images, "--text", "pneumothorax", "-o", str(folder / "v.npz"))

    assert classes.returncode == 0, classes.stderr
    assert [item["image"] for item in json.loads(classes.stdout)["items"]] == images
    assert vectors.returncode == 0, vectors.stderr
    assert NOTICE in vectors.stdout
    with np.load(folder / "v.npz", allow_pickle=False) as archive:
        assert archive["vectors"].shape[0] == 3


def test_doctor_finds_nothing_wrong_with_either_way(environment: dict[str, str], folder: Path) -> None:
    alone = {k: v for k, v in environment.items() if not k.startswith("MEDPORT_")}

    there, here = run(environment, "doctor", "--json"), run(alone, "doctor", "--json", cwd=folder)

    for found in (there, here):
        assert found.returncode == 0, found.stdout + found.stderr
        assert json.loads(found.stdout)["ok"] is True
        assert KEY not in found.stdout + found.stderr


def test_wrong_key_is_two_lines_and_exit_code_1(environment: dict[str, str]) -> None:
    found = run(environment | {"MEDPORT_API_KEY": "another-key"}, "chat", CANARY)

    assert found.returncode == 1
    assert found.stdout == ""
    assert len(found.stderr.splitlines()) == 2
    assert found.stderr.startswith("AuthError: ")
    assert CANARY not in found.stderr


def test_no_log_of_the_server_holds_prompt_or_file_name(
    environment: dict[str, str], images: list[str], folder: Path
) -> None:
    run(environment, "chat", CANARY, "-i", images[0], "--max-tokens", "4")
    run(environment, "classify", images[0], "--label", CANARY)

    assert CANARY not in (folder / "serve.log").read_text()


def test_help_loads_neither_torch_nor_pydicom() -> None:
    code = (
        "import sys; sys.argv[1:] = ['--help']\n"
        "try:\n    from medport.cli import main; main()\n"
        "except SystemExit: pass\n"
        "print([m for m in ('torch', 'transformers', 'pydicom', 'starlette', 'google.auth') if m in sys.modules])"
    )

    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert found.stdout.splitlines()[-1] == "[]", found.stdout + found.stderr


def test_gone_reader_ends_the_program_quietly(environment: dict[str, str]) -> None:
    command = (
        f"{sys.executable} -m medport.cli embed --text {'a ' * 20} " + "--text b " * 200 + "--json | head -c 10"
    )

    found = subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, timeout=60)

    assert found.stdout.startswith("{")
    assert found.stderr == ""


def test_terminal_gets_the_answer_as_it_is_written(environment: dict[str, str]) -> None:
    shown = _on_a_terminal([*MEDPORT, "chat", "Describe this chest radiograph."], environment)

    assert NOTICE in shown
    assert "Traceback" not in shown


def test_terminal_without_colour_gets_none(environment: dict[str, str]) -> None:
    coloured = _on_a_terminal([*MEDPORT, "doctor"], environment)
    plain = _on_a_terminal([*MEDPORT, "doctor"], environment | {"NO_COLOR": "1"})

    assert "\x1b[32m" in coloured
    assert "\x1b[3" not in plain


def test_interrupt_is_exit_code_130_without_a_traceback(environment: dict[str, str]) -> None:
    process = subprocess.Popen(
        [*MEDPORT, "chat", "-", "--no-stream"],
        env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    time.sleep(3)  # it waits for its prompt by then

    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=30)

    assert (process.returncode, out, err) == (130, "", "interrupted\n")


def _on_a_terminal(command: list[str], environment: dict[str, str]) -> str:
    """What a person would see: all that is written to a pseudo-terminal."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdin=theirs, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        shown = b""
        try:
            while chunk := os.read(ours, 65536):
                shown += chunk
        except OSError:  # Linux says so when the other side is closed
            pass
        finally:
            os.close(ours)
        assert process.wait(60) == 0
    return shown.decode()
