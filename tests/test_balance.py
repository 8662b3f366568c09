"""Ranks that work at the same time get like numbers of images."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.packing.balance import balanced, place, spread


def waiting(loads: list[int], groups: list[tuple[int, ...]], ranks: int) -> int:
    """Images that the slowest rank of each turn encodes, over all turns: the time a step takes."""
    totals = [sum(loads[pack] for pack in group) for group in groups]
    turns = range(len(groups) // ranks)
    return sum(max(totals[place(turn, r, ranks)] for r in range(ranks)) for turn in turns)


def in_order(count: int, size: int) -> list[tuple[int, ...]]:
    return [tuple(range(at, at + size)) for at in range(0, count, size)]


LOADS = st.integers(1, 4).flatmap(
    lambda size: st.tuples(
        st.just(size), st.lists(st.integers(0, 40), min_size=size * 4, max_size=size * 4)
    )
)


@given(LOADS)
def test_every_pack_is_in_one_group_of_the_size(case: tuple[int, list[int]]) -> None:
    size, loads = case
    groups = balanced(loads, size)
    assert sorted(pack for group in groups for pack in group) == list(range(len(loads)))
    assert {len(group) for group in groups} == {size}
    totals = [sum(loads[pack] for pack in group) for group in groups]
    assert totals == sorted(totals, reverse=True)


@given(st.lists(st.integers(0, 40), min_size=24, max_size=24), st.sampled_from([1, 2, 3, 4, 6, 8]))
def test_ranks_never_wait_longer_than_in_plain_order(loads: list[int], ranks: int) -> None:
    # With one pack each, falling order is the best there is.
    assert waiting(loads, balanced(loads, 1), ranks) <= waiting(loads, in_order(24, 1), ranks)


@pytest.mark.parametrize("micro", [1, 2, 4])
def test_a_mixture_of_captions_and_conversations_waits_for_little(micro: int) -> None:
    rng = np.random.default_rng(0)
    kinds = rng.random(256) < 0.5
    loads = np.where(kinds, rng.integers(20, 27, 256), rng.integers(2, 6, 256)).tolist()
    fair = sum(loads) / 8
    plain = waiting(loads, in_order(256, micro), 8)
    ours = waiting(loads, balanced(loads, micro), 8)
    assert plain > 1.3 * fair
    assert ours < 1.06 * fair


def test_each_rank_takes_each_group_once() -> None:
    places = [place(turn, rank, 4) for turn in range(6) for rank in range(4)]
    assert sorted(places) == list(range(24))
    # Over two turns every rank has had the same sum of places: 0 + 7, 1 + 6, 2 + 5, 3 + 4.
    assert {place(0, rank, 4) + place(1, rank, 4) for rank in range(4)} == {7}


def test_a_size_that_does_not_divide_is_refused() -> None:
    with pytest.raises(ValueError, match="6 packs cannot be cut into micro-batches of 4"):
        balanced([1] * 6, 4)


@given(LOADS, st.sampled_from([1, 2, 4]))
def test_the_spread_is_what_ranks_wait_over_a_fair_share(
    case: tuple[int, list[int]], ranks: int
) -> None:
    size, loads = case
    uneven = spread(loads, size, ranks)
    fair = sum(loads) / ranks
    assert uneven * fair == pytest.approx(waiting(loads, balanced(loads, size), ranks) or fair)
    assert 1 <= uneven <= ranks + 1e-9
    assert spread(loads, size, 1) == 1


def test_the_spread_of_no_images_is_none() -> None:
    assert spread([0] * 8, 2, 4) == 1
    assert spread([6, 0], 1, 2) == 2
    assert spread([6, 2, 2, 6], 1, 2) == 1
