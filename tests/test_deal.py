from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.curation.resharding.deal import deal

COUNTS = st.lists(st.integers(0, 30), min_size=1, max_size=25).filter(sum)
SETTINGS = st.tuples(st.integers(0, 2**70), st.integers(1, 8), st.integers(1, 40))


def dealt(counts, seed, window, size):
    """Each new shard as (raw shard, its row) pairs, by way of a table of all rows."""
    found = []
    for hands in deal(counts, seed, window, size):
        shard = []
        for hand in hands:
            rows = [(n, row) for n in hand.window.shards for row in range(counts[n])]
            shard += [rows[place] for place in hand.rows(seed).tolist()]
        found.append(shard)
    return found


@given(COUNTS, SETTINGS)
def test_every_sample_goes_into_just_one_shard(counts, settings):
    shards = dealt(counts, *settings)
    everything = [(n, row) for n, count in enumerate(counts) for row in range(count)]
    assert sorted(pair for shard in shards for pair in shard) == everything


@given(COUNTS, SETTINGS)
def test_shards_differ_by_one_sample_and_hold_no_more_than_asked(counts, settings):
    sizes = [len(shard) for shard in dealt(counts, *settings)]
    assert max(sizes) - min(sizes) <= 1
    assert 1 <= max(sizes) <= settings[2]
    assert len(sizes) == -(-sum(counts) // settings[2])


@given(COUNTS, SETTINGS)
def test_the_same_seed_deals_alike(counts, settings):
    assert dealt(counts, *settings) == dealt(counts, *settings)


@given(COUNTS, SETTINGS)
def test_windows_are_few_shards_and_come_one_after_the_other(counts, settings):
    hands = [hand for taken in deal(counts, *settings) for hand in taken]
    assert all(len(hand.window.shards) <= settings[1] for hand in hands)
    for one, next_ in pairwise(hands):
        if one.window is next_.window:
            assert one.stop == next_.start
        else:
            assert one.stop == one.window.samples
            assert next_.start == 0
            assert next_.window.number > one.window.number


def test_another_seed_deals_otherwise():
    assert dealt([50, 50], 0, 2, 25) != dealt([50, 50], 1, 2, 25)


def test_a_window_is_mixed_well():
    """Each of 4 new shards holds about a quarter of each of 4 raw ones."""
    for shard in dealt([1000] * 4, 7, 4, 1000):
        shares = np.bincount([raw for raw, _ in shard], minlength=4) / 1000
        assert (abs(shares - 0.25) < 0.06).all()
        rows = [row for _, row in shard]
        assert abs(np.corrcoef(rows, range(len(rows)))[0, 1]) < 0.1


def test_a_shard_is_read_from_a_window_or_two():
    hands = deal([100] * 64, 0, 4, 50)
    assert max(len(taken) for taken in hands) <= 2


def test_the_seed_decides_which_raw_shards_share_a_window():
    seen = {hand.window.shards for seed in (0, 1) for hand, *_ in deal([5] * 20, seed, 20, 100)}
    assert len(seen) == 2
