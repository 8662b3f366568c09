import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.formats.errors import PackError
from openqwen2vl.packing.bins import Limits, first_fit_decreasing


def quadratic(lengths, images, limits):
    """The definition: longest first, into the first bin with room."""
    bins = []
    most = sum(images) if limits.images is None else limits.images
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for members in bins:
            tokens = sum(lengths[i] for i in members) + lengths[index]
            pictures = sum(images[i] for i in members) + images[index]
            if tokens <= limits.tokens and pictures <= most:
                members.append(index)
                break
        else:
            bins.append([index])
    return bins


@st.composite
def problems(draw, limited):
    limits = Limits(draw(st.integers(1, 60)), draw(st.integers(1, 6)) if limited else None)
    item = st.tuples(st.integers(1, limits.tokens), st.integers(0, limits.images or 6))
    items = draw(st.lists(item, max_size=80))
    return [length for length, _ in items], [number for _, number in items], limits


@settings(deadline=None)
@given(problems(limited=False))
def test_the_bins_are_those_of_the_quadratic_definition(problem):
    assert first_fit_decreasing(*problem) == quadratic(*problem)


@settings(deadline=None, max_examples=300)
@given(problems(limited=True))
def test_so_they_are_with_a_limit_on_images(problem):
    assert first_fit_decreasing(*problem) == quadratic(*problem)


def test_the_bins_are_those_of_the_definition_for_captions():
    rng = random.Random(1)
    lengths = [147 + int(rng.lognormvariate(3, 0.8)) for _ in range(1500)]
    problem = lengths, [1] * len(lengths), Limits(4096)
    assert first_fit_decreasing(*problem) == quadratic(*problem)


@pytest.mark.parametrize("images", [None, 3])
def test_no_lengths_make_no_bins(images):
    assert first_fit_decreasing([], [], Limits(10, images)) == []


@pytest.mark.parametrize("lengths", [[11], [0, 3]])
def test_a_length_that_no_bin_can_hold_is_refused(lengths):
    with pytest.raises(PackError, match="a pack takes 1 to 10"):
        first_fit_decreasing(lengths, [0] * len(lengths), Limits(10))


@pytest.mark.parametrize("images", [[3, 0], [1, -1]])
def test_images_that_no_bin_can_hold_are_refused(images):
    with pytest.raises(PackError, match="a pack takes 0 to 2"):
        first_fit_decreasing([1, 1], images, Limits(10, 2))


def test_each_item_needs_its_images():
    with pytest.raises(PackError, match="2 lengths and 1 counts of images"):
        first_fit_decreasing([1, 1], [1], Limits(10))


@pytest.mark.parametrize("limits", [(0, None), (10, 0)])
def test_a_pack_of_nothing_is_refused(limits):
    with pytest.raises(PackError, match="both start at 1"):
        Limits(*limits)


def test_the_bound_is_the_larger_of_both():
    lengths, images = [4, 4, 4], [0, 5, 6]
    assert Limits(10).lower_bound(lengths, images) == 2
    assert Limits(10, 12).lower_bound(lengths, images) == 2
    assert Limits(10, 6).lower_bound(lengths, images) == 2
    assert Limits(10, 3).lower_bound(lengths, images) == 4


@pytest.mark.parametrize("images", [None, 12])
def test_time_grows_about_linearly(images):
    rng = random.Random(0)
    lengths = [min(147 + int(rng.lognormvariate(3, 0.8)), 4096) for _ in range(64_000)]

    def seconds(n):
        started = time.process_time()
        first_fit_decreasing(lengths[:n], [1] * n, Limits(4096, images))
        return time.process_time() - started

    small = min(seconds(8_000) for _ in range(3))
    # Eight times the documents: a quadratic packer would take 64 times as long.
    assert min(seconds(64_000) for _ in range(2)) < 24 * small
