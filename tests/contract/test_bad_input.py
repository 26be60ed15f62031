"""What is refused, by which error, naming what, and without a word of what was sent."""

from __future__ import annotations

import logging
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image as pil

from medport import DicomError, ImageError, InputError, MedportError, RequestTooLarge

from .conftest import Asked

CANARY = "CANARY-Lindqvist-19620317"
PIXEL = 201
GOOD = np.full((32, 32), PIXEL, np.uint8)


def png(pixels: Any = GOOD) -> bytes:
    file = BytesIO()
    pil.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def bomb() -> bytes:
    """A PNG that declares 60,000 x 60,000 pixels in 100 bytes."""

    def block(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + block(b"IHDR", head) + block(b"IDAT", zlib.compress(b"\0")) + block(b"IEND", b"")


def animation() -> bytes:
    file = BytesIO()
    frames = [pil.fromarray(np.full((8, 8), value, np.uint8)) for value in (0, 255)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


def report() -> bytes:
    """A DICOM object with a patient and no pixels."""
    pydicom = pytest.importorskip("pydicom")
    from pydicom.uid import ExplicitVRLittleEndian

    ds = pydicom.Dataset()
    ds.SOPClassUID, ds.SOPInstanceUID = "1.2.840.10008.5.1.4.1.1.88.11", "1.2.3"
    ds.Modality, ds.PatientName = "SR", CANARY
    ds.file_meta = pydicom.dataset.FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True, implicit_vr=False, little_endian=True)
    return file.getvalue()


@dataclass(frozen=True)
class Bad:
    """A request that is refused."""

    ask: Callable[[Asked], Any]
    error: type[MedportError]
    field: str
    """A pattern for the field."""
    found_by_server: bool = False


def chat(*args: Any, **options: Any) -> Callable[[Asked], Any]:
    return lambda client: client.chat(*args, **options)


def about(make: Callable[[], Any]) -> Callable[[Asked], Any]:
    return lambda client: client.chat(f"{CANARY}?", make())


def turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": f"{CANARY} {role}"} for role in roles]


def noise() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (1792, 1792, 3), np.uint8)


