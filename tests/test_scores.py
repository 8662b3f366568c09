import os

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shards import write_caption_shard

from openqwen2vl.curation.scores import (
    ScoreError,
    ScoreFacts,
    is_current,
    list_scores,
    read_facts,
    score_path,
    stamp,
    write_scores,
)
from openqwen2vl.formats.errors import ShardError

SCORER = {"name": "length", "weights": "abc", "size": [3, 4]}


def table():
    columns = {
        "key": pa.array(["a", "b"]),
        "uid": pa.array(["1", "2"]),
        "sha256": pa.array([bytes(range(32)), None], pa.binary(32)),
        "phash": pa.array([2**64 - 1, None], pa.uint64()),
        "blank_share": pa.array([0.25, None], pa.float32()),
        "image_error": pa.array([None, "cannot be decoded"]),
    }
    return pa.table(columns)


@pytest.fixture
def raw(tmp_path):
    write_caption_shard(tmp_path / "raw" / "00003.tar", 2)
    return tmp_path / "raw" / "00003.tar"


def facts(raw, **keys):
    size, mtime_ns = stamp(raw)
    told = {"source": "ccs", "shard": "00003", "bytes": size, "mtime_ns": mtime_ns}
    return ScoreFacts(**{**told, "scorer": SCORER, "rejects": {"bad_json": 1}, **keys})


@pytest.fixture
def path(tmp_path, raw):
    path = score_path(tmp_path / "scores", "ccs", "length", "00003")
    write_scores(path, table(), facts(raw))
    return path


def test_what_is_written_is_read_by_arrow_and_by_polars(path, raw):
    assert path.parts[-3:] == ("ccs", "length", "00003.parquet")
    assert pq.read_table(path).equals(table())
    assert read_facts(path) == facts(raw)
    frame = pl.read_parquet(path)
    assert frame["phash"].to_list() == [2**64 - 1, None]
    assert frame["sha256"].to_list() == [bytes(range(32)), None]
    assert frame.schema["phash"] == pl.UInt64


def test_the_same_scores_are_the_same_bytes_however_the_table_was_put_together(path, raw):
    before = path.read_bytes()
    parts = pa.concat_tables([table().slice(0, 1), table().slice(1)])
    write_scores(path, parts, facts(raw, scorer=dict(reversed(SCORER.items()))))
    assert path.read_bytes() == before
    assert pq.ParquetFile(path).num_row_groups == 1
    write_scores(path, table(), facts(raw, rejects={}))
    assert path.read_bytes() != before


def test_a_shard_without_a_sample_has_a_file_without_rows(path, raw):
    write_scores(path, table().slice(0, 0), facts(raw))
    assert pq.read_table(path).num_rows == 0
    assert pq.read_schema(path).field("sha256").type == pa.binary(32)


def test_a_write_that_fails_leaves_what_was_there_and_nothing_else(path, raw, monkeypatch):
    before = path.read_bytes()

    def half(table, file, **keys):
        file.write(b"PAR1")
        raise OSError("gone")

    monkeypatch.setattr(pq, "write_table", half)
    with pytest.raises(OSError, match="gone"):
        write_scores(path, table(), facts(raw))
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == ["00003.parquet"]


def test_scores_are_listed_by_name_without_what_is_being_written(path):
    (path.parent / ".00001.parquet.tmp").touch()
    (path.parent / ".00001.parquet").touch()
    (path.parent / "00001.parquet").touch()
    assert [p.name for p in list_scores(path.parent)] == ["00001.parquet", "00003.parquet"]
    assert list_scores(path.parent / "no such folder") == []


def test_scores_hold_for_the_shard_and_the_scorer_that_they_were_made_from(path, raw):
    assert is_current(path, raw, "ccs", SCORER)
    assert is_current(path, raw, "ccs", {**SCORER, "size": (3, 4)})  # JSON knows no tuples
    assert not is_current(path.with_name("00004.parquet"), raw, "ccs", SCORER)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"weights": "abd"}, "weights was abc then, is abd now"),
        ({"more": 1}, "more was not there then, is 1 now"),
        ({"name": "other"}, "name was length then, is other now"),
    ],
)
def test_scores_of_another_scorer_are_told_apart_by_what_differs(path, raw, change, said):
    with pytest.raises(ScoreError, match=said) as caught:
        is_current(path, raw, "ccs", {**SCORER, **change})
    assert str(path) in str(caught.value)
    assert "overwrite=true" in str(caught.value)
    assert not is_current(path, raw, "ccs", {**SCORER, **change}, overwrite=True)


def test_scores_of_a_shard_that_changed_are_told_with_both_sizes_or_times(path, raw):
    size, mtime_ns = stamp(raw)
    os.utime(raw, ns=(mtime_ns, mtime_ns + 5))
    with pytest.raises(ScoreError, match=f"at {mtime_ns} ns then, {mtime_ns + 5} ns now"):
        is_current(path, raw, "ccs", SCORER)
    with raw.open("ab") as file:
        file.write(b"more")
    with pytest.raises(ScoreError, match=f"{size} bytes then, {size + 4} now"):
        is_current(path, raw, "ccs", SCORER)
    assert not is_current(path, raw, "ccs", SCORER, overwrite=True)


def test_scores_of_another_source_are_told(path, raw):
    with pytest.raises(ScoreError, match="ccs/00003 then, laion/00003 now"):
        is_current(path, raw, "laion", SCORER)


@pytest.mark.parametrize("content", [b"", b"PAR1 and no more", None])
def test_a_file_that_holds_no_scores_is_told(path, raw, content):
    if content is None:
        pq.write_table(table(), path)
    else:
        path.write_bytes(content)
    with pytest.raises(ScoreError, match=r"00003\.parquet is no file of scores"):
        is_current(path, raw, "ccs", SCORER)
    assert not is_current(path, raw, "ccs", SCORER, overwrite=True)


def test_scores_of_a_later_version_are_told(path, raw, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.scores.VERSION", 0)
    with pytest.raises(ScoreError, match="version 2 of scores; this program writes 0"):
        is_current(path, raw, "ccs", SCORER)


def test_a_raw_shard_that_is_missing_is_told(path, raw):
    raw.unlink()
    with pytest.raises(ShardError, match=r"00003\.tar is missing"):
        is_current(path, raw, "ccs", SCORER)
