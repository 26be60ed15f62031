"""DICOM objects against independent computations."""

from __future__ import annotations

import struct
import time
import zlib
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from medport import _extras
from medport.errors import ConfigError, DicomError, ImageError
from medport.images import Limits, load

pydicom = pytest.importorskip("pydicom")
from pydicom import pixels as pydicom_pixels  # noqa: E402
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import UID, JPEGBaseline8Bit  # noqa: E402

# Only what lies inside the package: pydicom's own look-ups would go to the network for the rest.
SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
FILES = sorted(path for path in SHIPPED.rglob("*") if path.is_file())

STORED = (np.arange(32 * 48, dtype=np.int64) * 37 % 4096).reshape(32, 48)
UNSIGNED = STORED.astype(np.uint16)
SIGNED = (STORED - 2048).astype(np.int16)


def by_pydicom(data: bytes) -> np.ndarray:
    """The display values of a grey object by pydicom's own functions, scaled to 0 … 255, not rounded."""
    ds = pydicom.dcmread(BytesIO(data))
    values = pydicom_pixels.apply_modality_lut(ds.pixel_array, ds)
    shown = pydicom_pixels.apply_voi_lut(values, ds).astype(np.float64)
    if ds.get("VOILUTSequence"):
        low, high = 0, 2 ** ds.VOILUTSequence[0].LUTDescriptor[2] - 1
    else:
        low, high = (0, 2**ds.BitsStored - 1) if ds.PixelRepresentation == 0 else (-(2**15), 2**15 - 1)
        slope, intercept = float(ds.get("RescaleSlope", 1)), float(ds.get("RescaleIntercept", 0))
        low, high = low * slope + intercept, high * slope + intercept
    grey = (shown - low) / (high - low) * 255
    return 255 - grey if ds.PhotometricInterpretation == "MONOCHROME1" else grey


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SHIPPED)))
def test_every_file_of_pydicom_loads_or_raises_a_typed_error(path, attempt, capfd):
    start = time.monotonic()

    result = attempt(path)

    if isinstance(result, ImageError):
        assert result.remedy
        assert result.__context__ is None
    else:
        assert result.pixels.dtype == np.uint8
    assert time.monotonic() - start < 10
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    "name",
    [
        "CT_small.dcm", "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
        "MR_small_padded.dcm", "ExplVR_BigEnd.dcm", "SC_rgb_rle.dcm", "SC_rgb_rle_16bit.dcm", "image_dfl.dcm",
        "SC_rgb_small_odd.dcm", "SC_rgb_small_odd_big_endian.dcm", "SC_ybr_full_422_uncompressed.dcm",
        "examples_palette.dcm", "examples_rgb_color.dcm", "examples_overlay.dcm", "rtdose_1frame.dcm",
        "liver_1frame.dcm", "dicomdirtests/77654033/CR1/6154", "dicomdirtests/98892001/CT2N/6293",
    ],
)  # fmt: skip
def test_these_files_need_no_further_package(name):
    load(SHIPPED / name)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small.dcm", "MR_small_RLE.dcm", "MR_small_bigendian.dcm", "MR_small_implicit.dcm",
        "examples_overlay.dcm", "dicomdirtests/77654033/CR1/6154", "dicomdirtests/98892001/CT2N/6293",
        "dicomdirtests/98892003/MR1/4919",
    ],
)  # fmt: skip
def test_windowed_files_agree_with_pydicom(name):
    data = (SHIPPED / name).read_bytes()

    assert np.abs(load(data).pixels - by_pydicom(data)).max() <= 0.5 + 1e-6


def test_the_encodings_of_one_image_agree():
    plain = load(SHIPPED / "MR_small.dcm").pixels

    for name in (
        "MR_small_RLE",
        "MR_small_bigendian",
        "MR_small_expb",
        "MR_small_implicit",
        "MR_small_padded",
    ):
        assert np.array_equal(load(SHIPPED / f"{name}.dcm").pixels, plain), name


