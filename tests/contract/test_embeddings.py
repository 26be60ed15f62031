"""What embedding and classifying promise, on every backend and in both colours."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from medport import ImageError

from .conftest import Asked

LABELS = ["normal", "pneumothorax", "cardiomegaly", "pleural effusion"]


def test_vectors_have_length_one(client: Asked, drawings: list[Any]) -> None:
    images = client.embed_images(drawings)
    texts = client.embed_texts(LABELS)

    for found, count in ((images, len(drawings)), (texts, len(LABELS))):
        assert found.vectors.dtype == np.float32
        assert found.vectors.shape[0] == len(found) == count
        np.testing.assert_allclose(np.linalg.norm(found.vectors, axis=1), 1, atol=1e-5)
    assert images.vectors.shape[1] == texts.vectors.shape[1]


def test_the_vectors_are_the_same_on_every_backend(client: Asked, reference: Asked, drawings: list[Any]) -> None:
    np.testing.assert_allclose(client.embed_images(drawings), reference.embed_images(drawings), atol=1e-5)
    np.testing.assert_allclose(client.embed_texts(LABELS), reference.embed_texts(LABELS), atol=1e-5)


def test_scale_and_bias_are_the_models_own(client: Asked, reference: Asked, drawings: list[Any]) -> None:
    found, expected = client.embed_images(drawings[0]), reference.embed_texts("normal")

    assert found.logit_scale == pytest.approx(expected.logit_scale)
    assert found.logit_bias == pytest.approx(expected.logit_bias)
    assert found.logit_scale > 1


def test_asarray_gives_the_vectors(client: Asked, drawings: list[Any]) -> None:
    found = client.embed_images(drawings[:2])

    np.testing.assert_array_equal(np.asarray(found), found.vectors)
    assert np.asarray(found, dtype=np.float64).dtype == np.float64


def test_one_image_alone_is_a_batch_of_one(client: Asked, drawings: list[Any]) -> None:
    alone, together = client.embed_images(drawings[0]), client.embed_images(drawings)

    assert len(alone) == 1
    np.testing.assert_allclose(alone.vectors[0], together.vectors[0], atol=1e-4)


def test_a_bad_image_does_not_fail_the_others(client: Asked, drawings: list[Any]) -> None:
    good = client.embed_images([drawings[0], drawings[1]])

    found = client.embed_images([drawings[0], b"not an image", drawings[1]])

    assert list(found.errors) == [1]
    assert isinstance(found.errors[1], ImageError)
    assert found.errors[1].field == "images[1]"
    assert np.isnan(found.vectors[1]).all()
    np.testing.assert_allclose(found.vectors[[0, 2]], good.vectors, atol=1e-4)


def test_only_bad_images_are_an_error(client: Asked) -> None:
    with pytest.raises(ImageError) as caught:
        client.embed_images([b"not an image", b"nor this"])

    assert caught.value.field == "images[0]"


def test_an_image_the_server_refuses_has_an_error_of_its_own(client: Asked, drawings: list[Any]) -> None:
    found = client.embed_images([drawings[0], "https://images.example/1.png", drawings[1]])

    assert list(found.errors) == [1]
    assert found.errors[1].field == "images[1]"
    assert np.isfinite(found.vectors[[0, 2]]).all()


def test_many_small_images_are_put_together_in_order(client: Asked, drawings: list[Any]) -> None:
    tiny = [drawing[::16, ::16].copy() for drawing in drawings]
    once = client.embed_images(tiny)

    found = client.embed_images(tiny * 18)  # 108: two requests

    np.testing.assert_allclose(found.vectors, np.tile(once.vectors, (18, 1)), atol=1e-4)


def test_shares_sum_to_one_and_the_best_comes_first(client: Asked, drawings: list[Any]) -> None:
    found = client.classify(drawings, LABELS)

    assert len(found) == len(drawings)
    for item in found:
        assert sorted(score.label for score in item.scores) == sorted(LABELS)
        assert sum(score.softmax for score in item.scores) == pytest.approx(1)
        logits = [score.logit for score in item.scores]
        assert logits == sorted(logits, reverse=True)
        assert item.best.label == item.scores[0].label
        for score in item.scores:
            assert score.probability == pytest.approx(1 / (1 + np.exp(-score.logit)), abs=1e-6)


def test_logits_follow_from_the_embeddings(client: Asked, drawings: list[Any]) -> None:
    images, texts = client.embed_images(drawings[:2]), client.embed_texts(LABELS)
    expected = images.logit_scale * (images.vectors @ texts.vectors.T) + images.logit_bias

    found = client.classify(drawings[:2], LABELS)

    for row, item in zip(expected, found, strict=True):
        for label, logit in zip(LABELS, row, strict=True):
            assert item[label].logit == pytest.approx(logit, abs=1e-2)


def test_classes_are_the_same_on_every_backend(client: Asked, reference: Asked, drawings: list[Any]) -> None:
    for item, expected in zip(
        client.classify(drawings, LABELS), reference.classify(drawings, LABELS), strict=True
    ):
        assert [s.label for s in item.scores] == [s.label for s in expected.scores]


def test_a_bad_image_does_not_fail_the_classification(client: Asked, drawings: list[Any]) -> None:
    found = client.classify([drawings[0], b"", drawings[1]], LABELS)

    assert found[0] is not None
    assert found[1] is None
    assert found[2] is not None
    assert isinstance(found.errors[1], ImageError)


def test_prompts_of_ones_own_are_averaged(client: Asked, drawings: list[Any]) -> None:
    by_template = client.classify(drawings[0], ["normal", "nodule"], templates=["{}", "an X-ray: {}"])

    by_prompts = client.classify(
        drawings[0],
        {"normal": ["normal", "an X-ray: normal"], "nodule": ["nodule", "an X-ray: nodule"]},
    )

    for label in ("normal", "nodule"):
        assert by_prompts[0][label].logit == pytest.approx(by_template[0][label].logit, abs=1e-3)
