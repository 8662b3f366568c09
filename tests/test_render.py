import io
import random

import numpy as np
import pytest
from PIL import Image

from openqwen2vl.corpus.render import INKS, LARGEST_SIDE, SMALLEST_SIDE, jpeg, render
from openqwen2vl.corpus.scenes import PLACES, SHAPES, WORDS, Crowd, Sign, Thing, Things, draw_scene


def pixels_near(picture: Image.Image, colour: str) -> np.ndarray:
    """Where (rows, columns) a picture shows an ink, up to the variation that render gives it."""
    difference = np.abs(np.asarray(picture, dtype=int) - np.array(INKS[colour]))
    return difference.max(axis=2) <= 14


def test_pictures_are_small_rgb_of_varying_sides():
    rng = random.Random(0)
    sizes = {render(draw_scene(rng, False), rng).size for _ in range(40)}
    assert len(sizes) > 20
    assert all(SMALLEST_SIDE <= side <= LARGEST_SIDE for size in sizes for side in size)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("place", PLACES)
def test_a_thing_lies_in_its_quarter(shape, place):
    picture = render(Things((Thing("red", shape, place),), "white"), random.Random(1))
    rows, columns = np.nonzero(pixels_near(picture, "red"))
    assert len(rows) > 100
    assert (rows.mean() < picture.height / 2) == place.startswith("top")
    assert (columns.mean() < picture.width / 2) == place.endswith("left")


def test_every_shape_looks_different():
    pictures = {
        shape: pixels_near(
            render(Things((Thing("red", shape, "top left"),), "white"), random.Random(1)), "red"
        )
        for shape in SHAPES
    }
    for one in SHAPES:
        for other in SHAPES:
            if one != other:
                assert (pictures[one] != pictures[other]).sum() > 50


def test_a_crowd_fills_the_cells_it_names_and_no_others():
    picture = render(Crowd("blue", "square", (0, 4, 7), "white"), random.Random(2))
    shown = pixels_near(picture, "blue")
    blocks = [part for rows in np.array_split(shown, 3, 0) for part in np.array_split(rows, 3, 1)]
    assert [index for index, block in enumerate(blocks) if block.sum() > 30] == [0, 4, 7]


@pytest.mark.parametrize("word", WORDS)
def test_a_word_fits_its_picture(word):
    for seed in range(5):
        picture = render(Sign(word, "red", "middle", "white"), random.Random(seed))
        shown = pixels_near(picture, "red")
        assert shown.sum() > 60
        assert not shown[:, 0].any()
        assert not shown[:, -1].any()


def test_the_same_seed_gives_the_same_bytes():
    scene = draw_scene(random.Random(5), False)
    first, second = (jpeg(render(scene, random.Random(6))) for _ in range(2))
    assert first == second
    assert Image.open(io.BytesIO(first)).format == "JPEG"
