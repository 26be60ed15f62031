"""The first minutes with ``medport deploy``: a file by options or by answers on a terminal, then a look around."""

from __future__ import annotations

import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import deploying, planned
from support.plane_server import KEY, PlaneServer, plane_server

from medport import lock as locks
from medport_deploy.spec import reading as specs

MEDPORT = [sys.executable, "-m", "medport.cli"]
GIVEN = ["--model", planned.GEMMA["repo_id"], "--image", deploying.IMAGE]


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PlaneServer]:
    with plane_server(tmp_path_factory.mktemp("plane")) as server:
        yield server


def medport(folder: Path, *arguments: str, key: str = KEY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*MEDPORT, *arguments],
        cwd=folder,
        env=environment(key),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
    )


def environment(key: str = KEY) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MEDPORT_")}
    return {**clean, "KEY": key, "NO_COLOR": "1", "TERM": "dumb"}


def options(plane: PlaneServer) -> list[str]:
    ca_file = str(plane.line["ca_file"])
    return ["--target", "local", "--url", plane.url, "--ca-file", ca_file, "--api-key-env", "KEY", *GIVEN]


def pinned(folder: Path) -> None:
    """A lock of the file that ``init`` wrote, as ``medport deploy lock`` makes it of the phantom."""
    spec = specs.load(folder / "medport.yaml")
    (name,) = spec.models
    content = json.loads(planned.lock_of(spec).model_dump_json(exclude_none=True))
    content["models"] = {name: content["models"]["reader"]}
    content["images"] = {name: content["images"]["reader"]}
    content["deploy"]["sdk"] = {}
    locks.write(folder / "medport.lock", locks.checked(content))


def test_options_write_a_file_with_which_the_look_around_succeeds(plane: PlaneServer, tmp_path: Path) -> None:
    made = medport(tmp_path, "deploy", "init", "--name", "chest", *options(plane))
    before = medport(tmp_path, "doctor", "--deploy", "--json")
    pinned(tmp_path)
    after = medport(tmp_path, "doctor", "--deploy")

    assert (made.returncode, made.stderr) == (0, "")
    assert "Next: medport doctor --deploy -f medport.yaml" in made.stdout
    outcomes = {each["name"]: each for each in json.loads(before.stdout)["profiles"][0]["checks"]}
    assert (before.returncode, outcomes["lock"]["status"]) == (0, "skipped")
    assert outcomes["lock"]["detail"] == "none yet: medport deploy lock"
    assert (after.returncode, after.stderr) == (0, "")
    assert "All is well." in after.stdout


def test_a_wrong_key_fails_the_look_around_with_the_remedy(plane: PlaneServer, tmp_path: Path) -> None:
    medport(tmp_path, "deploy", "init", *options(plane))

    found = medport(tmp_path, "doctor", "--deploy", "--json", key="another-key-of-some-length")

    outcomes = {each["name"]: each for each in json.loads(found.stdout)["profiles"][0]["checks"]}
    assert found.returncode == 1
    assert outcomes["control plane"]["status"] == "failed"
    assert outcomes["control plane"]["remedy"]
    assert "another-key" not in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("left_out", "flag"),
    [("--target", "--target"), ("--image", "--image"), ("--model", "--model"), ("--project", "--project")],
)
def test_without_a_terminal_an_answer_that_is_missing_names_its_option(
    tmp_path: Path, left_out: str, flag: str
) -> None:
    given = {
        "--target": "vertex", "--project": "radiology", "--location": "europe-west4",
        "--model": "google/medgemma-4b-it", "--image": deploying.IMAGE,
    }  # fmt: skip
    arguments = [part for name, value in given.items() if name != left_out for part in (name, value)]

    done = medport(tmp_path, "deploy", "init", *arguments)

    assert done.returncode == 64
    assert f"{flag}: is missing" in done.stderr
    assert f"remedy: give {flag}" in done.stderr
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "flags"),
    [
        ([], "--target, --model, --image"),
        (["--target", "vertex"], "--project, --location, --model, --image"),
        (["--target", "local"], "--url, --model, --image"),
    ],
)
def test_without_a_terminal_all_answers_that_are_missing_are_named_at_once(
    tmp_path: Path, given: list[str], flags: str
) -> None:
    done = medport(tmp_path, "deploy", "init", *given)

    assert done.returncode == 64
    assert f"{flags}: are missing" in done.stderr
    assert f"remedy: give {flags}" in done.stderr


