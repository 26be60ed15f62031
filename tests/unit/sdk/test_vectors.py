"""The fast reader of embeddings: what it reads equals what the general parser reads, the rest it leaves alone."""

import numpy as np
import orjson
import pytest

from medport.wire import vectors

EXTRA = {"model_temperature": 4.7, "model_bias": -16.5}


def reply(*embeddings: object) -> bytes:
    return orjson.dumps({"predictions": [{"embedding": e, **EXTRA} for e in embeddings], "deployedModelId": "1"})


def test_rows_equal_those_of_the_general_parser_bit_for_bit() -> None:
    rows = np.random.default_rng(7).normal(size=(64, 1152)).astype(np.float32)

    for _ in range(3):  # the parser is used again
        found = vectors.read(reply(*rows.tolist()))

        assert found is not None
        assert np.array_equal(found.rows, rows)
        assert (found.scale, found.bias) == (4.7, -16.5)


def test_whole_numbers_are_numbers() -> None:
    found = vectors.read(reply([1, 0.5], [0, -1]))

    assert found is not None
    assert found.rows.tolist() == [[1, 0.5], [0, -1]]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html>",
        b"[]",
        b"null",
        b'"error"',
        b'{"predictions": "x"}',
        b'{"predictions": []}',
        b'{"predictions": [{"embedding": [NaN]}]}',
        b'{"predictions": [{"embedding": [123456789012345678901234567890]}]}',
        b'{"predictions": [{"embedding": [1, 2]}], "error": {"code": 500}}',
        reply([1, None]),
        reply([1, "2"]),
        reply([1, True]),
        reply([[1], [2]]),
        reply([1, [2, 3], []]),
        reply([1, 2], [1]),
        reply(None),
        orjson.dumps({"predictions": [{"embedding": [1, 2]}]}),
        orjson.dumps({"predictions": [{"embedding": [1, 2], **EXTRA}, {"error": {"code": "X"}}]}),
    ],
)
def test_what_is_not_plain_is_left_to_the_general_parser(body: bytes) -> None:
    assert vectors.read(body) is None

    assert vectors.read(reply([3, 4])) is not None  # and does no harm to the next reply


def test_a_number_too_large_for_float32_is_handed_on_as_infinite() -> None:
    found = vectors.read(reply([1e300, 1]))

    assert found is not None
    assert np.isinf(found.rows[0, 0])
