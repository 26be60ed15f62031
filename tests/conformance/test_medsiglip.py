"""MedSigLIP's container: sources, patches, windows, embeddings in order, and errors one by one or as a whole."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from support.dicomweb import pydicom_file
from support.wire import Endpoint, b64, png

BUCKET = "phantoms"


def image(**fields: object) -> dict[str, Any]:
    return {"image": fields}


def by_value(data: bytes, **fields: object) -> dict[str, Any]:
    return image(input_bytes=b64(data), **fields)


def vector(prediction: dict[str, Any]) -> np.ndarray[Any, Any]:
    return np.array(prediction["embedding"], dtype=np.float32)


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return float(vector(one) @ vector(other)) > 0.99999


def code(siglip: Endpoint, instance: object) -> str:
    (prediction,) = siglip.predict(instance)
    assert set(prediction) == {"error"}
    assert len(prediction["error"]["description"]) <= 1024
    found: str = prediction["error"]["code"]
    return found


def test_text(siglip: Endpoint) -> None:
    """`text`: a unit vector, `input_type` text, the checkpoint's temperature and bias."""
    (answer,) = siglip.predict({"text": "a chest X-ray"})

    assert set(answer) == {"embedding", "input_type", "model_temperature", "model_bias"}
    assert answer["input_type"] == "text"
    assert np.linalg.norm(vector(answer)) == pytest.approx(1, abs=1e-5)


def test_input_bytes(siglip: Endpoint) -> None:
    """`image.input_bytes`: a unit vector, `input_type` image."""
    (answer,) = siglip.predict(by_value(png()))
    assert answer["input_type"] == "image"
    assert np.linalg.norm(vector(answer)) == pytest.approx(1, abs=1e-5)


def test_order(siglip: Endpoint) -> None:
    """One prediction for each instance, in order, texts and images mixed."""
    several = siglip.predict({"text": "a"}, by_value(png(seed=1)), {"text": "b"}, by_value(png(seed=2)))
    alone = [
        siglip.predict(each)[0]
        for each in ({"text": "a"}, by_value(png(seed=1)), {"text": "b"}, by_value(png(seed=2)))
    ]
    assert all(same(one, other) for one, other in zip(several, alone, strict=True))


def test_gcs_uri(siglip: Endpoint) -> None:
    """`image.gcs_uri`: an object of an allowed bucket."""
    stored, inline = siglip.predict(image(gcs_uri=f"gs://{BUCKET}/a.png"), by_value(png(seed=1)))
    assert same(stored, inline)


def test_image_url(siglip: Endpoint, files: str) -> None:
    """`image.image_url`: a file of an allowed host."""
    fetched, inline = siglip.predict(image(image_url=f"{files}/a.png"), by_value(png(seed=1)))
    assert same(fetched, inline)


def test_dicomweb_uri(siglip: Endpoint, store: tuple[str, list[str]]) -> None:
    """`image.dicomweb_uri`: an instance of an allowed store."""
    (answer,) = siglip.predict(image(dicomweb_uri=store[1][0]))
    assert answer["input_type"] == "image"


def test_access_credential(siglip: Endpoint, files: str) -> None:
    """`access_credential` goes with a reference, and has a token's form."""
    (answer,) = siglip.predict(image(image_url=f"{files}/a.png", access_credential="token-1"))
    assert "embedding" in answer
    error = siglip.refused(image(image_url=f"{files}/a.png", access_credential="with blanks"))
    assert error["details"][0]["metadata"]["field"] == "instances[0].image.access_credential"


def test_padding(siglip: Endpoint) -> None:
    """A picture that is not square is padded with black, centred."""
    wide = png(40, width=80, seed=3)
    square = Image.new("RGB", (80, 80))
    square.paste(Image.open(io.BytesIO(wide)), (0, 20))
    file = io.BytesIO()
    square.save(file, "PNG")

    one, other = siglip.predict(by_value(wide), by_value(file.getvalue()))
    assert same(one, other)


