import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from medport_local.phantom.draw import SIDED, ZONED, Attributes, Finding, Side, Zone, render, sample


def every_attributes() -> list[Attributes]:
    found = []
    for finding in Finding:
        for side in Side if finding in SIDED else (None,):
            for zone in Zone if finding in ZONED else (None,):
                found.append(Attributes(finding, side, zone))
    return found


@pytest.mark.parametrize("attributes", every_attributes(), ids=str)
def test_a_seed_gives_the_same_drawing_again(attributes: Attributes) -> None:
    first = render(attributes, np.random.default_rng(5), 96)
    second = render(attributes, np.random.default_rng(5), 96)

    assert np.array_equal(first.pixels, second.pixels)
    assert first.box == second.box


def test_other_seeds_give_other_drawings() -> None:
    nodule = Attributes(Finding.NODULE, Side.LEFT, Zone.UPPER)

    pictures = {render(nodule, np.random.default_rng(seed), 96).pixels.tobytes() for seed in range(10)}

    assert len(pictures) == 10


@pytest.mark.parametrize("attributes", every_attributes(), ids=str)
@pytest.mark.parametrize("size_px", [64, 112, 301])
def test_the_box_lies_inside_the_picture_on_the_stated_side(attributes: Attributes, size_px: int) -> None:
    for seed in range(8):
        drawing = render(attributes, np.random.default_rng(seed), size_px)

        assert drawing.pixels.shape == (size_px, size_px)
        assert drawing.pixels.dtype == np.uint8
        if attributes.finding is Finding.NORMAL:
            assert drawing.box is None
            continue
        assert drawing.box is not None
        y0, x0, y1, x1 = drawing.box
        assert 0 <= y0 < y1 <= 1000
        assert 0 <= x0 < x1 <= 1000
        if attributes.side is not None:
            # The patient's left is the viewer's right.
            assert ((x0 + x1) / 2 > 500) == (attributes.side is Side.LEFT)


def test_the_size_changes_the_resolution_and_not_the_chest() -> None:
    effusion = Attributes(Finding.EFFUSION, Side.RIGHT)

    small = render(effusion, np.random.default_rng(3), 100)
    large = render(effusion, np.random.default_rng(3), 400)

    assert small.box is not None
    assert large.box is not None
    assert np.abs(np.array(small.box) - np.array(large.box)).max() <= 15
    blocks = large.pixels.reshape(100, 4, 100, 4).mean(axis=(1, 3))
    assert np.abs(blocks - small.pixels).mean() < 6


def test_sampling_fills_side_and_zone_where_they_belong() -> None:
    rng = np.random.default_rng(0)

    drawn = [sample(rng) for _ in range(500)]

    assert {attributes.finding for attributes in drawn} == set(Finding)
    assert all((attributes.side is None) == (attributes.finding not in SIDED) for attributes in drawn)
    assert all((attributes.zone is None) == (attributes.finding not in ZONED) for attributes in drawn)


@pytest.mark.parametrize("finding", list(Finding))
def test_sampling_keeps_to_the_finding_asked_for(finding: Finding) -> None:
    assert sample(np.random.default_rng(0), finding).finding is finding


@pytest.mark.parametrize("attributes", [Attributes(Finding.EFFUSION), Attributes(Finding.NODULE, Side.LEFT)])
def test_a_place_that_is_missing_is_refused(attributes: Attributes) -> None:
    with pytest.raises(ValueError, match="needs a"):
        render(attributes, np.random.default_rng(0))


def test_drawing_and_words_do_not_import_torch() -> None:
    script = "import medport_local.phantom.draw, medport_local.phantom.words; sys.exit('torch' in sys.modules)"
    root = Path(__file__).parents[3]

    paths = f"import sys; sys.path[:0] = ['{root}/sdk', '{root}/local_backend']"
    ran = subprocess.run([sys.executable, "-c", f"{paths}; {script}"], check=False)

    assert ran.returncode == 0
