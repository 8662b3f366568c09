import re

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from openqwen2vl.curation.selection.halves import read_halves
from openqwen2vl.curation.selection.uid_index import UidIndex, rising_order
from openqwen2vl.curation.selection.uids import (
    PAIR,
    UidError,
    UidList,
    join_uids,
    number_uids,
    read_uids,
    write_uids,
)

REUSED = settings(
    deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60
)
NUMBERS = st.one_of(
    st.integers(0, 2**128 - 1),
    # Halves that are often the same, and the edges of both.
    st.builds(
        lambda high, low: (high << 64) | low,
        st.sampled_from([0, 1, 2**63, 2**64 - 1]),
        st.sampled_from([0, 1, 2**63, 2**64 - 1]),
    ),
)
NOT_HEX = ["", "00000/000000001", "+" + "f" * 31, "f" * 16 + "+" + "f" * 15, "f" * 31, "f" * 33]
NOT_HEX += ["g" * 32, " " + "f" * 31, "f" * 31 + "\n", "é" * 16, "0x" + "f" * 30, "f_" * 16]


def reference(numbers):
    """Give what the definition gives: `int(uid, 16)` cut in two."""
    return np.array([(n >> 64, n & (2**64 - 1)) for n in numbers], PAIR)


@given(st.lists(NUMBERS), st.booleans())
def test_halves_are_those_of_the_number_and_come_back_as_its_digits(numbers, upper):
    texts = [f"{n:032X}" if upper else f"{n:032x}" for n in numbers]
    high, low, known = read_halves(pl.Series(texts, dtype=pl.String))
    expected = reference(numbers)
    assert high.tolist() == expected["f0"].tolist()
    assert low.tolist() == expected["f1"].tolist()
    assert known.all()
    assert join_uids(expected).to_list() == [f"{n:032x}" for n in numbers]


@pytest.mark.parametrize("uid", NOT_HEX)
def test_what_is_not_32_hex_digits_has_no_halves(uid):
    assert re.fullmatch("[0-9a-fA-F]{32}", uid) is None
    assert [part.tolist() for part in read_halves(pl.Series([uid]))] == [[0], [0], [False]]


ODD = st.one_of(
    st.none(),
    st.sampled_from(NOT_HEX),
    st.text("0123456789abcdefABCDEFg+ é\0", max_size=34),
    st.builds(lambda n, case: case(f"{n:032x}"), NUMBERS, st.sampled_from([str.upper, str.lower])),
    st.builds(
        lambda n, at, wrong: f"{n:032x}"[:at] + wrong + f"{n:032x}"[at + 1 :],
        NUMBERS,
        st.integers(0, 31),
        st.sampled_from("/:@G`g\0\x7fé+-_ xX"),
    ),
)


def slow_halves(uids):
    """Give what `int` says of the uids that are 32 hex digits."""
    known = [uid is not None and bool(re.fullmatch("[0-9a-fA-F]{32}", uid)) for uid in uids]
    numbers = [int(uid, 16) if sound else 0 for uid, sound in zip(uids, known, strict=True)]
    return [n >> 64 for n in numbers], [n & (2**64 - 1) for n in numbers], known


@REUSED
@given(st.lists(ODD, max_size=20), st.integers(0, 3), st.sampled_from([3, 1 << 15]))
def test_halves_of_odd_uids_are_those_of_the_slow_way(uids, cut, block):
    # In two chunks and from the middle on, as frames of several files hand them over.
    series = pl.concat([pl.Series(uids[:cut], dtype=pl.String), pl.Series(uids, dtype=pl.String)])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openqwen2vl.curation.selection.halves._BLOCK", block)
        for part, given_ in ((series, uids[:cut] + uids), (series[1:], (uids[:cut] + uids)[1:])):
            found = [half.tolist() for half in read_halves(part)]
            assert found == [list(half) for half in slow_halves(given_)]


def test_a_null_may_hide_digits():
    texts = pa.array(["1" * 32, "2" * 32], pa.large_string())
    hidden = pa.LargeStringArray.from_buffers(2, *texts.buffers()[1:], pa.py_buffer(b"\x02"))
    high, low, known = read_halves(pl.Series(hidden))
    assert known.tolist() == [False, True]
    assert (high[0], low[0]) == (0, 0)


