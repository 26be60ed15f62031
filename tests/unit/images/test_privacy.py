"""Planted words must not come out: not in what is sent, in errors, logs, warnings, or on the terminal."""

from __future__ import annotations

import logging
import struct
import threading
import traceback
import warnings
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as pil
from PIL import PngImagePlugin

from medport.errors import DicomError, ImageError, InputError
from medport.images import load, prepare
from medport.images.metadata import clean_jpeg, clean_png
from medport.images.quiet import quiet

CANARY = "MUELLER^ANNA"
WORD = CANARY.encode()


def everything(error: BaseException) -> str:
    """All that a log of the exception, with its causes, could show."""
    parts, seen = [], error
    while seen is not None:
        parts += [str(seen), repr(seen), repr(vars(seen)), "".join(traceback.format_exception_only(seen))]
        seen = seen.__cause__ or seen.__context__
    return "\n".join(parts)


@pytest.fixture
def sinks(caplog, capfd, recwarn):
    """A function that gives all that was logged (from DEBUG up), warned and printed since its last call."""
    caplog.set_level(logging.DEBUG)
    for name in ("PIL", "pydicom"):
        caplog.set_level(logging.DEBUG, logger=name)

    def read() -> str:
        printed = capfd.readouterr()
        warned = [str(entry.message) for entry in recwarn.list]
        said = "\n".join([caplog.text, printed.out, printed.err, *warned])
        caplog.clear()
        recwarn.clear()
        return said

    return read


def png_with_text(colours) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text("Patient", CANARY)
    info.add_text("Compressed", CANARY * 50, zip=True)
    info.add_itxt("XML:com.adobe.xmp", f"<x>{CANARY}</x>")
    exif = pil.Exif()
    exif[0x010E] = CANARY
    file = BytesIO()
    pil.fromarray(colours).save(file, "PNG", pnginfo=info, exif=exif, icc_profile=WORD * 20, dpi=(300, 300))
    return file.getvalue() + WORD


def jpeg_with_everything(colours) -> bytes:
    exif = pil.Exif()
    exif[0x010E] = CANARY
    file = BytesIO()
    options = {"exif": exif, "comment": WORD, "icc_profile": WORD * 20, "xmp": WORD, "quality": 92}
    pil.fromarray(colours).save(file, "JPEG", **options)
    data = file.getvalue()
    thumbnail = b"\xff\xe0" + struct.pack(">H", 16 + 12) + b"JFIF\0\1\1\0\0\1\0\1\2\2" + WORD[:12]
    extra = b"\xff\xe0" + struct.pack(">H", 2 + 6 + len(WORD)) + b"JFXX\0\x10" + WORD
    adobe = b"\xff\xee" + struct.pack(">H", 14 + len(WORD)) + b"Adobe\0\x64\0\0\0\0\1" + WORD
    jfif_end = 4 + int.from_bytes(data[4:6], "big")
    return data[:2] + thumbnail + extra + adobe + data[jfif_end:] + WORD


@pytest.mark.parametrize("make", [png_with_text, jpeg_with_everything])
def test_metadata_is_cut_out_and_the_pixels_stay(colours, make, sinks):
    data = make(colours)
    assert data.count(WORD) >= 3
    sinks()

    prepared = prepare(load(data))

    assert CANARY not in repr(prepared) + sinks()
    assert WORD not in prepared.data
    assert prepared.encoded is not None
    assert prepared.data[:2] == data[:2]
    expected, sent = (np.asarray(pil.open(BytesIO(file))) for file in (data, prepared.data))
    assert np.array_equal(sent, expected)


def test_only_picture_chunks_and_segments_are_left(colours):
    png, jpeg = clean_png(png_with_text(colours)), clean_jpeg(jpeg_with_everything(colours))

    assert png is not None
    chunks, at = [], 8
    while at < len(png):
        chunks.append(png[at + 4 : at + 8])
        at += 12 + int.from_bytes(png[at : at + 4], "big")
    assert set(chunks) == {b"IHDR", b"IDAT", b"IEND"}
    assert jpeg[:20] == b"\xff\xd8\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
    assert jpeg.endswith(b"\xff\xd9")
    assert clean_png(png) is png
    assert clean_jpeg(jpeg) is jpeg


def test_transparency_and_other_chunks_do_not_survive(make_file, colours):
    picture = pil.fromarray(colours)
    data = make_file("PNG", picture, transparency=(0, 0, 240))

    prepared = prepare(load(data))

    assert b"tRNS" not in prepared.data
    assert np.array_equal(prepared.pixels, colours)


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"subsampling": 2}, {"restart_marker_rows": 1}, {"quality": 5}]
)
@pytest.mark.parametrize("grey", [False, True])
def test_every_kind_of_jpeg_keeps_its_pixels(make_file, grey, options):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64) if grey else (64, 64, 3), np.uint8)
    data = make_file("JPEG", noise, comment=WORD, **options)

    prepared = prepare(load(data))

    assert prepared.media_type == "image/jpeg"
    assert WORD not in prepared.data
    assert np.array_equal(np.asarray(pil.open(BytesIO(prepared.data))), np.asarray(pil.open(BytesIO(data))))


def test_a_second_picture_in_a_phones_jpeg_is_left_out(make_file, colours):
    second = pil.fromarray(colours[::-1].copy())
    data = make_file("MPO", colours, save_all=True, append_images=[second])

    prepared = prepare(load(data))

    assert prepared.data.count(b"\xff\xd8\xff") == 1
    assert np.array_equal(prepared.pixels, np.asarray(pil.open(BytesIO(data))))


