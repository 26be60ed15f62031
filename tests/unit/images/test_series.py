"""CT and MR series against independent computations, on phantoms and on pydicom's own files."""

from __future__ import annotations

import gc
import logging
import random
import threading
import tracemalloc
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from medport.errors import DicomError, ImageError, InputError
from medport.images import (
    CT_WINDOWS_HU,
    RADIOGRAPHY,
    SIGLIP_CT_WINDOW,
    Limits,
    Series,
    ct_rgb,
    load,
    sample,
    series,
)

pydicom = pytest.importorskip("pydicom")
from pydicom.dataset import Dataset, FileMetaDataset  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402
from pydicom.uid import (  # noqa: E402
    CTImageStorage,
    EnhancedMRImageStorage,
    ExplicitVRLittleEndian,
    MRImageStorage,
    RLELossless,
)

SHIPPED = Path(pydicom.__file__).parent / "data" / "test_files"
AXIAL = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
CORONAL = (1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
CANARY = "MUELLER^ANNA"


def save(ds: Dataset, syntax: str = ExplicitVRLittleEndian) -> bytes:
    if syntax == RLELossless:
        ds.compress(RLELossless)
    file = BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def a_slice(stored: np.ndarray[Any, Any], z: float, number: int, **attributes: Any) -> Dataset:
    """A CT slice at ``z`` mm, ``stored`` as uint16 with an intercept of -1024; ``None`` takes an attribute out."""
    ds = Dataset()
    ds.file_meta = FileMetaDataset()
    ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    ds.SOPClassUID, ds.Modality = CTImageStorage, "CT"
    ds.SOPInstanceUID, ds.SeriesInstanceUID, ds.StudyInstanceUID = f"1.2.3.{number}", "1.2.3", "1.2"
    ds.PatientName, ds.ImageType = CANARY, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.InstanceNumber, ds.AcquisitionNumber = number, 1
    ds.ImageOrientationPatient, ds.ImagePositionPatient = list(AXIAL), [-100.0, -100.0, z]
    ds.PixelSpacing, ds.SliceThickness = [0.7, 0.7], 1.0
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.RescaleSlope, ds.RescaleIntercept, ds.RescaleType = 1, -1024, "HU"
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    for keyword, value in attributes.items():
        if value is None:
            delattr(ds, keyword)
        else:
            setattr(ds, keyword, value)
    return ds


def marked(number: int, side: int = 8) -> np.ndarray[Any, Any]:
    """A slice of one value, by which it is known again: HU 10 * number."""
    return np.full((side, side), 1024 + 10 * number, np.uint16)


def volume(count: int, *, spacing: float = 2.0, first: int = 0, **attributes: Any) -> list[Dataset]:
    """Slices from the feet upwards; InstanceNumber runs the other way, as on many scanners."""
    return [
        a_slice(
            marked(i % 8),
            i * spacing,
            first + count - i,
            SOPInstanceUID=f"1.2.3.{first}.{i}",
            **attributes,
        )
        for i in range(count)
    ]


def attempt(files: list[bytes]) -> Series | ImageError:
    """A series of which every slice was decoded, or the refusal."""
    try:
        made = series(files)
        assert all(image.pixels.dtype == np.uint8 for image in made)
    except ImageError as error:
        return error
    return made


def by_the_notebook(hu: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Three ranges, clipped, scaled and rounded, written down once more, straight from their definition."""
    channels = []
    for low, high in ((-1024, 1024), (-135, 215), (0, 80)):
        scaled = np.clip(hu, low, high).astype(np.float32) - low
        channels.append(np.round(scaled / np.float32(high - low) * np.float32(255)).astype(np.uint8))
    return np.stack(channels, axis=-1)


def greys(images: Any) -> list[int]:
    """The blue of each slice of ``marked``: HU 0 to 70 of the window 0 to 80, back to the number."""
    return [round(int(image.pixels[0, 0, 2]) / 255 * 8) for image in images]


# --- pixels


def test_every_hu_value_is_rendered_as_the_notebook_does():
    stored = np.arange(4096, dtype=np.uint16).reshape(64, 64)

    image = series([save(a_slice(stored, 0, 1))])[0]

    assert np.array_equal(image.pixels, by_the_notebook(stored.astype(np.float64) - 1024))


def test_green_shows_soft_tissue_and_not_only_bone():
    hu = np.array([[-135, 40, 215, 135]])
    stored = (hu + 1024).astype(np.uint16)

    green = series([save(a_slice(stored, 0, 1))])[0].pixels[0, :, 1]

    assert CT_WINDOWS_HU[1] == (-135, 215)
    assert list(green) == [0, 128, 255, 197]


def test_windows_can_be_chosen():
    stored = np.array([[1024, 1074, 1124]], np.uint16)
    chosen = ((0.0, 100.0), (0.0, 50.0), (50.0, 100.0))

    made = series([save(a_slice(stored, 0, 1))], windows=chosen)

    assert made.windows == chosen
    assert made[0].pixels.tolist() == [[[0, 0, 0], [128, 255, 0], [255, 255, 255]]]


@pytest.mark.parametrize("windows", [((0.0, 1.0),), ((1.0, 0.0),) * 3, ((0.0, float("nan")),) * 3])
def test_windows_that_are_none_are_refused(windows):
    with pytest.raises(InputError, match="windows"):
        series([save(a_slice(marked(1), 0, 1))], windows=windows)


def test_padding_and_inversion_in_ct():
    stored = np.array([[0, 1024, 3000]], np.uint16)

    padded = ct_rgb(save(a_slice(stored, 0, 1, PixelPaddingValue=3000)))
    inverted = ct_rgb(save(a_slice(stored, 0, 1, PhotometricInterpretation="MONOCHROME1")))

    assert padded.pixels[0].tolist() == [[0, 0, 0], [128, 98, 0], [0, 0, 0]]
    assert inverted.pixels[0].tolist() == [[255, 255, 255], [127, 157, 255], [0, 0, 0]]


def test_a_single_ct_object_looks_like_a_slice_of_its_volume():
    data = (SHIPPED / "CT_small.dcm").read_bytes()

    assert np.array_equal(ct_rgb(data).pixels, series([data])[0].pixels)
    ds = pydicom.dcmread(BytesIO(data))
    hu = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    valid = ds.pixel_array != ds.PixelPaddingValue
    assert np.array_equal(ct_rgb(data).pixels[valid], by_the_notebook(hu)[valid])
    assert not ct_rgb(data).pixels[~valid].any()


def test_ct_windows_are_for_ct_alone():
    with pytest.raises(DicomError, match="not CT"):
        ct_rgb((SHIPPED / "MR_small.dcm").read_bytes())


def mr(stored: np.ndarray[Any, Any], z: float, number: int, **attributes: Any) -> Dataset:
    plain = {"SOPClassUID": MRImageStorage, "Modality": "MR", "RescaleIntercept": 0, "RescaleType": None}
    return a_slice(stored, z, number, **(plain | attributes))


def test_mr_is_scaled_over_the_whole_volume_and_not_over_a_slice():
    low, high = np.array([[100, 200]], np.uint16), np.array([[400, 500]], np.uint16)

    pixels = [image.pixels.tolist() for image in series([save(mr(high, 1, 1)), save(mr(low, 0, 2))])]

    assert pixels == [[[0, 64]], [[191, 255]]]


def test_mr_ignores_windows_of_its_file_and_padding():
    stored = np.array([[0, 100, 200, 9000]], np.uint16)
    options = {"WindowCenter": 5, "WindowWidth": 2, "PixelPaddingValue": 9000}

    image = series([save(mr(stored, 0, 1, **options))])[0]

    assert image.pixels.tolist() == [[0, 128, 255, 0]]


def test_each_mr_slice_has_its_own_rescale():
    stored = np.array([[0, 100]], np.uint16)

    made = series([save(mr(stored, 0, 1, RescaleSlope=1)), save(mr(stored, 1, 2, RescaleSlope=2))])

    assert [image.pixels.tolist() for image in made] == [[[0, 128]], [[0, 255]]]


def test_a_flat_mr_volume_is_black():
    assert not series([save(mr(marked(3), 0, 1))])[0].pixels.any()


def test_real_mr_agrees_with_numpy():
    data = (SHIPPED / "MR_small.dcm").read_bytes()
    values = pydicom.dcmread(BytesIO(data)).pixel_array.astype(np.float64)
    expected = (values - values.min()) / (values.max() - values.min()) * 255

    assert np.abs(series([data])[0].pixels - expected).max() <= 0.5 + 1e-6


def test_other_modalities_are_shown_as_single_objects_are():
    data = (SHIPPED / "dicomdirtests/77654033/CR1/6154").read_bytes()

    made = series([data])

    assert made.modality == "CR"
    assert made.windows == ()
    assert np.array_equal(made[0].pixels, load(data).pixels)


def test_a_colour_picture_in_a_ct_series_stays_a_colour_picture(make_dicom, colours):
    data = make_dicom(colours, Modality="CT", SeriesInstanceUID="1.2.3")

    assert np.array_equal(series([data])[0].pixels, colours)


# --- order and choice


@pytest.mark.parametrize("seed", range(3))
def test_slices_are_sorted_by_position_whatever_their_numbers(seed):
    files = [save(ds) for ds in volume(8)]
    random.Random(seed).shuffle(files)

    made = series(files)

    assert greys(made) == list(range(8))
    assert made.positions_mm == tuple(2.0 * i for i in range(8))
    assert made.notes == ()
    assert made.modality == "CT"


def test_positions_count_along_the_normal_of_tilted_slices():
    tilt = np.deg2rad(20)
    orientation = [1.0, 0.0, 0.0, 0.0, float(np.cos(tilt)), float(np.sin(tilt))]
    normal = np.array([0.0, -np.sin(tilt), np.cos(tilt)])
    files = [
        save(
            a_slice(
                marked(i),
                0,
                9 - i,
                ImageOrientationPatient=orientation,
                ImagePositionPatient=list(3.0 * i * normal),
            )
        )
        for i in (2, 0, 1)
    ]

    made = series(files)

    assert greys(made) == [0, 1, 2]
    assert made.positions_mm == pytest.approx((0.0, 3.0, 6.0), abs=1e-6)
    assert made.notes == ()


def test_without_positions_the_instance_number_decides_and_a_note_says_so():
    files = [save(ds) for ds in volume(4, ImagePositionPatient=None)]

    made = series(files)

    assert greys(made) == [3, 2, 1, 0]
    assert made.positions_mm is None
    assert any("InstanceNumber" in note for note in made.notes)


def test_positions_that_cannot_be_are_no_positions():
    files = [save(ds) for ds in volume(2)] + [
        save(a_slice(marked(5), 0, 9, ImagePositionPatient=[1e308, 1e308, 1e308]))
    ]

    made = series(files)

    assert made.positions_mm is None
    assert greys(made) == [1, 0, 5]


def test_a_missing_slice_is_said():
    whole = [save(ds) for ds in volume(8)]

    made = series(whole[:3] + whole[5:])

    assert len(made) == 6
    assert made.notes == ("about 2 slices are missing, in 1 gap",)


def test_uneven_spacing_is_said():
    files = [save(a_slice(marked(i), z, i)) for i, z in enumerate((0.0, 2.0, 4.0, 6.6))]

    assert series(files).notes == ("the spacing of the slices is uneven",)


@pytest.mark.parametrize(
    ("orientation", "word"),
    [(CORONAL, "coronal"), ((0, 1, 0, 0, 0, -1), "sagittal"), ((0.8, 0.6, 0, 0, 0, -1), "oblique")],
)
def test_slices_that_are_not_axial_are_said(orientation, word):
    files = [
        save(a_slice(marked(i), 0, i, ImageOrientationPatient=list(orientation), ImagePositionPatient=[i, i, 0]))
        for i in range(3)
    ]

    assert series(files).notes == (f"the slices are {word}, not axial",)


def test_an_object_sent_twice_counts_once():
    files = [save(ds) for ds in volume(4)]

    made = series(files + files[:2])

    assert greys(made) == [0, 1, 2, 3]
    assert made.notes == ("2 duplicates dropped",)


def test_objects_without_an_identifier_are_no_duplicates():
    files = []
    for i in range(3):
        ds = a_slice(marked(i), 2.0 * i, i)
        del ds.SOPInstanceUID
        ds.file_meta = FileMetaDataset()
        ds.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        file = BytesIO()
        pydicom.dcmwrite(file, ds, implicit_vr=False, little_endian=True)
        files.append(file.getvalue())

    assert greys(series(files)) == [0, 1, 2]


def test_derived_images_are_dropped_beside_original_ones_only():
    originals = [save(ds) for ds in volume(3)]
    derived = [save(ds) for ds in volume(4, first=100, ImageType=["DERIVED", "SECONDARY", "MPR"])]

    assert series(originals + derived).notes == ("4 derived images dropped",)
    assert len(series(originals + derived)) == 3
    assert len(series(derived)) == 4
    assert series(derived).notes == ()


def test_the_scout_view_is_dropped():
    scout = save(a_slice(marked(7), 0, 99, ImageOrientationPatient=list(CORONAL)))

    made = series([scout, *(save(ds) for ds in volume(4))])

    assert greys(made) == [0, 1, 2, 3]
    assert made.notes == ("1 image of another size or orientation dropped",)


def test_of_two_passes_over_the_same_range_the_larger_is_kept():
    native = [save(ds) for ds in volume(3)]
    contrast = [save(ds) for ds in volume(5, first=50, AcquisitionNumber=2)]

    made = series(native + contrast)

    assert len(made) == 5
    assert made.notes == ("3 images of another acquisition dropped",)


def test_acquisitions_one_above_the_other_are_one_volume():
    files = [save(a_slice(marked(i), 2.0 * i, i, AcquisitionNumber=10 + i // 2)) for i in range(6)]

    made = series(files)

    assert greys(made) == list(range(6))
    assert made.notes == ()


def test_several_images_at_one_place_are_said():
    files = [save(ds) for ds in volume(3)] + [save(ds) for ds in volume(3, first=50)]

    made = series(files)

    assert len(made) == 6
    assert "3 slices share the position" in made.notes[0]


def test_the_order_of_the_caller_can_be_kept():
    files = [save(ds) for ds in volume(4)]
    derived = save(a_slice(marked(7), 1.0, 9, ImageType=["DERIVED", "PRIMARY"]))

    made = series([files[2], derived, files[0]], keep_order=True)

    assert greys(made) == [2, 7, 0]
    assert made.positions_mm == (4.0, 1.0, 0.0)


def test_objects_of_two_series_are_refused():
    other = save(a_slice(marked(1), 9, 9, SeriesInstanceUID="1.2.99"))

    with pytest.raises(DicomError, match="several series") as caught:
        series([save(a_slice(marked(1), 0, 1)), other], field="image")

    assert caught.value.field == "image"


# --- samples


@pytest.mark.parametrize("count", [86, 100, 170, 600])
def test_eighty_five_slices_by_the_published_formula(count):
    files = [a_slice(marked(i % 8), float(i), i) for i in range(count)]

    picked = sample(series(files), 85)

    expected = [round(i / 85 * (count - 1)) for i in range(1, 86)]
    assert picked.positions_mm == tuple(map(float, expected))
    assert greys(picked) == [i % 8 for i in expected]
    assert 0.0 not in picked.positions_mm
    assert picked.positions_mm[-1] == count - 1
    assert len(set(picked.positions_mm)) == 85
    assert picked.notes[-1] == f"85 of {count} slices"


@pytest.mark.parametrize("count", [1, 84, 85])
def test_fewer_slices_are_all_taken(count):
    whole = series([a_slice(marked(0), float(i), i) for i in range(count)])

    assert sample(whole) is whole


# --- enhanced objects


def enhanced(stored: np.ndarray[Any, Any], places: list[float], **attributes: Any) -> Dataset:
    """One object of many frames, each with its place and its slope in its functional groups."""
    ds = mr(stored[0], 0, 1, SOPClassUID=EnhancedMRImageStorage)
    del ds.ImageOrientationPatient, ds.ImagePositionPatient, ds.RescaleSlope, ds.RescaleIntercept
    ds.NumberOfFrames = len(stored)
    ds.PixelData = stored.tobytes()
    ds["PixelData"].VR = "OW"
    shared, plane = Dataset(), Dataset()
    plane.ImageOrientationPatient = list(AXIAL)
    shared.PlaneOrientationSequence = Sequence([plane])
    ds.SharedFunctionalGroupsSequence = Sequence([shared])
    frames = []
    for i, place in enumerate(places):
        frame, position, values = Dataset(), Dataset(), Dataset()
        position.ImagePositionPatient = [0.0, 0.0, place]
        values.RescaleSlope, values.RescaleIntercept, values.RescaleType = i + 1, 0, "US"
        frame.PlanePositionSequence = Sequence([position])
        frame.PixelValueTransformationSequence = Sequence([values])
        frames.append(frame)
    ds.PerFrameFunctionalGroupsSequence = Sequence(frames)
    for keyword, value in attributes.items():
        setattr(ds, keyword, value)
    return ds


@pytest.mark.parametrize("syntax", [ExplicitVRLittleEndian, RLELossless])
def test_the_frames_of_an_enhanced_object_are_its_slices(syntax):
    stored = np.array([[[0, 30]], [[0, 30]], [[0, 20]]], np.uint16)

    made = series([save(enhanced(stored, [4.0, 0.0, 2.0]), syntax)])

    assert made.positions_mm == (0.0, 2.0, 4.0)
    assert [image.pixels.tolist() for image in made] == [[[0, 255]], [[0, 255]], [[0, 128]]]
    assert [image.origin.frame for image in made] == [1, 2, 0]


def test_a_file_of_many_frames_is_parsed_once(monkeypatch):
    calls = []
    original = pydicom.dcmread
    monkeypatch.setattr(pydicom, "dcmread", lambda *a, **k: calls.append(1) or original(*a, **k))
    stored = np.zeros((40, 4, 4), np.uint16)

    made = series([save(enhanced(stored, [float(i) for i in range(40)]))])
    list(made)

    assert len(made) == 40
    assert len(calls) <= 2


# --- pydicom's own files


@pytest.mark.parametrize(
    ("folder", "count", "notes"),
    [
        ("98892001/CT5N", 5, ()),
        ("77654033/CT2", 4, ("about 161 slices are missing, in 1 gap",)),
        (
            "98892001/CT2N",
            1,
            ("1 image of another size or orientation dropped", "the slices are sagittal, not axial"),
        ),
    ],
)
def test_series_of_pydicom(folder, count, notes):
    files = [path.read_bytes() for path in sorted((SHIPPED / "dicomdirtests" / folder).iterdir())]

    made = series(files)

    assert len(made) == count
    assert made.notes == notes
    assert made.positions_mm is not None
    assert all(before < after for before, after in pairwise(made.positions_mm))
    for image in made:
        assert image.pixels.shape == (16, 16, 3)


def test_every_file_of_pydicom_is_a_series_or_a_typed_error(capfd):
    for path in sorted(SHIPPED.rglob("*")):
        if path.is_file():
            made = attempt([path.read_bytes()])
            if isinstance(made, ImageError):
                assert made.remedy
                assert made.__context__ is None, path

    assert capfd.readouterr() == ("", "")


# --- limits, privacy, threads


def test_no_objects_at_all():
    with pytest.raises(InputError, match="no objects"):
        series([])


def test_the_object_at_fault_is_named():
    files = [save(ds) for ds in volume(3)]
    files[1] = files[1][:-50]

    made = series(files)
    with pytest.raises(DicomError, match=r"series\[1\]"):
        list(made)

    with pytest.raises(DicomError, match=r"series\[2\]: PixelData is missing"):
        series([*files[:2], (SHIPPED / "rtplan.dcm").read_bytes()])


def test_limits_hold_for_each_object_and_for_the_number_of_slices():
    files = [save(ds) for ds in volume(3)]

    with pytest.raises(DicomError, match="more than 2 slices"):
        series(files, limits=Limits(max_frames=2))
    with pytest.raises(ImageError, match="bytes"):
        series(files, limits=Limits(max_bytes=100))
    with pytest.raises(DicomError, match="more than 10"):
        series(files, limits=Limits(max_pixels=10))


@pytest.mark.parametrize(
    "attributes",
    [
        {"SeriesInstanceUID": CANARY},
        {"Modality": "MEYER"},
        {"WindowCenter": [], "BitsStored": 99},
        {"ImageOrientationPatient": [0.0] * 6},
        {"ImagePositionPatient": [1e308, 1e308, 1e308]},
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_no_value_of_a_file_comes_out(attributes, caplog, capfd):
    files = [save(a_slice(marked(1), 0, 1)), save(a_slice(marked(1), 2, 2, **attributes))]
    caplog.clear()
    caplog.set_level(logging.DEBUG)

    made = attempt(files)

    said = repr(made) + str(made)
    if isinstance(made, ImageError):
        assert made.__context__ is None

    assert CANARY not in said + caplog.text + "".join(capfd.readouterr())
    assert "MEYER" not in said + caplog.text
    assert "1.2.3" not in said


def test_a_text_in_place_of_a_modality_is_not_shown():
    made = series([save(a_slice(marked(1), 0, 1, Modality="MEYER"))])

    assert made.modality == ""


def test_slices_are_decoded_when_asked_for_and_not_kept():
    side, count = 256, 60
    files = [save(a_slice(np.full((side, side), i, np.uint16), float(i), i)) for i in range(count)]
    one = side * side * 3
    gc.collect()
    tracemalloc.start()
    try:
        made = series(files)
        for image in made:
            assert image.width_px == side
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak < 12 * one
    assert peak < count * one / 4


def test_threads_may_read_one_series_at_once():
    files = [save(a_slice(np.full((64, 64), 1024 + i, np.uint16), float(i), i)) for i in range(40)]
    made = series(files)
    expected = [image.pixels.copy() for image in made]
    wrong: list[int] = []

    def look(seed: int) -> None:
        order = list(range(40))
        random.Random(seed).shuffle(order)
        wrong.extend(i for i in order if not np.array_equal(made[i].pixels, expected[i]))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert wrong == []


def test_data_sets_are_not_changed():
    ds = pydicom.dcmread(SHIPPED / "CT_small.dcm")
    before = ds.to_json()

    list(series([ds]))

    assert ds.to_json() == before


# --- the windows that MedSigLIP's container falls back to


CT_STORED = np.array([[0, 1024, 1124, 2374, 4000]], np.uint16)


def through(center: float, width: float) -> list[int]:
    hu = CT_STORED[0].astype(np.float64) - 1024
    shades = np.clip((hu - (center - 0.5)) / (width - 1) + 0.5, 0, 1)
    return list(np.floor(shades * 255 + 0.5).astype(int))


def shown(data: bytes, **options: Any) -> list[int]:
    image = load(data, window_modalities=RADIOGRAPHY, ct_default=SIGLIP_CT_WINDOW, **options)
    return list(image.pixels[0].astype(int))


def test_ct_without_a_window_gets_the_wide_one():
    data = save(a_slice(CT_STORED, 0, 1))

    assert shown(data) == through(100, 2500)
    assert load(data).pixels[0, 0] == 0
    assert load(data).pixels[0, -1] == 255
    assert load(data).origin.window is None


def test_the_tags_of_a_ct_win_over_the_wide_window():
    data = save(a_slice(CT_STORED, 0, 1, WindowCenter=40, WindowWidth=400))

    assert shown(data) == through(40, 400)


def test_a_given_window_wins_over_the_tags():
    data = save(a_slice(CT_STORED, 0, 1, WindowCenter=40, WindowWidth=400))

    assert shown(data, window=(0, 200)) == through(0, 200)


def test_radiographs_without_a_window_keep_their_full_range(make_dicom):
    stored = np.array([[100, 200, 300]], np.uint16)

    assert shown(make_dicom(stored, Modality="DX")) == [0, 128, 255]
    assert shown(make_dicom(stored, Modality="DX"), window=(200, 101)) == [0, 129, 255]


def test_a_radiology_window_is_not_meant_for_other_modalities(make_dicom):
    stored = np.array([[100, 200, 300]], np.uint16)

    assert shown(make_dicom(stored, Modality="MR"), window=(1000, 10)) == [0, 128, 255]
    assert list(load(make_dicom(stored, Modality="MR"), window=(1000, 10)).pixels[0]) == [0, 0, 0]


def test_a_window_is_ignored_where_there_is_no_dicom(make_file, ramp):
    assert np.array_equal(load(make_file("PNG", ramp), window=(0, 1), ct_default=(0, 1)).pixels, ramp)