def test_uids_of_no_type_and_of_numbers_have_no_halves():
    for series in (pl.Series([None, None]), pl.Series([1, 2]), pl.Series([], dtype=pl.String)):
        assert not read_halves(series)[2].any()


def test_any_uid_has_a_number_and_hex_digits_have_their_own():
    high, low = number_uids(pl.Series(["a/1", "0" * 15 + "1" + "0" * 15 + "2", "a/2", "a/1"]))
    assert (high[1], low[1]) == (1, 2)
    assert (high[0], low[0]) == (high[3], low[3])
    assert len({*zip(high.tolist(), low.tolist(), strict=True)}) == 3


@REUSED
@given(numbers=st.lists(NUMBERS))
def test_a_list_is_written_as_the_official_tool_writes_it_but_each_uid_once(tmp_path, numbers):
    path, plain = tmp_path / "ours.npy", tmp_path / "plain.npy"
    twice = write_uids(path, pl.Series([f"{n:032x}" for n in numbers], dtype=pl.String))
    np.save(plain, np.sort(np.unique(reference(numbers))))
    assert path.read_bytes() == plain.read_bytes()
    assert twice == len(numbers) - len(set(numbers))
    found = read_uids(path)
    assert (found.was_sorted, found.duplicates) == (True, 0)
    assert np.array_equal(found.pairs, reference(sorted(set(numbers))))
    again = tmp_path / "again.npy"
    write_uids(again, join_uids(found.pairs))
    assert again.read_bytes() == path.read_bytes()


@REUSED
@given(numbers=st.lists(NUMBERS, min_size=1))
def test_any_order_is_read_sorted_and_says_so(tmp_path, numbers):
    path = tmp_path / "list.npy"
    np.save(path, reference(numbers))
    found = read_uids(path)
    assert found.was_sorted == (numbers == sorted(numbers))
    assert found.duplicates == len(numbers) - len(set(numbers))
    assert np.array_equal(found.pairs, reference(sorted(numbers)))


def test_an_unsorted_list_is_told_once(tmp_path, caplog):
    np.save(tmp_path / "a.npy", reference([2, 1]))
    read_uids(tmp_path / "a.npy")
    assert "is not sorted" in caplog.text


def test_order_is_seen_across_the_parts_that_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.uids._CHUNK", 2)
    for numbers, rises, twice in (([1, 2, 2, 3], True, 1), ([1, 3, 2, 4], False, 0)):
        np.save(tmp_path / "a.npy", reference(numbers))
        found = read_uids(tmp_path / "a.npy")
        assert (found.was_sorted, found.duplicates) == (rises, twice)


def test_a_sorted_list_stays_in_its_file_and_may_be_of_the_other_byte_order(tmp_path):
    np.save(tmp_path / "a.npy", reference([1, 2]))
    assert isinstance(read_uids(tmp_path / "a.npy").pairs, np.memmap)
    np.save(tmp_path / "b.npy", reference([1, 2**64]).astype(">u8,>u8"))
    assert np.array_equal(read_uids(tmp_path / "b.npy").pairs, reference([1, 2**64]))


@pytest.mark.parametrize(
    ("array", "fault"),
    [
        (np.zeros(3, "u8"), "holds uint64 of shape (3,)"),
        (np.zeros(3, "u8,u4"), "expected one row of u8,u8"),
        (np.zeros(3, "i8,i8"), "expected one row of u8,u8"),
        (np.zeros((3, 1), PAIR), "of shape (3, 1)"),
        (np.array([{"a": 1}], object), "is no .npy of uids"),
    ],
)
def test_another_array_is_refused(tmp_path, array, fault):
    np.save(tmp_path / "a.npy", array, allow_pickle=True)
    with pytest.raises(UidError, match=re.escape(fault)):
        read_uids(tmp_path / "a.npy")


@pytest.mark.parametrize("data", [b"", b"not an array at all", b"\x93NUMPY\x01\x00"])
def test_another_file_is_refused(tmp_path, data):
    path = tmp_path / "a.npy"
    path.write_bytes(data)
    with pytest.raises(UidError, match=r"is no .npy of uids"):
        read_uids(path)


