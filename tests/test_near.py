import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.curation.duplicates import near
from openqwen2vl.curation.duplicates.groups import equal_groups
from openqwen2vl.curation.duplicates.independent import Nearness, first_independent
from openqwen2vl.curation.duplicates.near import first_within, has_earlier
from openqwen2vl.formats.errors import ConfigError

distances = st.sampled_from([0, 1, 2, 3, 4, 7, 16])


@st.composite
def hashes(draw, most=40):
    """Clusters: a few centres, each hash some bits away from one of them, wherever those bits lie."""
    centres = draw(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=4))
    drawn = []
    for _ in range(draw(st.integers(0, most))):
        value = draw(st.sampled_from(centres))
        for bit in draw(st.lists(st.integers(0, 63), max_size=6)):
            value ^= 1 << bit
        drawn.append(value)
    return np.array(drawn, np.uint64)


def apart(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.array([[(int(x) ^ int(y)).bit_count() for y in b] for x in a]).reshape(len(a), len(b))


@settings(deadline=None, max_examples=80)
@given(hashes(), hashes(), distances)
def test_the_first_target_within_the_distance_is_found(queries, targets, distance):
    table = apart(queries, targets) <= distance
    expected = [int(np.flatnonzero(row)[0]) if row.any() else -1 for row in table]
    assert first_within(queries, targets, distance).tolist() == expected


@settings(deadline=None, max_examples=80)
@given(hashes(), distances, st.randoms(use_true_random=False))
def test_an_earlier_one_is_found_or_known(values, distance, random):
    known = np.array([random.random() < 0.2 for _ in values], bool)
    table = np.tril(apart(values, values) <= distance, -1)
    expected = known | table.any(axis=1)
    assert has_earlier(values, distance, known).tolist() == expected.tolist()


@pytest.mark.parametrize("k", [1, 2, 3, 4])
@pytest.mark.parametrize("distance", [1, 4, 7])
def test_every_number_of_bands_finds_the_same(distance, k, monkeypatch):
    rng = np.random.default_rng(k)
    values = rng.integers(0, 2**64, 300, dtype=np.uint64)
    for _ in range(distance):
        flips = np.uint64(1) << rng.integers(0, 64, 150, dtype=np.uint64)
        values[150:] = (values[:150] if _ == 0 else values[150:]) ^ flips
    monkeypatch.setattr(near, "_choices", lambda q, t, d: near._plan(d, k, 9))
    monkeypatch.setattr(near, "_CHUNK", 70)
    found = first_within(values, values, distance)
    assert found.tolist() == (apart(values, values) <= distance).argmax(axis=1).tolist()
    assert (
        has_earlier(values, distance, np.zeros(300, bool)).tolist()
        == (found < np.arange(300)).tolist()
    )
    assert (found[150:] == np.arange(150)).all()


def test_exactly_the_distance_is_near_and_one_bit_more_is_not():
    bits = [1 << (7 * i) for i in range(9)]
    for distance in range(1, 9):
        at, beyond = sum(bits[:distance]), sum(bits[: distance + 1])
        found = first_within(np.array([at, beyond], np.uint64), np.zeros(1, np.uint64), distance)
        assert found.tolist() == [0, -1]


def test_a_plan_covers_every_bit_once_and_every_choice():
    plan = near._plan(4, 2, 24)
    assert len(plan) == 15
    bands = sorted({band for choice in plan for band in choice.bands})
    assert [shift for shift, _ in bands] == [sum(w for _, w in bands[:i]) for i in range(6)]
    assert sum(width for _, width in bands) == 64


def greedy(values, valid, distance):
    """The definition: in order, whoever is near none that stays."""
    keeper = []
    for i in range(len(values)):
        alike = [
            j
            for j in range(i)
            if keeper[j] == j
            and valid[i]
            and valid[j]
            and (int(values[i]) ^ int(values[j])).bit_count() <= distance
        ]
        keeper.append(alike[0] if alike else i)
    return keeper


@settings(deadline=None, max_examples=80)
@given(hashes(), distances, st.sampled_from([0, 1, 3, 2048]), st.randoms(use_true_random=False))
def test_those_that_stay_are_those_of_the_definition(values, distance, block, random):
    valid = np.array([random.random() < 0.9 for _ in values], bool)
    near_by = Nearness(values, valid, distance, equal_groups([values], valid))
    verdict = first_independent([], near_by, len(values), block)
    assert verdict.keeper.tolist() == greedy(values, valid, distance)
    assert (verdict.kept == (verdict.keeper == np.arange(len(values)))).all()


@pytest.mark.parametrize("block", [0, 16])
def test_a_chain_keeps_every_second_link(block):
    links = np.bitwise_xor.accumulate(np.uint64(1) << np.arange(64, dtype=np.uint64))
    valid = np.ones(64, bool)
    near_by = Nearness(links, valid, 1, equal_groups([links], valid))
    verdict = first_independent([], near_by, 64, block)
    assert np.flatnonzero(verdict.kept).tolist() == list(range(0, 64, 2))


def test_a_heavy_cluster_is_not_compared_pair_by_pair(monkeypatch):
    rng = np.random.default_rng(0)
    values = np.full(20_000, rng.integers(0, 2**64, dtype=np.uint64))
    for _ in range(3):
        values ^= np.uint64(1) << rng.integers(0, 64, len(values), dtype=np.uint64)
    compared = 0
    count = np.bitwise_count

    def counted(bits):
        nonlocal compared
        compared += bits.size
        return count(bits)

    monkeypatch.setattr(near.np, "bitwise_count", counted)
    valid = np.ones(len(values), bool)
    near_by = Nearness(values, valid, 6, equal_groups([values], valid))
    verdict = first_independent([], near_by, len(values))
    monkeypatch.undo()
    assert verdict.kept.sum() == 1
    assert compared < 100 * len(values)


@pytest.mark.parametrize("distance", [-1, 17, True, 1.5, "4"])
def test_a_distance_that_is_none_is_refused(distance):
    with pytest.raises(ConfigError, match="such as 4"):
        first_within(np.zeros(1, np.uint64), np.zeros(1, np.uint64), distance)


@settings(deadline=None, max_examples=100)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.booleans()), max_size=30))
def test_groups_are_the_rows_that_agree_in_every_word(rows):
    words = [np.array([row[i] for row in rows], np.uint64) for i in (0, 1)]
    valid = np.array([row[2] for row in rows], bool)
    ids = equal_groups(words, valid)
    there = [row[:2] if row[2] else None for row in rows]
    for i, a in enumerate(there):
        others = [j for j, b in enumerate(there) if j != i and a is not None and a == b]
        assert (ids[i] >= 0) == bool(others)
        assert all(ids[j] == ids[i] for j in others)
        assert not any(
            ids[j] == ids[i] >= 0 for j in range(len(rows)) if j != i and j not in others
        )
