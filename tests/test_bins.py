import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.formats.errors import PackError
from openqwen2vl.packing.bins import first_fit_decreasing


def quadratic(lengths, capacity):
    """The definition: longest first, into the first bin with room."""
    bins = []
    for index in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        for members in bins:
            if sum(lengths[i] for i in members) + lengths[index] <= capacity:
                members.append(index)
                break
        else:
            bins.append([index])
    return bins


@settings(deadline=None)
@given(
    st.integers(1, 60).flatmap(
        lambda capacity: st.tuples(
            st.lists(st.integers(1, capacity), max_size=80), st.just(capacity)
        )
    )
)
def test_the_bins_are_those_of_the_quadratic_definition(problem):
    assert first_fit_decreasing(*problem) == quadratic(*problem)


def test_no_lengths_make_no_bins():
    assert first_fit_decreasing([], 10) == []


@pytest.mark.parametrize("lengths", [[11], [0, 3]])
def test_a_length_that_no_bin_can_hold_is_refused(lengths):
    with pytest.raises(PackError, match="a pack takes 1 to 10"):
        first_fit_decreasing(lengths, 10)


def test_time_grows_about_linearly():
    rng = random.Random(0)
    lengths = [147 + int(rng.lognormvariate(3, 0.8)) for _ in range(64_000)]

    def seconds(n):
        started = time.perf_counter()
        first_fit_decreasing([min(x, 4096) for x in lengths[:n]], 4096)
        return time.perf_counter() - started

    small = min(seconds(8_000) for _ in range(3))
    # Eight times the documents: a quadratic packer would take 64 times as long.
    assert min(seconds(64_000) for _ in range(2)) < 24 * small
