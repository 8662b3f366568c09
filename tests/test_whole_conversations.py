"""All pictures of conversations as numbers to compare by, against the plain definition."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.curation.duplicates.selected import Selected, Tables
from openqwen2vl.curation.duplicates.shown import Shown
from openqwen2vl.curation.duplicates.whole import demand_pictures, same_looks, same_pictures
from openqwen2vl.formats.errors import ShardError

MAX_BLANK = 0.95

# A picture: a name that stands for its bytes, its perceptual hash, its blank share.
PICTURE = st.tuples(st.integers(1, 3), st.integers(0, 2), st.sampled_from([0.25, 1.0]))
CONVERSATION = st.one_of(st.none(), st.lists(PICTURE, max_size=3))  # None: one is undecodable
CONVERSATIONS = st.lists(CONVERSATION, min_size=1, max_size=12)


def sha(name: int) -> bytes:
    return bytes([name]) * 32


def written(path: Path, rows: list[Any], conversations: bool) -> Selected:
    """Write a selection as `select` leaves it; of pairs each row has one picture."""
    shown = [row or [] for row in rows]
    columns: dict[str, Any] = {
        "sha256": pa.array([sha(row[0][0]) if row else None for row in shown], pa.binary()),
        "phash": pa.array([row[0][1] if row else None for row in shown], pa.uint64()),
        "blank_share": pa.array([row[0][2] if row else None for row in shown], pa.float32()),
    }
    if conversations:
        columns["pictures"] = pa.array([None if r is None else len(r) for r in rows], pa.int32())
        more = {
            "more_sha256": lambda p: sha(p[0]),
            "more_phash": lambda p: struct.pack("<Q", p[1]),
            "more_blank_share": lambda p: struct.pack("<f", p[2]),
        }
        for name, told in more.items():
            values = [b"".join(map(told, row[1:])) if row else None for row in shown]
            columns[name] = pa.array(values, pa.binary())
    keys = [str(number) for number in range(len(rows))]
    identity = {"shard": ["0"] * len(rows), "key": keys, "uid": keys}
    pq.write_table(pa.table(identity | columns), path)
    return Selected(path.stem, path, conversations=conversations)


@settings(max_examples=40, deadline=None)
@given(CONVERSATIONS)
def test_conversations_have_one_number_when_all_their_pictures_are_the_same(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("w")
    pairs = written(folder / "pairs.parquet", [[(1, 1, 0.25)], [(2, 2, 0.25)]], False)
    tables = Tables.open([pairs, written(folder / "talks.parquet", rows, True)])
    assert tables.conversations().tolist() == [False, False] + [True] * len(rows)
    bytes_of = [None if row is None else [p[0] for p in row] for row in rows]
    look_of = [
        None if row is None or any(p[2] > MAX_BLANK for p in row) else [p[1] for p in row]
        for row in rows
    ]
    for found, expected in (
        (same_pictures(tables), [None, None, *bytes_of]),
        (same_looks(tables, MAX_BLANK), [None, None, *look_of]),
    ):
        words, there = found
        assert there.tolist() == [one is not None for one in expected]
        for i, one in enumerate(expected):
            for j, other in enumerate(expected):
                if one is not None and other is not None:
                    assert (words[i] == words[j]) == (one == other)


@settings(max_examples=40, deadline=None)
@given(CONVERSATIONS)
def test_every_picture_is_there_to_be_compared(
    tmp_path_factory: pytest.TempPathFactory, rows: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("s")
    pairs = written(folder / "pairs.parquet", [[(3, 2, 0.25)]], False)
    tables = Tables.open([pairs, written(folder / "talks.parquet", rows, True)])
    shown = Shown.of(tables, MAX_BLANK)
    found = {
        (int(row), int(high), int(look), bool(clear))
        for row, high, hashed, look, clear in zip(
            shown.rows, shown.high, shown.hashed, shown.hashes, shown.compared, strict=True
        )
        if hashed
    }
    expected = {
        (number, int(np.frombuffer(sha(p[0])[:8], np.uint64)[0]), p[1], p[2] <= MAX_BLANK)
        for number, row in enumerate([[(3, 2, 0.25)], *rows])
        for p in row or []
    }
    assert found == expected


def test_conversations_that_no_scorer_of_images_saw_are_an_error(tmp_path: Path) -> None:
    selected = written(tmp_path / "talks.parquet", [[(1, 1, 0.25)]], False)
    tables = Tables.open([Selected(selected.name, selected.path, conversations=True)])
    with pytest.raises(ShardError, match="has no column pictures"):
        demand_pictures(tables)