def test_grey_is_repeated(siglip: Endpoint) -> None:
    """Grey becomes three channels."""
    grey = np.random.default_rng(0).integers(0, 255, (32, 32), dtype=np.uint8)
    files = []
    for pixels in (grey, np.stack([grey] * 3, axis=-1)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        files.append(file.getvalue())
    one, other = siglip.predict(*map(by_value, files))
    assert same(one, other)


def test_patches(siglip: Endpoint) -> None:
    """`patch_coordinates_list`: `patch_embeddings`, each with its coordinates; a size left out is the model's."""
    data = png(300, seed=4)
    corners = [{"x_origin": 0, "y_origin": 0}, {"x_origin": 100.0, "y_origin": 150}]
    (answer,) = siglip.predict(by_value(data, patch_coordinates_list=corners))

    assert set(answer) == {"patch_embeddings", "input_type", "model_temperature", "model_bias"}
    whole = Image.open(io.BytesIO(data))
    for patch, (x, y) in zip(answer["patch_embeddings"], ((0, 0), (100, 150)), strict=True):
        side = patch["patch_coordinate"]["width"]
        assert patch["patch_coordinate"] == {"x_origin": x, "y_origin": y, "width": side, "height": side}
        file = io.BytesIO()
        whole.crop((x, y, x + side, y + side)).save(file, "PNG")
        assert same(patch, siglip.predict(by_value(file.getvalue()))[0])


def test_patch_outside(siglip: Endpoint) -> None:
    """A patch that is not inside: its code, unless the extension allows it to be partly outside."""
    corner = [{"x_origin": 20, "y_origin": 0}]
    outside = by_value(png(120), patch_coordinates_list=corner)
    assert code(siglip, outside) == "PATCH_OUTSIDE_OF_IMAGE_DIMENSIONS_ERROR"

    loose = {"require_patches_fully_in_source_image": False}
    (answer,) = siglip.predict(by_value(png(120), patch_coordinates_list=corner, extensions=loose))
    assert len(answer["patch_embeddings"]) == 1


def test_patch_size(siglip: Endpoint) -> None:
    """A patch of another size than the model's input: its code."""
    odd = by_value(png(300), patch_coordinates_list=[{"x_origin": 0, "y_origin": 0, "width": 30, "height": 40}])
    assert code(siglip, odd) == "PATCH_DIMENSIONS_DO_NOT_MATCH_ENDPOINT_INPUT_DIMENSIONS_ERROR"


def test_too_many_patches(siglip: Endpoint) -> None:
    """More patches than a request may have: 200 and the bare code for the whole request."""
    corners = [{"x_origin": 0, "y_origin": 0}] * 3000
    instance = by_value(png(300), patch_coordinates_list=corners)
    answer = siglip.post(":predict", {"instances": [instance, instance]})
    assert answer.status_code == 200
    assert answer.json()["error"] == "TOO_MANY_PATCHES_ERROR"


def test_bad_extension(siglip: Endpoint) -> None:
    """An extension that cannot be understood: 200 and the bare code for the whole request."""
    for extensions in ({"image_dimensions": {"width": "x"}}, {"transform_imaging_to_icc_profile": "CMYK"}):
        answer = siglip.post(":predict", {"instances": [{"text": "a"}, by_value(png(), extensions=extensions)]})
        assert answer.status_code == 200
        assert answer.json()["error"] == "INVALID_REQUEST_FIELD_ERROR"


def test_image_dimensions(siglip: Endpoint) -> None:
    """`extensions.image_dimensions`: patches are cut after resizing; larger than the picture is an error."""
    smaller = {"image_dimensions": {"width": 150, "height": 150}}
    (answer,) = siglip.predict(
        by_value(png(300), patch_coordinates_list=[{"x_origin": 10, "y_origin": 10}], extensions=smaller)
    )
    assert len(answer["patch_embeddings"]) == 1
    larger = {"image_dimensions": {"width": 301, "height": 301}}
    assert code(siglip, by_value(png(300), extensions=larger)) == "IMAGE_DIMENSION_ERROR"


def test_unknown_extensions_are_taken(siglip: Endpoint) -> None:
    """`extensions` that are the reference's own are taken and ignored."""
    (answer,) = siglip.predict(by_value(png(), extensions={"ez_wsi_state": {}, "other": 1}))
    assert "embedding" in answer


def test_level_of_what_is_no_slide(siglip: Endpoint) -> None:
    """`openslide_pyramid_level` of a picture: LEVEL_NOT_FOUND_ERROR."""
    level = image(gcs_uri=f"gs://{BUCKET}/a.png", openslide_pyramid_level={"index": 0})
    assert code(siglip, level) == "LEVEL_NOT_FOUND_ERROR"


def test_window_level(siglip: Endpoint, ct_object: bytes) -> None:
    """`radiology_dicom_window_level` decides how CT is shown, and is ignored for other files."""
    own, soft, again = siglip.predict(
        by_value(ct_object),
        by_value(ct_object, radiology_dicom_window_level={"center": 40, "width": 80}),
        by_value(ct_object, radiology_dicom_window_level={"center": 40.0, "width": 80}),
    )
    assert not same(own, soft)
    assert same(soft, again)
    plain, windowed = siglip.predict(
        by_value(png()), by_value(png(), radiology_dicom_window_level={"center": 1, "width": 2})
    )
    assert same(plain, windowed)


def test_ct_without_window_is_wide(siglip: Endpoint, ct_object: bytes) -> None:
    """CT without a window of its own: centre 100, width 2500."""
    bare = pydicom.dcmread(io.BytesIO(ct_object))
    for keyword in ("WindowCenter", "WindowWidth"):
        if keyword in bare:
            delattr(bare, keyword)
    file = io.BytesIO()
    bare.save_as(file)
    default, asked = siglip.predict(
        by_value(file.getvalue()),
        by_value(file.getvalue(), radiology_dicom_window_level={"center": 100, "width": 2500}),
    )
    assert same(default, asked)


@pytest.mark.parametrize(
    ("instance", "expected"),
    [
        (by_value(b"no image"), "UNHANDLED_GENERIC_BYTES_ERROR"),
        (image(input_bytes="not base64!"), "UNHANDLED_GENERIC_BYTES_ERROR"),
        (image(gcs_uri=f"gs://{BUCKET}/none.png"), "UNHANDLED_GCS_FILE_ERROR"),
        (image(gcs_uri="gs://another-bucket/a.png"), "UNHANDLED_GCS_FILE_ERROR"),
        (image(image_url="https://example.org/a.png"), "UNHANDLED_HTTP_FILE_ERROR"),
        (image(dicomweb_uri="https://example.org/studies/1/series/2/instances/3"), "UNAPPROVED_DICOM_STORE_ERROR"),
        (image(dicomweb_uri="http://127.0.0.1:1/studies/1/series/2"), "DICOM_PATH_ERROR"),
        (image(image_url="https://127.0.0.1:1/a.png", access_credential="application_default"),
         "INVALID_CREDENTIALS_ERROR"),
    ],
)  # fmt: skip
def test_item_error(siglip: Endpoint, instance: object, expected: str) -> None:
    """What cannot be used is that instance's error, with a listed code; the others are answered."""
    failed, answered = siglip.predict(instance, {"text": "a"})
    assert failed["error"]["code"] == expected
    assert "embedding" in answered


def test_dicom_without_pixels(siglip: Endpoint) -> None:
    """A DICOM object without an image: DICOM_ERROR."""
    assert code(siglip, by_value(pydicom_file("rtplan.dcm"))) == "DICOM_ERROR"


def test_http_file_that_is_not_there(siglip: Endpoint, files: str) -> None:
    """A host that answers 404: HTTP_ERROR."""
    assert code(siglip, image(image_url=f"{files}/none.png")) == "HTTP_ERROR"


@pytest.mark.parametrize(
    ("instance", "field"),
    [
        ({}, "instances[0]"),
        ({"text": "a", "image": {"input_bytes": ""}}, "instances[0]"),
        ({"words": "a"}, "instances[0].words"),
        ({"text": 5}, "instances[0].text"),
        (image(), "instances[0].image"),
        (image(input_bytes="a", gcs_uri="gs://b/o.png"), "instances[0].image"),
        (image(gcs_uri="https://x/y.png"), "instances[0].image.gcs_uri"),
        (image(image_url="gs://x/y.png"), "instances[0].image.image_url"),
        (image(input_bytes="a", patch_coordinates_list=[]), "instances[0].image.patch_coordinates_list"),
        (image(input_bytes="a", patch_coordinates_list=[{"x_origin": -1, "y_origin": 0}]),
         "instances[0].image.patch_coordinates_list[0].x_origin"),
        (image(input_bytes="a", openslide_pyramid_level={"index": 0}),
         "instances[0].image.openslide_pyramid_level"),
        (image(gcs_uri="gs://b/o.svs", openslide_pyramid_level={"index": 0, "width": 1}),
         "instances[0].image.openslide_pyramid_level"),
        (image(input_bytes="a", access_credential="x"), "instances[0].image.access_credential"),
    ],
)  # fmt: skip
def test_violation_fails_the_request(siglip: Endpoint, instance: object, field: str) -> None:
    """An instance that breaks the schema: 400 for the whole request, with the field's name."""
    answer = siglip.post(":predict", {"instances": [instance]})
    assert answer.status_code == 400
    assert answer.json()["error"]["details"][0]["metadata"]["field"] == field
    raw = siglip.post(":rawPredict", {"instances": [instance]})
    assert raw.status_code == 400
    assert field in raw.json()["error"]


def test_no_instances_field(siglip: Endpoint) -> None:
    """Without `instances`: 400 "No instances field in request."."""
    answer = siglip.post(":rawPredict", {"text": "a"})
    assert answer.status_code == 400
    assert answer.json()["error"].startswith("No instances field in request.")
    assert siglip.post(":predict", {}).status_code == 400


def test_no_json(siglip: Endpoint) -> None:
    """No JSON: 400 "No JSON body."."""
    answer = siglip.http.post(f"{siglip.path}:rawPredict", content=b"x")
    assert (answer.status_code, answer.json()) == (400, {"error": "No JSON body."})


def test_no_instances(siglip: Endpoint) -> None:
    """An empty list of instances gives an empty list."""
    assert siglip.predict() == []


def test_nulls_count_as_absent(siglip: Endpoint) -> None:
    """Fields that are null are fields that are absent."""
    (answer,) = siglip.predict({"text": "a", "image": None})
    assert answer["input_type"] == "text"
