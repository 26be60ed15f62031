"""Programs of the kind that is published for these endpoints: only address, id, token and CA are given."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import medport
from medport_local.phantom import weights_dir

from .conftest import LOCATION, PROJECT, Site, Sources

PROGRAMS = Path(__file__).parent / "programs"
Result = dict[str, Any]
Run = Callable[..., Result]
QUESTION = [
    {"role": "system", "content": "You are a helpful medical assistant."},
    {"role": "user", "content": "How do you differentiate bacterial from viral pneumonia?"},
]
IMAGE_TOKENS = 16
"""Soft tokens of the phantom for one image; MedGemma itself has 256."""


@pytest.fixture
def run(site: Site) -> Run:
    def run_(name: str, *arguments: str, endpoint: str = "medgemma", **variables: str) -> Result:
        env = {
            **os.environ,
            "HOST": site.url,
            "PROJECT": PROJECT,
            "LOCATION": LOCATION,
            "ENDPOINT": site.endpoints[endpoint],
            "TOKEN": site.key,
            "PYTHONWARNINGS": "ignore",
            **variables,
        }
        done = subprocess.run(
            [sys.executable, str(PROGRAMS / f"{name}.py"), *arguments],
            capture_output=True, text=True, timeout=150, env=env, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]
        result: Result = json.loads(done.stdout.splitlines()[-1])
        return result

    return run_


@pytest.fixture
def expected(client: medport.Client) -> str:
    """What our own client is told when it asks the programs' question."""
    return client.chat(QUESTION, max_tokens=1000).text


@pytest.fixture
def picture_file(sources: Sources, tmp_path: Path) -> str:
    path = tmp_path / "picture.png"
    path.write_bytes(sources.picture)
    return str(path)


@pytest.fixture
def radiograph_png(drawing: np.ndarray[Any, Any], tmp_path: Path) -> str:
    """The pixels of the radiograph in the DICOM store, as a PNG."""
    file = io.BytesIO()
    Image.fromarray(drawing).save(file, "PNG")
    path = tmp_path / "radiograph.png"
    path.write_bytes(file.getvalue())
    return str(path)


def test_quick_start_text(run: Run, expected: str) -> None:
    assert run("quick_start_text") == {"answer": expected, "thought": None}


def test_quick_start_thinking(run: Run, client: medport.Client) -> None:
    result = run("quick_start_text", THINKING="1")

    own = client.chat(
        [
            {
                "role": "system",
                "content": f"SYSTEM INSTRUCTION: think silently if needed. {QUESTION[0]['content']}",
            },
            QUESTION[1],
        ],
        max_tokens=2000,
    )
    assert result["answer"] == own.text
    assert (result["thought"] or "").strip() == (own.thinking or "").strip()


def test_quick_start_image(run: Run, sources: Sources) -> None:
    result = run("quick_start_image", IMAGE_URL=sources.picture_url)

    by_address, by_data = result["answers"]
    assert by_address == by_data != ""
    assert min(result["prompt_tokens"]) > IMAGE_TOKENS


def test_openai_path(run: Run, expected: str) -> None:
    assert run("openai_path") == {"answer": expected}


def test_streaming(run: Run, expected: str) -> None:
    result = run("streaming")

    assert result["answer"] == expected
    assert result["done"]
    assert result["chunks"] > 2


def test_raw_prompt(run: Run, sources: Sources) -> None:
    result = run("raw_prompt", IMAGE_URL=sources.picture_url)

    assert result["bare"]
    assert result["echoed"] == f"Prompt:\n{result['prompt']}\nOutput:\n{result['bare']}"


def test_dicom_quick_start(run: Run, sources: Sources, radiograph_png: str) -> None:
    result = run(
        "dicom_quick_start", endpoint="medgemma_dicom", DICOM_URI=sources.radiograph_uri, PICTURE=radiograph_png
    )

    assert result["by_address"] == result["by_bytes"] != ""
    assert result["prompt_tokens"] > IMAGE_TOKENS
    assert result["missing"]
    assert sources.radiograph_uri not in result["missing"]


def test_ct(run: Run, site: Site, sources: Sources, tmp_path: Path) -> None:
    files = []
    for number, data in enumerate(reversed(sources.ct)):  # not in order, as on a disk
        files.append(tmp_path / f"{number}.dcm")
        files[-1].write_bytes(data)

    result = run(
        "ct", *map(str, files), DICOM_ENDPOINT=site.endpoints["medgemma_dicom"], SERIES_URI=sources.ct_uri
    )

    # The same windows, order and captions give the same prompt, so the same answer.
    assert result["by_address"] == result["by_pictures"] != ""
    assert result["prompt_tokens"][0] == result["prompt_tokens"][1] > 85 * IMAGE_TOKENS


def test_pathology(run: Run, sources: Sources) -> None:
    result = run("pathology", endpoint="medgemma_dicom", SLIDE_URI=sources.slide_uri)

    eight, one, level = result["prompt_tokens"]
    assert eight - one > 7 * IMAGE_TOKENS
    assert one == level
    assert all(result["answers"])
    assert "patch_coordinates_list[0]" in result["outside"]


def test_medsiglip(run: Run, sources: Sources, picture_file: str, radiograph_png: str) -> None:
    result = run(
        "medsiglip",
        endpoint="medsiglip",
        PICTURE=picture_file,
        RADIOGRAPH=radiograph_png,
        GCS_URI=sources.gcs_uri,
        DICOM_URI=sources.radiograph_uri,
        SNAPSHOT=str(weights_dir("medsiglip")),
    )

    assert len(result["cosines"]) == 5
    assert min(result["cosines"]) >= 0.99999
    assert np.allclose(result["shares"], result["own_shares"], atol=1e-4)


def test_medsiglip_on_the_same_endpoint_by_raw_predict(site: Site, sources: Sources) -> None:
    """Without any client: the container's own answer, without Vertex's envelope."""
    import requests

    response = requests.post(
        f"{site.url}/v1/{site.endpoints['medsiglip']}:rawPredict",
        json={"instances": [{"text": "a"}, {"image": {"gcs_uri": sources.gcs_uri}}]},
        headers={"Authorization": f"Bearer {site.key}"},
        timeout=30,
    )

    assert set(response.json()) == {"predictions"}
    assert [each["input_type"] for each in response.json()["predictions"]] == ["text", "image"]
