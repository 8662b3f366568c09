import random
import time
from itertools import combinations_with_replacement

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.formats.errors import PackError
from openqwen2vl.packing import fill
from openqwen2vl.packing.bins import Limits, first_fit_decreasing
from openqwen2vl.packing.fill import STYLES, Style, seed_fill_close


@st.composite
def problems(draw):
    limits = Limits(draw(st.integers(1, 200)), draw(st.none() | st.integers(1, 9)))
    # Some problems have a few lengths only: those run out while the sums still tell of them.
    longest = draw(st.integers(1, limits.tokens))
    shortest = draw(st.integers(1, longest))
    item = st.tuples(st.integers(shortest, longest), st.integers(0, limits.images or 9))
    items = draw(st.lists(item, max_size=120))
    return [length for length, _ in items], [number for _, number in items], limits


@pytest.mark.parametrize("style", [*STYLES, Style(seeds=0, many=True), Style(seeds=9, many=False)])
@settings(deadline=None, max_examples=150)
@given(problem=problems())
def test_every_item_is_in_one_bin_and_no_bin_is_too_full(style, problem):
    lengths, images, limits = problem
    bins = seed_fill_close(lengths, images, limits, [style])
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(bins)
    assert all(sum(lengths[i] for i in members) <= limits.tokens for members in bins)
    if limits.images is not None:
        assert all(sum(images[i] for i in members) <= limits.images for members in bins)
    assert len(bins) >= limits.lower_bound(lengths, images)


@settings(deadline=None, max_examples=50)
@given(problems())
def test_the_same_input_gives_the_same_bins(problem):
    assert seed_fill_close(*problem) == seed_fill_close(*problem)


@settings(deadline=None, max_examples=50)
@given(problems())
def test_the_best_of_the_styles_counts_unless_the_first_will_do(problem):
    alone = [len(seed_fill_close(*problem, [style])) for style in STYLES]
    assert len(seed_fill_close(*problem)) in {alone[0], min(alone)}
    bound = problem[2].lower_bound(*problem[:2])
    if alone[0] > 1.01 * bound:
        assert len(seed_fill_close(*problem)) == min(alone)


def best_sum(lengths, room):
    """By trying all: the largest sum of at most three of ``lengths`` that is at most ``room``."""
    counts = {length: lengths.count(length) for length in lengths}
    sums = [
        sum(chosen)
        for size in (1, 2, 3)
        for chosen in combinations_with_replacement(sorted(counts), size)
        if all(chosen.count(length) <= counts[length] for length in chosen)
    ]
    return max((total for total in sums if total <= room), default=0)


@pytest.mark.parametrize("many", [False, True])
@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=20),
    rooms=st.lists(st.integers(0, 40), min_size=1, max_size=8),
)
def test_bins_are_closed_with_the_sum_nearest_to_their_room(many, lengths, rooms):
    stock = fill._Stock(np.array(lengths), np.ones(len(lengths), int))
    closer = fill._Closer(stock, 40, 1, many)
    left = list(lengths)
    for room in rooms:
        members = []
        closer.close(members, room, places=fill.CLOSERS)
        closed = [lengths[i] for i in members]
        assert sum(closed) == best_sum(left, room)
        for length in closed:
            left.remove(length)


@settings(deadline=None, max_examples=200)
@given(
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=30),
    takes=st.lists(st.integers(1, 40), max_size=30),
    rooms=st.lists(st.tuples(st.integers(0, 80), st.integers(0, 20)), max_size=8),
)
def test_stock_that_is_drawn_and_taken_from_both_ends_loses_nothing(lengths, takes, rooms):
    stock = fill._Stock(np.array(lengths), np.zeros(len(lengths), int))
    gone = []
    for length in takes:
        if length <= max(lengths) and stock.has(length):
            gone.append(stock.take(length))
            assert lengths[gone[-1]] == length
    for room, reserve in rooms:
        drawn = []
        assert stock.draw(drawn, room, 0, reserve)[0] == room - sum(lengths[i] for i in drawn) >= 0
        gone += drawn
    while longest := stock.longest():
        left = [n for i, n in enumerate(lengths) if i not in gone]
        assert longest == max(left)
        gone.append(stock.take(longest))
    assert sorted(gone) == list(range(len(lengths)))


def captions(count, seed=0):
    rng = random.Random(seed)
    return [min(147 + round(rng.lognormvariate(2.89, 0.8)), 4096) for _ in range(count)]


def fill_of(lengths, bins):
    return sum(lengths) / (4096 * len(bins))


@pytest.mark.parametrize("seed", range(3))
def test_captions_fill_packs_that_first_fit_cannot(seed):
    lengths = captions(10_000, seed)
    problem = lengths, [1] * len(lengths), Limits(4096)
    assert fill_of(lengths, seed_fill_close(*problem)) >= 0.997
    assert fill_of(lengths, first_fit_decreasing(*problem)) < 0.985


def test_long_documents_are_closed_by_many_items():
    rng = random.Random(0)
    drawn = (753 + round(rng.lognormvariate(5.39, 0.9)) for _ in range(10_000))
    lengths = [length for length in drawn if length <= 4096]
    problem = lengths, [1] * len(lengths), Limits(4096)
    assert fill_of(lengths, seed_fill_close(*problem)) >= 0.99
    assert fill_of(lengths, first_fit_decreasing(*problem)) < 0.94


def test_a_limit_on_images_costs_no_more_packs_than_it_must():
    lengths = captions(5_000)
    for most in (12, 25):
        limits = Limits(4096, most)
        bins = seed_fill_close(lengths, [1] * len(lengths), limits)
        assert len(bins) <= 1.01 * limits.lower_bound(lengths, [1] * len(lengths))


def test_time_grows_about_linearly():
    lengths = captions(64_000)

    def seconds(n):
        started = time.process_time()
        seed_fill_close(lengths[:n], [1] * n, Limits(4096))
        return time.process_time() - started

    small = min(seconds(8_000) for _ in range(3))
    assert min(seconds(64_000) for _ in range(2)) < 24 * small


@pytest.mark.parametrize(("lengths", "images"), [([11], [0]), ([0], [0]), ([1], [3]), ([1], [])])
def test_an_item_that_no_bin_can_hold_is_refused(lengths, images):
    with pytest.raises(PackError):
        seed_fill_close(lengths, images, Limits(10, 2))


def test_no_items_make_no_bins():
    assert seed_fill_close([], [], Limits(10)) == []
