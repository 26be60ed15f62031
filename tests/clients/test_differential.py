"""Every DICOM file with pixels that pydicom brings along: embeddings against plain transformers, same pixels.

The server is sent the file itself, and the PNG that ``medport.images`` makes of it; transformers is given the same
pixels in this process. What ``medport.images`` refuses, the server must refuse by the instance, with a code.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pydicom
import pytest
import torch
import transformers
from PIL import Image as pil
from support.wire import b64
from transformers import SiglipModel
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from medport.errors import ImageError
from medport.images import RADIOGRAPHY, SIGLIP_CT_WINDOW, load, prepare
from medport_local.phantom import weights_dir
from medport_local.serving.endpoints import IMAGE_LIMITS, SERVER_SIDE_PX

from .conftest import Site

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
LEAST = 0.99999
CODES = {"DICOM_ERROR"}

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:pydicom.*")


def with_pixels() -> list[Path]:
    """Files that hold pixel data, whether or not they can be decoded."""
    found = []
    for path in sorted(each for each in SHIPPED.rglob("*") if each.is_file()):
        try:
            dataset = pydicom.dcmread(path)
        except Exception:  # no DICOM file: text, archives, and some that are broken on purpose
            continue
        if any(keyword in dataset for keyword in PIXELS):
            found.append(path)
    return found


@dataclass(frozen=True)
class Reference:
    """MedSigLIP as transformers alone runs it, float32."""

    model: Any
    processor: Any

    def embed(self, rgb: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        # As PIL has it: of an array of 3 x 3 pixels the processor cannot know which side holds the channels.
        values = self.processor(images=[pil.fromarray(rgb)], return_tensors="pt").pixel_values
        with torch.inference_mode():
            vector = self.model.get_image_features(pixel_values=values).pooler_output[0].numpy()
        result: np.ndarray[Any, Any] = vector / np.linalg.norm(vector)
        return result


@pytest.fixture(scope="module")
def reference() -> Reference:
    transformers.utils.logging.disable_progress_bar()
    folder = weights_dir("medsiglip")
    model = SiglipModel.from_pretrained(folder, dtype=torch.float32).eval()
    return Reference(model, SiglipImageProcessorPil.from_pretrained(folder))


@pytest.fixture(scope="module")
def http(site: Site) -> Iterator[httpx.Client]:
    trusted = ssl.create_default_context(cafile=site.ca_file)
    headers = {"Authorization": f"Bearer {site.key}"}
    with httpx.Client(base_url=site.url, headers=headers, verify=trusted, timeout=60) as client:
        yield client


def served(http: httpx.Client, site: Site, *images: bytes) -> list[Any]:
    instances = [{"image": {"input_bytes": b64(each)}} for each in images]
    answer = http.post(f"/v1/{site.endpoints['medsiglip']}:predict", json={"instances": instances})
    assert answer.status_code == 200, answer.text
    predictions: list[Any] = answer.json()["predictions"]
    return predictions


def test_embeddings_of_every_shipped_file_are_transformers_own(
    http: httpx.Client, site: Site, reference: Reference, record_property: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    of_file: dict[str, float] = {}
    of_png: dict[str, float] = {}
    refused: dict[str, str] = {}
    for path in with_pixels():
        name, data = path.relative_to(SHIPPED).as_posix(), path.read_bytes()
        try:
            image = load(
                data, window_modalities=RADIOGRAPHY, ct_default=SIGLIP_CT_WINDOW, limits=IMAGE_LIMITS
            )  # fmt: skip
        except ImageError:
            (answer,) = served(http, site, data)
            refused[name] = answer["error"]["code"]
            assert set(answer) == {"error"}
            continue
        # As large as the server itself leaves it, so that transformers sees the same pixels.
        prepared = prepare(image, max_side_px=SERVER_SIDE_PX)
        expected = reference.embed(prepared.to_array())
        from_file, from_png = served(http, site, data, prepared.data)
        assert "embedding" in from_file, (name, from_file)
        of_file[name] = float(np.dot(from_file["embedding"], expected))
        of_png[name] = float(np.dot(from_png["embedding"], expected))

    least = {"file": min(of_file.values()), "png": min(of_png.values())}
    summary = (
        f"{len(of_file)} files embedded, {len(refused)} refused; "
        f"least cosine {least['file']:.8f} (DICOM), {least['png']:.8f} (PNG)"
    )
    record_property("differential", summary)
    with capsys.disabled():
        print(f"\n{summary}")
    assert len(of_file) >= 70
    assert {name: cosine for name, cosine in of_file.items() if cosine < LEAST} == {}
    assert {name: cosine for name, cosine in of_png.items() if cosine < LEAST} == {}
    assert set(refused.values()) <= CODES, refused


def test_file_that_is_refused_fails_its_own_instance_alone(http: httpx.Client, site: Site) -> None:
    good = (SHIPPED / "CT_small.dcm").read_bytes()
    broken = good[: len(good) // 2]
    no_pixels = (SHIPPED / "rtplan.dcm").read_bytes()

    first, second, third, fourth = served(http, site, good, broken, no_pixels, good)

    assert first["embedding"] == pytest.approx(fourth["embedding"], abs=1e-6)
    assert second["error"]["code"] == third["error"]["code"] == "DICOM_ERROR"
    assert second["error"]["description"]