@pytest.mark.parametrize("name", ["MR_small_jp2klossless.dcm", "MR_small_jpeg_ls_lossless.dcm"])
def test_lossless_compression_changes_nothing(name, attempt):
    plain, packed = load(SHIPPED / "MR_small.dcm"), attempt(SHIPPED / name)

    if isinstance(packed, DicomError):
        assert "pip install" in str(packed)
        pytest.skip("no decoder installed")
    assert np.array_equal(packed.pixels, plain.pixels)


def test_colour_files_agree_with_pydicom():
    for name in (
        "SC_rgb_rle.dcm",
        "examples_rgb_color.dcm",
        "ExplVR_BigEnd.dcm",
        "SC_rgb_small_odd_big_endian.dcm",
    ):
        expected = pydicom.dcmread(SHIPPED / name).pixel_array
        assert np.array_equal(load(SHIPPED / name).pixels, expected), name


def test_palette_colours_are_looked_up():
    ds = pydicom.dcmread(SHIPPED / "examples_palette.dcm")
    tables = [
        np.frombuffer(ds[f"{colour}PaletteColorLookupTableData"].value, "<u2")
        for colour in ("Red", "Green", "Blue")
    ]
    expected = np.stack([(table[ds.pixel_array] + 128) // 257 for table in tables], axis=2)

    assert np.abs(load(SHIPPED / "examples_palette.dcm").pixels.astype(int) - expected).max() <= 1


def test_sixteen_bit_colour_is_scaled_by_its_largest_value(make_dicom):
    stored = (np.arange(6 * 6 * 3, dtype=np.uint32) * 600).astype(np.uint16).reshape(6, 6, 3)

    assert np.array_equal(load(make_dicom(stored)).pixels, np.rint(stored * (255 / 65535)))


def test_planar_configuration_one_gives_the_same_colours(make_dicom, colours):
    planes = np.ascontiguousarray(colours.transpose(2, 0, 1)).tobytes()

    data = make_dicom(colours, PlanarConfiguration=1, PixelData=planes)

    assert np.array_equal(load(data).pixels, colours)


def test_ybr_full_becomes_rgb(make_dicom, colours):
    from PIL import Image as pil

    ybr = np.asarray(pil.fromarray(colours).convert("YCbCr"))

    pixels = load(make_dicom(ybr, PhotometricInterpretation="YBR_FULL")).pixels

    assert np.abs(pixels.astype(int) - colours).max() <= 3


@pytest.mark.parametrize("stored", [UNSIGNED, SIGNED], ids=["unsigned", "signed"])
@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("rescale", [{}, {"RescaleSlope": 2.5, "RescaleIntercept": -1024}])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID", None])
@pytest.mark.parametrize(("center", "width"), [(40, 400), (1000.5, 1), (300, 2), ([500, 40], [2000, 80])])
def test_windows_agree_with_pydicom(make_dicom, stored, photometric, rescale, function, center, width):
    voi = {"VOILUTFunction": function} if function else {}
    data = make_dicom(
        stored,
        PhotometricInterpretation=photometric,
        WindowCenter=center,
        WindowWidth=width,
        **rescale,
        **voi,
    )

    image = load(data)

    with np.errstate(over="ignore"):  # pydicom's sigmoid overflows where ours is clipped
        assert np.abs(image.pixels - by_pydicom(data)).max() <= 0.5 + 1e-6
    first = (center[0], width[0]) if isinstance(center, list) else (center, width)
    assert image.origin.window == first


def test_the_linear_window_by_hand(make_dicom):
    stored = np.array([[0, 39, 40, 41, 140, 240, 241]], np.uint16)

    pixels = load(make_dicom(stored, WindowCenter=140, WindowWidth=200)).pixels

    # PS3.3 C.11.2.1.2.1 with c=140, w=200: x <= 40 is 0, x > 239 is 255, else ((x - 139.5) / 199 + 0.5) * 255
    assert pixels.tolist() == [[0, 0, 0, 1, 128, 255, 255]]


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_without_a_window_the_valid_values_span_the_range(make_dicom, photometric):
    stored = np.array([[-2000, -2000, 100, 300, 500]], np.int16)
    data = make_dicom(
        stored,
        PhotometricInterpretation=photometric,
        PixelPaddingValue=-2000,
        RescaleSlope=2,
        RescaleIntercept=-1,
    )

    image = load(data)

    span = [0, 0, 0, 128, 255] if photometric == "MONOCHROME2" else [0, 0, 255, 127, 0]
    assert image.pixels.tolist() == [span]
    assert image.origin.window is None
    assert "padding black" in image.origin.steps


def test_padding_is_black_under_a_window_too(make_dicom):
    stored = np.array([[0, 1, 2, 1000]], np.uint16)
    data = make_dicom(
        stored,
        PhotometricInterpretation="MONOCHROME1",
        WindowCenter=500,
        WindowWidth=1000,
        PixelPaddingValue=0,
        PixelPaddingRangeLimit=1,
    )

    assert load(data).pixels.tolist() == [[0, 0, 254, 0]]


def test_padding_and_tables_written_as_unsigned_keep_their_sign(make_dicom):
    padded = pydicom.dcmread(BytesIO(make_dicom(np.array([[-2000, 0, 100]], np.int16))))
    padded.add_new("PixelPaddingValue", "US", 2**16 - 2000)
    looked_up = pydicom.dcmread(BytesIO(make_dicom(np.array([[-11, -10, -9, 5]], np.int16))))
    looked_up.VOILUTSequence = lut(2**16 - 10, [0, 128, 255], 8)

    assert load(padded).pixels.tolist() == [[0, 0, 255]]
    assert load(looked_up).pixels.tolist() == [[0, 0, 128, 255]]


def test_float_pixels_span_their_finite_values(make_dicom):
    stored = np.array([[np.nan, -1.5, 0.0, 1.5, np.inf]], np.float32)
    ds = pydicom.dcmread(BytesIO(make_dicom(stored)))
    ds.add_new("FloatPixelData", "OF", stored.tobytes())
    for keyword in ("PixelData", "BitsStored", "HighBit", "PixelRepresentation"):
        delattr(ds, keyword)

    assert load(ds).pixels.tolist() == [[0, 0, 128, 255, 0]]


def test_a_negative_slope_turns_the_range_round(make_dicom):
    data = make_dicom(np.array([[0, 50, 100]], np.uint8), RescaleSlope=-1, RescaleIntercept=0)

    assert load(data).pixels.tolist() == [[255, 128, 0]]


def test_a_flat_image_and_one_of_padding_are_black(make_dicom):
    flat = np.full((4, 4), 700, np.uint16)

    assert load(make_dicom(flat)).pixels.max() == 0
    assert load(make_dicom(flat, PixelPaddingValue=700)).pixels.max() == 0


def test_unused_high_bits_are_ignored(make_dicom):
    stored = np.array([[0xF000, 0xF800, 0xFFFF]], np.uint16)  # overlays of old lived in the upper four

    pixels = load(make_dicom(stored, BitsStored=12, HighBit=11)).pixels

    assert pixels.tolist() == [[0, 128, 255]]


def test_signed_twelve_bit_values_keep_their_sign(make_dicom):
    stored = np.array([[0x0800, 0x0000, 0x07FF]], np.uint16)  # -2048, 0, 2047 in twelve bits

    data = make_dicom(stored, PixelRepresentation=1, BitsStored=12, HighBit=11)

    assert load(data).pixels.tolist() == [[0, 128, 255]]


def test_values_over_sixteen_bits_are_shown(make_dicom):
    stored = np.array([[0, 2**31, 2**32 - 1]], np.uint32)

    assert load(make_dicom(stored)).pixels.tolist() == [[0, 128, 255]]


def lut(first: int, entries: list[int], bits: int) -> Sequence:
    item = Dataset()
    item.add_new("LUTDescriptor", "US" if first >= 0 else "SS", [len(entries), first, bits])
    item.add_new("LUTData", "OW", struct.pack(f"<{len(entries)}H", *entries))
    return Sequence([item])


def test_a_voi_lut_is_used_before_a_window_and_its_ends_hold(make_dicom):
    table = lut(10, [0, 1000, 3000, 4095], 12)
    data = make_dicom(
        np.array([[0, 10, 11, 12, 13, 99]], np.uint16), VOILUTSequence=table, WindowCenter=5, WindowWidth=5
    )

    image = load(data)

    assert image.pixels.tolist() == [[0, 0, 62, 187, 255, 255]]
    assert image.origin.steps == ("VOI LUT",)
    assert np.abs(image.pixels - by_pydicom(data)).max() <= 0.5


def test_a_modality_lut_is_used_before_the_window(make_dicom):
    data = make_dicom(
        np.array([[0, 1, 2, 3]], np.uint16),
        ModalityLUTSequence=lut(0, [100, 300, 200, 400], 16),
        WindowCenter=250.5,
        WindowWidth=301,
    )

    assert load(data).pixels.tolist() == [[0, 170, 85, 255]]


def test_a_table_that_is_cut_off_is_a_dicom_error(make_dicom):
    table = lut(0, [0, 1], 12)
    table[0].LUTDescriptor = [4, 0, 12]

    with pytest.raises(DicomError, match="VOILUTSequence is damaged"):
        load(make_dicom(UNSIGNED, VOILUTSequence=table))


@pytest.mark.parametrize("width", [0, 0.5, -3])
def test_a_width_below_one_is_refused_and_can_be_replaced(make_dicom, width):
    data = make_dicom(UNSIGNED, WindowCenter=40, WindowWidth=width)

    with pytest.raises(DicomError, match=r"WindowWidth.*window="):
        load(data)
    assert load(data, window=(40, 400)).origin.window == (40.0, 400.0)


def test_a_window_of_the_caller_goes_before_the_objects_own(make_dicom):
    own = make_dicom(SIGNED, WindowCenter=900, WindowWidth=100, RescaleSlope=1, RescaleIntercept=-24)
    other = make_dicom(SIGNED, WindowCenter=40, WindowWidth=400, RescaleSlope=1, RescaleIntercept=-24)

    assert np.array_equal(load(own, window=(40, 400)).pixels, load(other).pixels)


def test_an_unknown_function_is_a_dicom_error(make_dicom):
    with pytest.raises(DicomError, match="VOILUTFunction"):
        load(make_dicom(UNSIGNED, WindowCenter=1, WindowWidth=2, VOILUTFunction="CUBIC"))


def test_an_empty_window_counts_as_none(make_dicom):
    data = make_dicom(UNSIGNED, WindowCenter="", WindowWidth="")

    assert np.array_equal(load(data).pixels, load(make_dicom(UNSIGNED)).pixels)


def test_several_frames_need_a_choice_and_each_has_its_own_window(make_dicom):
    def group(center: int) -> Dataset:
        voi, transformation, item = Dataset(), Dataset(), Dataset()
        voi.WindowCenter, voi.WindowWidth = center, 101
        transformation.RescaleSlope, transformation.RescaleIntercept = 1, -1000
        item.FrameVOILUTSequence = Sequence([voi])
        item.PixelValueTransformationSequence = Sequence([transformation])
        return item

    stored = np.array([[[1000, 1100]], [[1000, 1200]]], np.uint16)
    data = make_dicom(stored, NumberOfFrames=2, PerFrameFunctionalGroupsSequence=Sequence([group(50), group(150)]))

    with pytest.raises(DicomError, match=r"2 frames.*frame=0"):
        load(data)
    with pytest.raises(DicomError, match="no frame 2"):
        load(data, frame=2)
    with pytest.raises(DicomError, match="NumberOfFrames"):
        load(data, frame=0, limits=Limits(max_frames=1))
    first, second = load(data, frame=0), load(data, frame=1)
    assert (first.origin.window, second.origin.window) == ((50.0, 101.0), (150.0, 101.0))
    assert (first.origin.frame, second.origin.frame) == (0, 1)
    assert first.pixels.tolist() == [[1, 255]]
    assert second.pixels.tolist() == [[0, 255]]


@pytest.mark.parametrize("name", ["reportsi.dcm", "rtplan.dcm", "rtstruct.dcm", "waveform_ecg.dcm", "test-SR.dcm"])
def test_an_object_without_pixels_says_to_send_an_image(name):
    with pytest.raises(DicomError, match=r"PixelData is missing.*send an image object"):
        load(SHIPPED / name)


@pytest.mark.parametrize(
    "keyword", ["Rows", "Columns", "BitsAllocated", "SamplesPerPixel", "PhotometricInterpretation"]
)
def test_a_missing_attribute_is_named(make_dicom, keyword):
    with pytest.raises(DicomError, match=f"{keyword} is missing"):
        load(make_dicom(UNSIGNED, **{keyword: None}))


@pytest.mark.parametrize(
    ("syntax", "says"),
    [
        ("1.2.840.10008.1.2.4.102", "MPEG-4.*still picture"),
        ("1.2.840.10008.1.2.4.94", "JPIP"),
        ("1.2.3.4.5", r"\(unknown\)"),
    ],
)
def test_an_unsupported_transfer_syntax_is_named(syntax, says):
    ds = pydicom.dcmread(SHIPPED / "MR_small.dcm")
    ds.file_meta.TransferSyntaxUID = UID(syntax)

    with pytest.raises(DicomError, match=says) as caught:
        load(ds)
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("syntax", "package"),
    [
        ("1.2.840.10008.1.2.4.57", "python-gdcm"),
        ("1.2.840.10008.1.2.4.80", "pyjpegls"),
        ("1.2.840.10008.1.2.4.201", "pylibjpeg-openjpeg"),
    ],
)
def test_a_missing_decoder_names_the_package(monkeypatch, syntax, package):
    ds = pydicom.dcmread(SHIPPED / "MR_small.dcm")
    ds.file_meta.TransferSyntaxUID = UID(syntax)
    decoder = pydicom_pixels.get_decoder(UID(syntax))
    monkeypatch.setattr(type(decoder), "is_available", False)

    with pytest.raises(DicomError, match=rf"not supported here.*pip install.*{package}"):
        load(ds)


def test_pixels_cut_off_are_a_dicom_error(make_dicom):
    with pytest.raises(DicomError, match="fewer bytes"):
        load(make_dicom(UNSIGNED, PixelData=UNSIGNED.tobytes()[:-2]))


def test_declared_sizes_are_checked_before_anything_is_allocated(make_dicom):
    with pytest.raises(DicomError, match="65535 x 65535"):
        load(make_dicom(UNSIGNED, Rows=65535, Columns=65535))
    with pytest.raises(DicomError, match="fewer bytes"):
        load(make_dicom(UNSIGNED, Rows=9000, Columns=9000))
    with pytest.raises(DicomError, match="fewer bytes"):
        load(make_dicom(UNSIGNED, NumberOfFrames=9999), frame=0)
    with pytest.raises(DicomError):
        load(make_dicom(UNSIGNED, Rows=0))


def compressed(make_file, pixels, rows: int, columns: int) -> Dataset:
    ds = Dataset()
    ds.Rows, ds.Columns, ds.SamplesPerPixel, ds.BitsAllocated, ds.BitsStored = rows, columns, 1, 8, 8
    ds.HighBit, ds.PixelRepresentation, ds.PhotometricInterpretation = 7, 0, "MONOCHROME2"
    ds.PixelData = pydicom.encaps.encapsulate([make_file("JPEG", pixels)])
    ds["PixelData"].is_undefined_length = True
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = JPEGBaseline8Bit
    return ds


def test_a_jpeg_frame_is_decoded(make_file, ramp):
    pixels = load(compressed(make_file, ramp, 24, 40)).pixels

    assert pixels.shape == (24, 40)


def test_a_frame_larger_than_rows_and_columns_is_refused_unread(make_file):
    large = np.zeros((3000, 3000), np.uint8)

    with pytest.raises(DicomError, match="not of the size"):
        load(compressed(make_file, large, 30, 30))


def test_an_rle_frame_that_would_unpack_to_far_too_much_is_refused(make_dicom):
    ds = pydicom.dcmread(SHIPPED / "MR_small_RLE.dcm")
    segment = b"\x81\x00" * 50_000  # 128 zeros each
    ds.PixelData = pydicom.encaps.encapsulate([struct.pack("<16I", 2, 64, 64, *[0] * 13) + segment])

    with pytest.raises(DicomError, match="larger than its frame"):
        load(ds)


def test_a_deflate_bomb_is_refused():
    header = pydicom.dcmread(SHIPPED / "image_dfl.dcm")
    file = BytesIO()
    header.save_as(file)
    whole = file.getvalue()
    group_length = int.from_bytes(whole[140:144], "little")
    deflate = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = whole[: 144 + group_length] + deflate.compress(bytes(2**24)) + deflate.flush()
    assert len(bomb) < 2**16

    with pytest.raises(DicomError, match="unpacks to more than"):
        load(bomb, limits=Limits(max_bytes=2**20))


def test_a_data_set_of_pydicom_is_not_changed(make_dicom):
    ds = pydicom.dcmread(BytesIO(make_dicom(UNSIGNED, WindowCenter=40, WindowWidth=400)))
    before = ds.to_json()

    load(ds)

    assert ds.to_json() == before


def test_a_data_set_made_by_hand_needs_a_transfer_syntax(make_file, ramp):
    ds = compressed(make_file, ramp, 24, 40)
    del ds.file_meta

    with pytest.raises(DicomError, match="TransferSyntaxUID is missing"):
        load(ds)


def test_a_preamble_of_another_format_does_not_hide_the_object(make_dicom, ramp):
    data = bytearray(make_dicom(ramp))
    data[:8] = b"MZ\x90\0\x03\0\0\0"

    assert load(bytes(data)).origin.kind == "dicom"


@pytest.mark.parametrize(
    "name", ["MR_small.dcm", "examples_palette.dcm", "SC_rgb_rle.dcm", "MR_small_implicit.dcm"]
)
def test_random_damage_loads_or_is_a_typed_error(name, attempt, capfd):
    random = np.random.default_rng(3)
    data = np.frombuffer((SHIPPED / name).read_bytes(), np.uint8)

    for _ in range(60):
        hurt = data.copy()
        at = random.integers(132, min(len(hurt), 3000), 8)
        hurt[at] = random.integers(0, 256, 8)
        cut = hurt[: random.integers(140, len(hurt))] if random.integers(2) else hurt
        result = attempt(cut.tobytes(), limits=Limits(max_pixels=1_000_000))
        assert getattr(result, "__context__", None) is None
    assert capfd.readouterr() == ("", "")


def test_nesting_without_end_is_a_dicom_error(make_dicom):
    whole = make_dicom(UNSIGNED)
    at = whole.index(b"\x08\x00\x16\x00UI")
    opened = b"\x08\x00\x15\x11SQ\0\0\xff\xff\xff\xff\xfe\xff\x00\xe0\xff\xff\xff\xff"

    with pytest.raises(DicomError):
        load(whole[:at] + opened * 5000)


def test_without_pydicom_the_extra_is_named(monkeypatch, make_dicom):
    data = make_dicom(UNSIGNED)

    def missing(name: str) -> None:
        raise ModuleNotFoundError(name="pydicom")

    monkeypatch.setattr(_extras, "import_module", missing)

    with pytest.raises(ConfigError, match=r'pydicom is not installed.*pip install "medport\[dicom\]"'):
        load(data)