def test_stray_bytes_between_segments_are_not_sent_on(make_file, colours):
    data = make_file("JPEG", colours)
    at = data.index(b"\xff\xdb")

    prepared = prepare(load(data[:at] + WORD + data[at:]))

    assert prepared.media_type == "image/png"
    assert WORD not in prepared.data


def test_nothing_of_a_dicom_object_is_sent_but_its_pixels(make_dicom, ramp, sinks):
    data = make_dicom(ramp, PatientName=CANARY, PatientID=CANARY, StudyDescription=CANARY)

    prepared = prepare(load(data))

    assert WORD in data
    assert WORD not in prepared.data
    assert CANARY not in repr(prepared) + sinks()


BROKEN = {
    "a bad date": {"PatientBirthDate": None},
    "no rows": {"Rows": None},
    "a wrong colour space": {"PhotometricInterpretation": CANARY},
    "a wrong function": {"WindowCenter": 1, "WindowWidth": 2, "VOILUTFunction": CANARY},
    "cut off": {"PixelData": b"\0\0"},
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_object_tells_nothing(make_dicom, ramp, attempt, sinks, case):
    attributes = {key: value for key, value in BROKEN[case].items() if key != "PatientBirthDate"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        data = make_dicom(ramp, PatientName=CANARY, **attributes)
    if case == "a bad date":  # pydicom warns with the value when it is read
        data = data.replace(b"1.2.3\0", CANARY[:6].encode())
    else:
        data = data.replace(b"\x10\x00\x10\x00PN", b"\x10\x00\x10\x00DS")  # a name where a number should be
    sinks()

    result = attempt(data)

    assert CANARY not in (everything(result) if isinstance(result, ImageError) else repr(result))
    assert getattr(result, "__context__", None) is None
    assert CANARY not in sinks()


def test_warnings_with_values_are_silent_even_as_errors(make_dicom, ramp, sinks):
    name = b"\x28\x00\x50\x10DS"
    data = make_dicom(ramp, WindowCenter="40", WindowWidth="80", PatientName=CANARY)
    at = data.index(name)
    hurt = data[: at + 6] + struct.pack("<H", 12) + WORD + data[at + 10 :]

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DicomError) as caught:
            load(hurt)

    assert CANARY not in everything(caught.value) + sinks()


def test_tiff_tags_stay_out_of_debug_logs(make_file, colours, sinks):
    data = make_file("TIFF", colours, description=CANARY, artist=CANARY)
    sinks()

    load(data)

    assert WORD in data
    assert CANARY not in sinks()


@pytest.mark.parametrize("suffix", [".png", ".dcm", ""])
def test_paths_stay_out_of_errors(tmp_path, sinks, suffix):
    folder = tmp_path / CANARY
    folder.mkdir()
    broken = folder / f"{CANARY}{suffix}"
    broken.write_bytes(b"\x89PNG\r\n\x1a\n" + WORD)

    for path in (broken, str(broken), folder, folder / f"no{suffix}", str(folder) + "\0"):
        with pytest.raises(ImageError) as caught:
            load(path, field="images[1]")
        assert CANARY not in everything(caught.value)
        assert caught.value.field == "images[1]"
    assert CANARY not in sinks()


@pytest.mark.parametrize(
    "source",
    [
        f"https://host/{CANARY}?token=x", f"data:image/png;base64,{CANARY}%", f"data:{CANARY}", CANARY,
        WORD, b"\xff\xd8\xff" + WORD, b"GIF89a" + WORD, b"BM" + WORD * 9, bytes(128) + b"DICM" + WORD * 99,
        f"{CANARY}:".encode() * 3, [CANARY], {CANARY: 1}, "Q0FOQVJZ" * 1000 + CANARY,
    ],
)  # fmt: skip
def test_content_stays_out_of_errors(source, sinks):
    with pytest.raises(InputError) as caught:
        load(source)

    assert CANARY not in everything(caught.value) + sinks()
    assert len(str(caught.value)) < 300


def test_a_text_chunk_stays_out_of_the_error_for_its_checksum(colours):
    data = bytearray(png_with_text(colours))
    data[data.index(WORD)] ^= 0xFF

    with pytest.raises(ImageError) as caught:
        load(bytes(data))
    assert CANARY not in everything(caught.value)


def test_a_text_chunk_that_unpacks_to_far_too_much_is_not_unpacked_for_long(colours):
    file = BytesIO()
    pil.fromarray(colours).save(file, "PNG")
    plain = file.getvalue()
    body = b"k\0\0" + zlib.compress(bytes(2**26))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body + struct.pack(">I", zlib.crc32(b"zTXt" + body))

    with pytest.raises(ImageError):
        load(plain[:33] + chunk + plain[33:])


def test_outside_a_decode_the_libraries_may_speak(caplog):
    logger = logging.getLogger("pydicom")

    with quiet():
        logger.warning("hidden")
    logger.warning("heard")

    assert "heard" in caplog.text
    assert "hidden" not in caplog.text


def test_another_thread_is_heard_while_this_one_decodes(caplog):
    logger = logging.getLogger("pydicom")

    with quiet():
        thread = threading.Thread(target=logger.warning, args=("from next door",))
        thread.start()
        thread.join()

    assert "from next door" in caplog.text


def test_threads_leave_the_warning_filters_as_they_were(make_dicom, ramp):
    data = make_dicom(ramp)
    before = list(warnings.filters)

    threads = [threading.Thread(target=lambda: [load(data) for _ in range(20)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert list(warnings.filters) == before


def test_loading_writes_no_file(make_dicom, ramp, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    prepare(load(make_dicom(ramp)))

    assert list(Path(tmp_path).iterdir()) == []
