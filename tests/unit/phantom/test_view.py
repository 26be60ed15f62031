import numpy as np

from medport_local.phantom.draw import Drawing, Finding
from medport_local.phantom.view import INPUT_PX, gallery, pad_to_square, view


def test_a_gallery_does_not_depend_on_the_number_of_workers() -> None:
    alone = gallery(520, 41, workers=1)
    together = gallery(520, 41, workers=2)

    assert np.array_equal(alone.pixels, together.pixels)
    assert alone.attributes == together.attributes
    assert alone.boxes == together.boxes


def test_views_have_the_input_size_and_boxes_inside() -> None:
    drawn = gallery(200, 43, workers=1)

    assert drawn.pixels.shape == (200, INPUT_PX, INPUT_PX)
    for attributes, box in zip(drawn.attributes, drawn.boxes, strict=True):
        assert (box is None) == (attributes.finding is Finding.NORMAL)
        if box is not None:
            assert 0 <= box[0] < box[2] <= 1000
            assert 0 <= box[1] < box[3] <= 1000


def test_padding_is_black_centred_and_moves_the_box() -> None:
    upright = Drawing(np.full((100, 60), 200, np.uint8), (100, 0, 300, 500))

    squared = pad_to_square(upright)

    assert squared.pixels.shape == (100, 100)
    assert not squared.pixels[:, :20].any()
    assert not squared.pixels[:, 80:].any()
    assert (squared.pixels[:, 20:80] == 200).all()
    assert squared.box == (100, 200, 300, 500)


def test_padding_twice_equals_once() -> None:
    wide = Drawing(np.full((61, 100), 9, np.uint8), (0, 0, 1000, 1000))

    once = pad_to_square(wide)

    assert pad_to_square(once) is once


def test_a_box_brightens_with_what_it_encloses_in_every_frame() -> None:
    """A nodule is brighter than its lung: if a frame moved the box wrongly, the box would miss it."""
    rng = np.random.default_rng(7)
    from medport_local.phantom.draw import sample

    brighter = 0
    for _ in range(60):
        drawing = view(sample(rng, Finding.NODULE), rng)
        assert drawing.box is not None
        y0, x0, y1, x1 = (round(edge * INPUT_PX / 1000) for edge in drawing.box)
        middle = drawing.pixels[(y0 + y1) // 2 - 1 : (y0 + y1) // 2 + 2, (x0 + x1) // 2 - 1 : (x0 + x1) // 2 + 2]
        around = drawing.pixels[max(0, y0 - 3) : y1 + 3, max(0, x0 - 3) : x1 + 3]
        brighter += int(middle.mean() > around.mean())
    assert brighter >= 58
