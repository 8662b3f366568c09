import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.plan import (
    Selection,
    first_occurrences,
    parse_part,
    plan_packs,
    uid_fraction,
    uid_hash,
)


@settings(deadline=None)
@given(st.text(), st.floats(0.01, 0.99), st.floats(0, 0.5))
def test_complementary_parts_share_the_corpus_and_its_validation(uid, cut, validation):
    first = Selection((0.0, cut), validation).split(uid)
    second = Selection((cut, 1.0), validation).split(uid)
    if "validation" in (first, second):
        assert first == second == "validation"
    else:
        assert sorted([first, second], key=str) == [None, "train"]


def test_fractions_are_even_and_salts_independent():
    uids = [f"00000/{i:09d}" for i in range(20_000)]
    part = np.array([uid_fraction(uid, "part") for uid in uids])
    validation = np.array([uid_fraction(uid, "validation") for uid in uids])
    assert ((part >= 0) & (part < 1)).all()
    counts = np.histogram2d(part, validation, bins=4, range=[[0, 1], [0, 1]])[0]
    assert np.abs(counts - 1250).max() < 5 * np.sqrt(1250)


def test_documents_without_a_uid_of_their_own_differ_between_sources():
    named = [Document(s, "00000", "0001", "abc", ()) for s in ("a", "b")]
    unnamed = [Document(s, "00000", "0001", "00000/0001", ()) for s in ("a", "b")]
    assert uid_hash(named[0]) == uid_hash(named[1])
    assert uid_hash(unnamed[0]) != uid_hash(unnamed[1])


def test_what_a_broken_shard_loses_is_told_in_every_part():
    rest = Reject("s", "00000", "", "00000", "truncated_shard", "")
    parts = [(0.0, 0.5), (0.5, 1.0)]
    assert [Selection(part).split_of(rest) for part in parts] == ["train", "train"]


@pytest.mark.parametrize("part", [(0.5, 0.5), (0.9, 0.1), (-0.1, 1.0), (0.0, 1.1)])
def test_an_impossible_part_is_refused(part):
    with pytest.raises(PackError, match="expected 0 <= lo < hi <= 1"):
        Selection(part)


def test_a_validation_share_of_everything_is_refused():
    with pytest.raises(PackError, match=r"validation is 1\.0"):
        Selection(validation=1.0)


def test_parts_are_read_from_text():
    assert parse_part("0.0:0.9") == (0.0, 0.9)
    for text in ("0.9", "a:b", "0:1:2", ""):
        with pytest.raises(PackError, match="expected lo:hi"):
            parse_part(text)


DOCUMENTS = st.tuples(st.integers(1, 50), st.integers(0, 4), st.booleans())


def columns(shards):
    """Lengths, images and which are kept, per raw shard."""
    kinds = (np.int32, np.int32, bool)
    return [[np.array([d[k] for d in s], kind) for s in shards] for k, kind in enumerate(kinds)]


@settings(deadline=None)
@given(
    st.lists(st.lists(DOCUMENTS, max_size=30), max_size=8),
    st.integers(1, 60),
    st.integers(1, 5),
    st.none() | st.integers(4, 9),
    st.sampled_from(["auto", "seed_fill_close", "first_fit_decreasing"]),
)
def test_plans_lose_and_double_nothing(shards, window, packs_per_shard, most, packer):
    lengths, images, kept = columns(shards)
    plan = plan_packs(
        lengths,
        images,
        kept,
        Limits(50, most),
        window=window,
        packs_per_shard=packs_per_shard,
        packer=packer,
    )
    packs = [pack for shard in plan.shards for pack in shard.packs]
    rows = sorted(row for pack in packs for row in pack)
    assert rows == [(s, r) for s, mask in enumerate(kept) for r in np.flatnonzero(mask).tolist()]
    assert all(sum(lengths[s][r] for s, r in pack) <= 50 for pack in packs)
    if most is not None:
        assert all(sum(images[s][r] for s, r in pack) <= most for pack in packs)
    assert all(1 <= len(shard.packs) <= packs_per_shard for shard in plan.shards)
    firsts = np.cumsum([0, *[len(shard.packs) for shard in plan.shards]])[:-1]
    assert [shard.first for shard in plan.shards] == firsts.tolist()


def test_each_window_counts_for_the_packer_that_laid_it_out():
    lengths, images, kept = columns([[(9, 1, True)] * 3] * 4 + [[(9, 1, False)]])
    plan = plan_packs(lengths, images, kept, Limits(20), window=5, packs_per_shard=9)
    assert sum(plan.packers.values()) == 2
    assert list(plan.packers) == sorted(plan.packers)
    named = plan_packs(
        lengths,
        images,
        kept,
        Limits(20),
        window=1,
        packs_per_shard=9,
        packer="first_fit_decreasing",
    )
    assert named.packers == {"first_fit_decreasing": 4}


def test_a_document_that_no_pack_can_hold_is_refused():
    lengths, images, kept = columns([[(9, 3, True)]])
    with pytest.raises(PackError, match="a pack takes 0 to 2"):
        plan_packs(lengths, images, kept, Limits(20, 2), window=5, packs_per_shard=9)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 9), max_size=6), max_size=5))
def test_the_first_document_of_a_uid_is_the_one_kept(shards):
    hashes = [np.array(shard, np.uint64) for shard in shards]
    masks = first_occurrences(hashes)
    seen = set()
    for shard, mask in zip(shards, masks, strict=True):
        for value, first in zip(shard, mask, strict=True):
            assert first == (value not in seen)
            seen.add(value)