def test_a_cut_list_and_a_missing_one_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, reference(range(100)))
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UidError, match=r"is no .npy of uids"):
        read_uids(path)
    with pytest.raises(UidError, match="no list of uids"):
        read_uids(tmp_path / "gone.npy")


def test_a_uid_that_is_not_hex_is_told_with_row_and_count_and_nothing_is_written(tmp_path):
    uids = pl.Series(["f" * 32, "00000/7", "0" * 32, "x"])
    with pytest.raises(UidError, match=r"2 of 4 uids .* '00000/7' in row 1;"):
        write_uids(tmp_path / "a.npy", uids)
    assert list(tmp_path.iterdir()) == []


@REUSED
@given(st.lists(NUMBERS), st.lists(NUMBERS))
def test_membership_is_that_of_a_set(numbers, asked):
    asked = asked + numbers[:5]
    pairs = reference(sorted(numbers))
    uids = pl.Series([f"{n:032x}" for n in asked] + NOT_HEX + [None], dtype=pl.String)
    found = UidList("a.npy", pairs, True, 0).contains(uids)
    assert found.tolist() == [n in set(numbers) for n in asked] + [False] * (len(NOT_HEX) + 1)


@pytest.mark.parametrize("many", [False, True])
def test_numbers_are_found_where_the_first_equal_one_stands(many):
    rng = np.random.default_rng(0)
    # Spread as hashes, then all beneath the same first bits.
    high = np.sort(rng.integers(0, 2**8 if many else 2**64, 5_000, dtype=np.uint64))
    high[10:40] = high[10]
    high = np.sort(high)
    low = rng.integers(0, 9 if many else 3, 5_000, dtype=np.uint64)
    order = np.lexsort((low, high))
    high, low = high[order], low[order]
    pairs = [*zip(high.tolist(), low.tolist(), strict=True)]
    first = {pair: place for place, pair in reversed([*enumerate(pairs)])}
    asked = pairs[::3] + [(one, two + 1) for one, two in pairs[::5]]
    asked += [(one ^ 1, 0) for one, _ in pairs[::7]] + [(2**64 - 1, 2**64 - 1), (0, 0)]
    given_high, given_low = (np.array(side, np.uint64) for side in zip(*asked, strict=True))
    index = UidIndex(high, low)
    assert index._spread is not many
    assert index.find(given_high, given_low).tolist() == [first.get(pair, -1) for pair in asked]


@REUSED
@given(st.lists(st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 9))), st.integers(1, 4))
def test_marks_pass_every_number_that_is_there(numbers, chunk):
    high = np.array(sorted(numbers), np.uint64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("openqwen2vl.curation.selection.uid_index._CHUNK", chunk)
        assert UidIndex(high, high).may_have(high).all()


def test_marks_stop_most_numbers_that_are_absent():
    rng = np.random.default_rng(0)
    high, others = rng.integers(0, 2**64, (2, 5_000), dtype=np.uint64)
    high.sort()
    assert UidIndex(high, high).may_have(others).mean() < 1 / 16


@REUSED
@given(st.lists(st.tuples(*[st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 2))] * 2)))
def test_numbers_rise_and_equal_ones_stay_in_their_order(pairs):
    pairs += pairs[:3]
    high, low = (np.array([pair[side] for pair in pairs], np.uint64) for side in (0, 1))
    expected = sorted(range(len(pairs)), key=lambda row: (pairs[row], row))
    assert rising_order(high, low).tolist() == expected


def test_nothing_is_found_in_nothing():
    none = np.zeros(0, np.uint64)
    assert not UidIndex(none, none).may_have(np.zeros(2, np.uint64)).any()
    assert UidIndex(none, none).find(np.zeros(2, np.uint64), np.zeros(2, np.uint64)).tolist() == [
        -1,
        -1,
    ]


def test_an_archive_of_arrays_is_refused(tmp_path):
    with (tmp_path / "uids.npy").open("wb") as file:
        np.savez(file, a=np.zeros(2, PAIR))
    with pytest.raises(UidError, match=r"is an \.npz of several arrays"):
        read_uids(tmp_path / "uids.npy")
