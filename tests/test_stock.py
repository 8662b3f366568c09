import random
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.formats.errors import PackError, UserError
from openqwen2vl.packing import stock
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.stock import cutting_stock

pytest.importorskip("scipy")


@st.composite
def problems(draw):
    limits = Limits(draw(st.integers(1, 120)))
    longest = draw(st.integers(1, limits.tokens))
    shortest = draw(st.integers(1, longest))
    lengths = draw(st.lists(st.integers(shortest, longest), max_size=60))
    return lengths, [1] * len(lengths), limits


@settings(deadline=None, max_examples=80)
@given(problems(), st.sampled_from([1, 7, 32, 512]))
def test_every_item_is_in_one_bin_and_no_bin_is_too_full(problem, classes):
    lengths, _, limits = problem
    bins = cutting_stock(*problem, classes=classes)
    assert sorted(i for members in bins for i in members) == list(range(len(lengths)))
    assert all(bins)
    assert all(sum(lengths[i] for i in members) <= limits.tokens for members in bins)
    assert cutting_stock(*problem, classes=classes) == bins


def test_it_finds_what_no_greedy_packer_does():
    # 20 bins of 6 + 2 + 2 and 20 of 4 + 3 + 3: the longest first would put 6 with 4, or with 3.
    lengths = [6, 2, 2, 4, 3, 3] * 20
    bins = cutting_stock(lengths, [0] * len(lengths), Limits(10))
    assert len(bins) == 40


@pytest.mark.parametrize("seed", range(3))
def test_the_best_pattern_is_the_one_that_trying_all_finds(seed):
    rng = np.random.default_rng(seed)
    sizes = np.sort(rng.choice(np.arange(1, 21), 6, replace=False))
    prices = rng.random(6)

    def worth(room):
        return max(
            [0.0, *(p + worth(room - s) for s, p in zip(sizes, prices, strict=True) if s <= room)]
        )

    best, patterns = stock._priced(sizes, prices, 20)
    assert best == pytest.approx(worth(20))
    assert all(sum(sizes[number] for number in pattern) <= 20 for pattern in patterns)
    assert all(prices[list(pattern)].sum() > 1 for pattern in patterns)
    if best > 1.01:
        assert max(prices[list(pattern)].sum() for pattern in patterns) == pytest.approx(best)


def test_conversations_with_fine_images_fill_packs():
    rng = random.Random(0)
    drawn = (753 + round(rng.lognormvariate(5.39, 0.9)) for _ in range(5_000))
    lengths = [length for length in drawn if length <= 4096]
    bins = cutting_stock(lengths, [1] * len(lengths), Limits(4096))
    assert sum(lengths) / (4096 * len(bins)) >= 0.992


def test_an_item_that_no_bin_can_hold_is_refused():
    with pytest.raises(PackError, match="a pack takes 1 to 10"):
        cutting_stock([11], [0], Limits(10))


def test_a_limit_on_images_is_refused_with_the_ways_out():
    with pytest.raises(PackError, match="max_images is 4; set max_images=null or packer=auto"):
        cutting_stock([1], [1], Limits(10, 4))


def test_without_scipy_the_remedy_is_told(monkeypatch):
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(UserError, match=r"pip install 'openqwen2vl\[stock\]'"):
        cutting_stock([1], [1], Limits(10))
