"""Examples are drawn from all over a table, the same ones each time, and a large one is not read."""

from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.kept import samples, write_raw

from openqwen2vl.curation import examples
from openqwen2vl.curation.examples import draw_examples


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    write_raw(tmp_path / "raw", [12] * 8)
    return tmp_path / "raw"


def table_of(raw: Path, path: Path, group: int) -> Path:
    rows = [{"shard": s.shard, "key": s.key, "uid": s.uid, "sources": ["x"]} for s in samples(raw)]
    pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=group)
    return path


def test_a_small_table_is_drawn_from_whatever_its_groups(raw: Path, tmp_path: Path) -> None:
    drawn = [
        draw_examples(table_of(raw, tmp_path / f"{group}.parquet", group), raw, "x", 6)
        for group in (96, 7)
    ]
    assert len(drawn[0]) == 6
    assert drawn[0] == drawn[1]
    assert len({example.sample.key for example in drawn[0]}) == 6
    everything = draw_examples(tmp_path / "7.parquet", raw, "x", 1000)
    assert len(everything) == 96


def test_a_large_table_is_drawn_from_beyond_its_beginning(
    raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "_LOOKED_AT", 24)
    monkeypatch.setattr(examples, "_GROUPS", 4)
    table, read = table_of(raw, tmp_path / "t.parquet", 12), Counter[int]()
    plain = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda file, group, **how: read.update([group]) or plain(file, group, **how),
    )
    drawn = draw_examples(table, raw, "x", 20)
    assert len(read) == sum(read.values()) == 4
    assert max(read) >= 4, "the second half of the source"
    per_shard = Counter(example.sample.shard for example in drawn)
    assert len(per_shard) == 4
    assert draw_examples(table, raw, "x", 20) == drawn


def test_what_went_says_why(raw: Path, tmp_path: Path) -> None:
    one = samples(raw)[5]
    row = {"shard": one.shard, "key": one.key, "uid": one.uid, "reason": "selection", "detail": "x"}
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "t.parquet")
    (example,) = draw_examples(tmp_path / "t.parquet", raw, "tiny", 6)
    assert (example.sample.key, example.reason, example.detail) == (one.key, "selection", "x")
    empty = pa.Table.from_pylist([row]).slice(0, 0)
    pq.write_table(empty, tmp_path / "empty.parquet")
    assert draw_examples(tmp_path / "empty.parquet", raw, "tiny", 6) == []