def test_a_file_that_is_there_is_replaced_only_by_force(plane: PlaneServer, tmp_path: Path) -> None:
    (tmp_path / "medport.yaml").write_text("mine\n")

    refused = medport(tmp_path, "deploy", "init", *options(plane))
    kept = (tmp_path / "medport.yaml").read_text()
    forced = medport(tmp_path, "deploy", "init", "--force", *options(plane))

    assert (refused.returncode, kept) == (1, "mine\n")
    assert "--force" in refused.stderr
    assert forced.returncode == 0
    assert specs.load(tmp_path / "medport.yaml").target.url == plane.url


def test_json_says_which_terms_must_be_read(tmp_path: Path) -> None:
    arguments = ["--target", "local", "--url", "https://127.0.0.1:8443", "--image", deploying.IMAGE, "--json"]

    done = medport(tmp_path, "deploy", "init", *arguments, "--model", "google/medgemma-4b-it", "-o", "a.yaml")

    said = json.loads(done.stdout)
    assert said["file"] == "a.yaml"
    assert [each["id"] for each in said["terms_to_read"]] == ["hai-def"]
    assert specs.load(tmp_path / "a.yaml").accept_terms == []


def test_on_a_terminal_what_is_not_given_is_asked_for_and_a_wrong_answer_again(tmp_path: Path) -> None:
    answers = {
        "Where to deploy to": ["cloud", "vertex"],
        "Name of the deployment": [""],
        "Project": ["Radiology!", "radiology"],
        "Location": ["europe-west4"],
        "Models": [""],
        "Serving container": ["serving:1", deploying.IMAGE],
    }

    code, shown = on_terminal(tmp_path, ["deploy", "init"], answers)

    assert code == 0, shown
    spec = specs.load(tmp_path / "medport.yaml")
    assert (spec.name, spec.target.project, spec.target.location) == ("medport", "radiology", "europe-west4")
    assert spec.models["medgemma-4b-it"].machine.type == "g2-standard-24"
    for wrong in ("is none of vertex, local", "neither a project's id nor its number", "is not HOST/PATH"):
        assert wrong in shown


def test_on_a_terminal_the_authority_of_a_local_server_is_asked_for_and_an_empty_answer_is_told(
    plane: PlaneServer, tmp_path: Path
) -> None:
    (tmp_path / "ca.pem").write_bytes(Path(plane.line["ca_file"]).read_bytes())
    answers = {
        "Where to deploy to": ["local"],
        "URL of the control plane": [plane.url],
        "Who signed its certificate": ["absent.pem", "ca.pem"],
        "Name of the deployment": [""],
        "Project": [""],
        "Location": [""],
        "Variable with its API key": ["KEY"],
        "Models": [planned.GEMMA["repo_id"]],
        "Serving container": ["", deploying.IMAGE],
    }

    code, shown = on_terminal(tmp_path, ["deploy", "init"], answers)
    found = medport(tmp_path, "doctor", "--deploy")

    assert code == 0, shown
    assert specs.load(tmp_path / "medport.yaml").target.ca_file == "ca.pem"
    assert "there is no file absent.pem" in shown
    assert "an answer is needed" in shown
    assert (found.returncode, "All is well." in found.stdout) == (0, True), found.stdout


def on_terminal(folder: Path, arguments: list[str], answers: dict[str, list[Any]]) -> tuple[int, str]:
    """Run a command on a terminal, with the next answer to each question; its exit code and what was shown."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [*MEDPORT, *arguments], cwd=folder, env=environment(), stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    shown, seen, until = "", 0, time.monotonic() + 60
    try:
        while time.monotonic() < until:
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                shown += os.read(ours, 4096).decode()
            except OSError:  # the other end is closed
                break
            question = next((each for each in answers if each in shown[seen:] and shown.endswith(": ")), None)
            if question is not None:
                seen = len(shown)
                os.write(ours, f"{answers[question].pop(0)}\n".encode())
        return process.wait(10), shown
    finally:
        process.kill()
        process.wait(10)
        os.close(ours)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--spec", "medport.yaml"), "spec: goes with --deploy"),
        (("--deploy", "--offline"), "deploy: excludes --offline"),
        (("--deploy", "--store", "store"), "store: goes with --offline"),
    ],
)
def test_options_of_the_look_around_that_do_not_go_together_are_refused(
    tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    done = medport(tmp_path, "doctor", *arguments)

    assert done.returncode == 64
    assert words in done.stderr


@pytest.mark.parametrize(("flag", "value"), [("--url", "https://127.0.0.1:8443"), ("--api-key-env", "KEY")])
def test_an_option_of_a_local_target_is_refused_for_google(tmp_path: Path, flag: str, value: str) -> None:
    place = ["--target", "vertex", "--project", "radiology", "--location", "europe-west4"]

    done = medport(tmp_path, "deploy", "init", *place, *GIVEN, flag, value)

    assert done.returncode == 64
    assert f"{flag}: is for --target local" in done.stderr
    assert list(tmp_path.iterdir()) == []