BAD: dict[str, Bad] = {
    "empty prompt": Bad(chat(""), InputError, "prompt"),
    "blank prompt": Bad(chat(" \n\t"), InputError, "prompt"),
    "no prompt": Bad(chat(None), InputError, "prompt"),
    "no messages": Bad(chat([]), InputError, "prompt"),
    "unknown role": Bad(chat(turns("robot")), InputError, r"messages\[0\]\.role"),
    "two users in a row": Bad(chat(turns("user", "user")), InputError, r"messages\[1\]\.role", True),
    "the assistant first": Bad(chat(turns("assistant", "user")), InputError, r"messages\[0\]\.role", True),
    "the assistant last": Bad(chat(turns("user", "assistant")), InputError, r"messages\[1\]\.role", True),
    "two system texts": Bad(chat(turns("system", "user"), system=CANARY), InputError, "system"),
    "half a surrogate pair": Bad(chat(f"{CANARY} \ud800"), InputError, "prompt|messages"),
    "half a surrogate pair in the system text": Bad(
        chat(CANARY, system=f"{CANARY} \ud800"), InputError, "system|prompt|messages"
    ),
    "longer than the context": Bad(chat(f"{CANARY} " * 3_000), InputError, "messages", True),
    "no tokens": Bad(chat(CANARY, max_tokens=0), InputError, "max_tokens"),
    "fewer than no tokens": Bad(chat(CANARY, max_tokens=-5), InputError, "max_tokens"),
    "absurdly many tokens": Bad(chat(CANARY, max_tokens=10**9), InputError, "max_tokens"),
    "half a token": Bad(chat(CANARY, max_tokens=1.5), InputError, "max_tokens"),
    "a temperature below zero": Bad(chat(CANARY, temperature=-1.0), InputError, "temperature"),
    "a temperature that is no number": Bad(chat(CANARY, temperature=float("nan")), InputError, "temperature"),
    "top_p of zero": Bad(chat(CANARY, top_p=0.0), InputError, "top_p"),
    "an empty stop": Bad(chat(CANARY, stop=""), InputError, "stop"),
    "a stop that is no text": Bad(chat(CANARY, stop=5), InputError, "stop"),
    "a seed below zero": Bad(chat(CANARY, seed=-1), InputError, "seed"),
    "an option there is not": Bad(chat(CANARY, max_token=5), InputError, "max_token"),
    "a deadline in the past": Bad(chat(CANARY, timeout_s=-1.0), InputError, "timeout_s"),
    "a deadline that is no number": Bad(chat(CANARY, timeout_s=CANARY), InputError, "timeout_s"),
    "a wait below zero": Bad(chat(CANARY, wait_until_ready=-1.0), InputError, "wait_until_ready"),
    "None for an image": Bad(about(lambda: [None]), InputError, r"images\[0\]"),
    "a text for an image": Bad(about(lambda: f"/nowhere/{CANARY}.png"), ImageError, r"images\[0\]"),
    "a number for an image": Bad(about(lambda: 5), InputError, r"images\[0\]"),
    "0 bytes": Bad(about(lambda: b""), ImageError, r"images\[0\]"),
    "bytes of something else": Bad(about(lambda: CANARY.encode() * 9), ImageError, r"images\[0\]"),
    "a cut PNG": Bad(about(lambda: png()[:-20]), ImageError, r"images\[0\]"),
    "the second image cut": Bad(about(lambda: [GOOD, png()[:-20]]), ImageError, r"images\[1\]"),
    "a decompression bomb": Bad(about(bomb), ImageError, r"images\[0\]"),
    "an animation": Bad(about(animation), ImageError, r"images\[0\]"),
    "DICOM without pixels": Bad(about(report), DicomError, r"images\[0\]"),
    "an array of floats": Bad(about(lambda: GOOD / 255.0), InputError, r"images\[0\]"),
    "a URL the server does not fetch": Bad(
        about(lambda: f"https://images.example/{CANARY}.png"), InputError, r"images\[0\]", True
    ),
    "more than 10 MB": Bad(about(noise), RequestTooLarge, "images"),
    "a part of two kinds": Bad(
        chat([{"role": "user", "content": [{"type": "audio", "audio": CANARY}]}]), InputError, r"content\[0\]"
    ),
    "a path where a URL belongs": Bad(
        chat([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": __file__}}]}]),
        ImageError,
        r"content\[0\]",
    ),
    "an image in the assistant's turn": Bad(
        chat(
            [
                {"role": "user", "content": CANARY},
                {"role": "assistant", "content": [GOOD]},
                {"role": "user", "content": CANARY},
            ]
        ),
        InputError,
        r"messages\[1\]\.content",
        True,
    ),
    "no images to embed": Bad(lambda c: c.embed_images([]), InputError, "images"),
    "no texts to embed": Bad(lambda c: c.embed_texts([]), InputError, "texts"),
    "None to embed": Bad(lambda c: c.embed_texts(None), InputError, "texts"),
    "an empty text to embed": Bad(lambda c: c.embed_texts([CANARY, " "]), InputError, r"texts\[1\]"),
    "half a surrogate pair to embed": Bad(lambda c: c.embed_texts([f"{CANARY}\udc00"]), InputError, r"texts\[0\]"),
    "no labels": Bad(lambda c: c.classify(GOOD, []), InputError, "labels"),
    "a label twice": Bad(lambda c: c.classify(GOOD, [CANARY, CANARY]), InputError, "labels"),
    "a label that is no text": Bad(lambda c: c.classify(GOOD, [1, 2]), InputError, "labels"),
    "an empty label": Bad(lambda c: c.classify(GOOD, [CANARY, " "]), InputError, "labels"),
    "a template without a place": Bad(
        lambda c: c.classify(GOOD, ["a"], templates=[CANARY]), InputError, "templates"
    ),
    "nothing to classify": Bad(lambda c: c.classify([], ["a"]), InputError, "images"),
    "only bad images to classify": Bad(lambda c: c.classify([b""], [CANARY]), ImageError, r"images\[0\]"),
}


def everything_said(error: BaseException) -> str:
    """All text of an error and of what caused it."""
    said = []
    link: BaseException | None = error
    while link is not None:
        said += [str(link), repr(link), repr(link.args)]
        if isinstance(link, MedportError):
            said += map(str, (link.message, link.field, link.remedy))
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return "\n".join(said)


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_a_typed_error_without_content(
    client: Asked, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    bad = BAD[name]
    caplog.set_level(logging.DEBUG)

    with pytest.raises(MedportError) as caught:
        bad.ask(client)

    error = caught.value
    assert type(error) is bad.error, error
    assert error.remedy, error
    if not bad.found_by_server or client.place.capabilities.names_fields:
        assert error.field is not None, error
        assert re.search(bad.field, error.field), error.field
    assert not error.retryable
    said = everything_said(error)
    assert CANARY not in said
    assert f"{PIXEL}, {PIXEL}" not in said
    assert CANARY not in caplog.text


@pytest.mark.parametrize("name", ["two users in a row", "longer than the context", "0 bytes", "empty prompt"])
def test_a_stream_refuses_what_chat_refuses(client: Asked, name: str) -> None:
    asked = {
        "two users in a row": (turns("user", "user"), ()),
        "longer than the context": (f"{CANARY} " * 3_000, ()),
        "0 bytes": (CANARY, b""),
        "empty prompt": ("", ()),
    }[name]

    with pytest.raises(BAD[name].error) as caught, client.stream(*asked) as stream:
        next(iter(stream))

    assert type(caught.value) is BAD[name].error
    assert CANARY not in everything_said(caught.value)
