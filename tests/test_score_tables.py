import re
from collections import Counter

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.selections import add_scores, opened, uid, write_table
from support.shards import write_tar

from openqwen2vl.curation.selection.brought import read_scores
from openqwen2vl.curation.selection.frames import TableError
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.spines import row_keys


def read(source, *names):
    """Give the columns of all pieces as one table."""
    columns = source.resolve(names)
    assert set(columns) == set(names)
    return pl.concat(source.pieces(columns))


def refused(fault):
    return pytest.raises(TableError, match=re.escape(fault))


@pytest.fixture
def two_shards(tmp_path):
    """Make two shards which two scorers have seen."""
    for shard in ("00000", "00001"):
        add_scores(tmp_path, "clip", shard, {"clip_similarity": [0.1, None, 0.3]})
        add_scores(tmp_path, "image", shard, {"width": [1, 2, 3], "height": [4, 5, 6]})
    return tmp_path


def test_the_scores_of_several_scorers_stand_beside_each_other(two_shards, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.spines.SHARDS", 1)
    found = read(opened(two_shards), "width", "clip_similarity", "image.height")
    assert found.columns == ["shard", "key", "uid", "width", "image.height", "clip_similarity"]
    assert found["shard"].to_list() == ["00000"] * 3 + ["00001"] * 3
    assert found["key"].to_list() == ["0000", "0001", "0002"] * 2
    assert found["uid"].to_list() == [uid(n) for n in (0, 1, 2, 1000, 1001, 1002)]
    assert found["width"].to_list() == [1, 2, 3] * 2
    assert found["image.height"].to_list() == [4, 5, 6] * 2
    assert found["clip_similarity"].to_list() == [0.1, None, 0.3] * 2


def test_only_the_columns_asked_for_are_read(two_shards):
    # A damaged file of a scorer that is not asked does no harm.
    source = opened(two_shards)
    path = two_shards / "scores" / "src" / "clip" / "00001.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    assert len(read(source, "width")) == 6
    with refused("00001.parquet cannot be read"):
        read(source, "width", "clip_similarity")


def test_pieces_may_be_asked_for_by_number(two_shards, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.spines.SHARDS", 1)
    (piece,) = opened(two_shards).pieces({}, {1})
    assert piece["shard"].to_list() == ["00001"] * 3


def test_scores_of_different_samples_are_refused(two_shards):
    add_scores(two_shards, "image", "00001", {"key": ["0", "1"], "width": [1, 2]})
    with refused("the scores of clip and image for src are of different samples, about shard 0000"):
        read(opened(two_shards), "clip_similarity", "width")


def test_shards_without_the_scores_asked_for_are_told(two_shards):
    for shard in ("00002", "00003"):
        add_scores(two_shards, "clip", shard, {"clip_similarity": [0.5]})
    source = opened(two_shards)
    with refused("2 of 4 shards of src have no scores of image, the first is 00002"):
        source.resolve(["width"])
    assert len(read(source, "clip_similarity")) == 8


def test_a_column_in_two_places_names_both_and_the_way_out(two_shards):
    for shard in ("00000", "00001"):
        keys = ["0002", "0000"]  # in another order, one missing
        write_table(two_shards / f"src/{shard}.parquet", {"key": keys, "width": [30, 10]})
    source = opened(two_shards)
    with refused("column 'width' of src is in ") as caught:
        source.resolve(["width"])
    for said in ("scores/src/image and ", "src/00000.parquet", "write image.width or src.width"):
        assert said in str(caught.value)
    assert read(source, "src.width")["src.width"].to_list() == [10, None, 30] * 2
    assert read(source, "image.width")["image.width"].to_list() == [1, 2, 3] * 2


def test_a_key_that_a_table_has_twice_does_not_multiply_samples(two_shards):
    for shard in ("00000", "00001"):
        table = {"key": ["0001", "0001", "0009"], "safe": [True, True, False]}
        write_table(two_shards / f"src/{shard}.parquet", table)
    assert read(opened(two_shards), "safe")["safe"].to_list() == [None, True, None] * 2


def test_keys_that_lost_their_zeros_meet_no_sample_and_are_told(two_shards):
    write_table(two_shards / "src" / "00000.parquet", {"key": [0, 1, 2], "own": [1.0, 2.0, 3.0]})
    write_table(two_shards / "src" / "00001.parquet", {"key": [0, 1, 2], "own": [1.0, 2.0, 3.0]})
    with refused("one of its keys is 0, one of the shard's 0000;"):
        read(opened(two_shards), "own")


def test_tables_of_another_download_are_refused(two_shards):
    # The keys are the same, the samples are not: 0000 is unknown there, 0001 is another one.
    for shard, first in (("00000", 0), ("00001", 1000)):
        own = [None, uid(first + 1).upper(), uid(first + 2), uid(7)]
        table = {"key": ["0000", "0001", "0002", "0009"], "safe": [True, False, True, False]}
        write_table(two_shards / f"src/{shard}.parquet", {**table, "uid": own})
    assert read(opened(two_shards), "safe")["safe"].to_list() == [True, False, True] * 2
    write_table(two_shards / "src/00001.parquet", {**table, "uid": [None, uid(5), uid(6), uid(7)]})
    with refused("2 samples of shard 00001") as caught:
        read(opened(two_shards), "safe")
    for said in ("src/00001.parquet", "0001", uid(5), uid(1001), "same download"):
        assert said in str(caught.value)
    assert len(read(opened(two_shards), "width")) == 6


@pytest.mark.parametrize("numbers", [False, True])
def test_a_sample_without_a_uid_of_its_own_takes_that_of_no_table(tmp_path, numbers):
    own = ["00000/0000", "7"]
    add_scores(tmp_path, "clip", "00000", {"uid": own, "clip_similarity": [0.5, 0.6]})
    uids = [7, 7] if numbers else [uid(0), "7"]
    table = {"key": ["0000", "0001"], "uid": uids, "safe": [True, False]}
    write_table(tmp_path / "src/00000.parquet", table)
    assert read(opened(tmp_path), "safe")["safe"].to_list() == [True, False]


def test_released_scores_of_another_download_are_refused(two_shards):
    for shard in ("00000", "00001"):
        table = {"key": ["0000"], "uid": [uid(9)], "semantic_understanding_score": ["85"]}
        write_table(two_shards / f"src/{shard}_semantic_understanding.parquet", table)
    with refused(f"1 samples of shard 00000, the first is key 0000: uid {uid(9)} there"):
        read(opened(two_shards), "semantic_understanding")


def test_shards_without_the_table_asked_for_are_told(two_shards):
    write_table(two_shards / "src/00000.parquet", {"key": ["0000"], "safe": [True]})
    with refused("1 shards of src have no table like "):
        opened(two_shards).resolve(["safe"])


@pytest.mark.parametrize("beside", [True, False])
def test_released_scores_are_read_exactly(two_shards, beside):
    folder = two_shards / ("src" if beside else "released")
    for shard in ("00000", "00001"):
        scores = ["85\nfor it says more", "100", "a lot"]
        table = {"key": ["0000", "0001", "0002"], "semantic_understanding_score": scores}
        write_table(folder / f"{shard}_semantic_understanding.parquet", table)
    source = opened(two_shards, tables=() if beside else (folder,))
    found = read(source, "semantic_understanding")
    assert found["semantic_understanding"].to_list() == [85, 100, None] * 2
    assert source.unparsed == {"semantic_understanding": 2}
    raw = read(source, "semantic_understanding_score")["semantic_understanding_score"]
    assert raw.to_list() == scores * 2


@given(st.text("0159 ,;\n\r\tx-+.", max_size=6))
def test_a_score_is_a_whole_number_alone_on_the_first_line(text):
    first = text.split("\n")[0].strip(" \t\r,;")
    plain = re.fullmatch("[0-9]{1,3}", first) and int(first) <= 100
    frame = pl.DataFrame({"a": [text]}).select(read_scores(pl.col("a")))
    assert frame["a"].to_list() == [int(first) if plain else None]


@pytest.mark.parametrize(
    ("text", "score"),
    [("100", 100), ("0", 0), ("85,", 85), ("101", None), ("-5", None), ("85.0", None), ("", None)],
)
def test_scores_at_the_edge(text, score):
    assert pl.DataFrame({"a": [text]}).select(read_scores(pl.col("a")))["a"].to_list() == [score]


def test_metadata_is_joined_by_uid_wherever_it_stands(two_shards, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.frames.ROWS", 2)
    rows = [1002, 7, 0, 0, 2]
    table = {"uid": [uid(n) for n in rows], "score": [5.0, 6.0, 7.0, 8.0, None]}
    folder = two_shards / "dc-meta"
    write_table(folder / "a.parquet", {k: v[:3] for k, v in table.items()}, row_group_size=1)
    write_table(folder / "b.parquet", {k: v[3:] for k, v in table.items()})
    source = opened(two_shards, tables=(folder,))
    # Of two rows with one uid the first counts.
    assert read(source, "score")["score"].to_list() == [7.0, None, None, None, None, 5.0]
    assert read(source, "dc_meta.score", "width")["width"].to_list() == [1, 2, 3] * 2
    assert source.brought["dc_meta"].duplicates == 1


def test_tables_whose_name_is_taken_are_called_metadata(two_shards):
    tables = []
    for number, above in enumerate(("metadata", "more", "scores")):
        metric = "semantic_understanding" if above == "scores" else "dc"
        path = two_shards / f"here/{above}/{'image' if metric == 'dc' else metric}.parquet"
        tables.append(write_table(path, {"uid": [uid(0)], "width": [number]}))
    again = write_table(two_shards / "again/semantic_understanding.parquet", {"uid": [uid(0)]})
    source = opened(two_shards, tables=(*tables, again))
    # The scorer image has the name that the first two files would have.
    metrics = ["semantic_understanding", "semantic_understanding_"]
    assert list(source.brought) == ["metadata", "metadata_", *metrics]
    assert read(source, "metadata.width")["metadata.width"].to_list()[:2] == [0, None]
    with refused("write image.width or metadata.width or metadata_.width or semantic_und"):
        source.resolve(["width"])


def test_uids_that_are_not_hex_are_joined_too(tmp_path):
    add_scores(tmp_path, "clip", "00000", {"uid": ["00000/a", "b"], "clip_similarity": [1.0, 2.0]})
    file = write_table(tmp_path / "more.parquet", {"uid": ["b", "c"], "label": ["x", "y"]})
    found = read(opened(tmp_path, tables=(file,)), "label", "more.label")
    assert found["label"].to_list() == found["more.label"].to_list() == [None, "x"]


def test_how_often_a_caption_occurs_is_counted_over_the_whole_source(tmp_path, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.spines.SHARDS", 1)
    rng = np.random.default_rng(0)
    hashes = [[int(h) for h in rng.integers(0, 6, 9)] + [2**64 - 1 - n, None] for n in range(3)]
    for number, own in enumerate(hashes):
        columns = {"caption_hash": pa.array(own, pa.uint64()), "text_error": [None] * 11}
        add_scores(tmp_path, "text", f"{number:05d}", columns, rejects={"bad_json": 2})
    source = opened(tmp_path)
    often = Counter(h for own in hashes for h in own)
    expected = [None if h is None else often[h] for own in hashes for h in own]
    assert read(source, "caption_frequency")["caption_frequency"].to_list() == expected
    assert source.spine.rejects == {"bad_json": 6}


def test_all_captions_may_be_different_or_unknown(tmp_path):
    for source, hashes in (("a", [1, 2]), ("b", [None, None])):
        columns = {"caption_hash": pa.array(hashes, pa.uint64())}
        add_scores(tmp_path, "text", "00000", columns, source=source)
        expected = [1 if value else None for value in hashes]
        found = read(opened(tmp_path, source), "caption_frequency")
        assert found["caption_frequency"].to_list() == expected


def test_shards_that_no_scorer_saw_are_walked(tmp_path):
    files = {"a.jpg": b"1", "a.txt": b"one", "a.json": b'{"uid": "me"}', "b.txt": b"no image"}
    write_tar(tmp_path / "src" / "00000.tar", {**files, "c.jpg": b"2", "c.txt": b"two"})
    source = opened(tmp_path)
    (piece,) = source.pieces({})
    assert piece.rows() == [("00000", "a", "me"), ("00000", "c", "00000/c")]
    assert source.spine.rejects == {"missing_image": 1}


def test_a_source_may_be_tables_alone(tmp_path, monkeypatch):
    monkeypatch.setattr("openqwen2vl.curation.selection.frames.ROWS", 3)
    uids = [uid(0), None, uid(2), uid(3)]
    for name in ("aa", "bb"):
        columns = {"uid": uids, "score": [1, 2, 3, 4], "key": ["own"] * 4, "row": [0] * 4}
        write_table(tmp_path / "src" / f"{name}.parquet", columns, row_group_size=2)
    found = read(opened(tmp_path), "score", "row")
    assert found["shard"].to_list() == ["aa"] * 4 + ["bb"] * 4
    assert found["key"].to_list() == [f"{n:09d}" for n in range(4)] * 2
    assert found["uid"].to_list()[:4] == [uid(0), "aa/000000001", uid(2), uid(3)]
    assert found["score"].to_list() == [1, 2, 3, 4] * 2


@pytest.mark.parametrize("start", [0, 1, 998, 999, 1000, 12_345, 999_998, 10**9 - 3, 10**9 - 1])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 1000, 2001])
def test_a_row_has_its_number_for_a_key(start, count):
    expected = [f"{n:09d}" for n in range(start, start + count)]
    assert row_keys(start, count).to_list() == expected


def test_released_scores_alone_are_rows_and_beside_others_are_joined(tmp_path):
    uids = [uid(0), uid(1)]
    for metric in ("image_text_matching", "semantic_understanding"):
        columns = {"uid": uids, f"{metric}_score": ["85", "100" if metric[0] == "s" else "x"]}
        write_table(tmp_path / f"src/00000_{metric}.parquet", columns)
    found = read(opened(tmp_path), "image_text_matching", "semantic_understanding")
    assert found["shard"].to_list() == ["00000_image_text_matching"] * 2
    write_table(tmp_path / "src/00000.parquet", {"uid": uids[::-1]})
    found = read(opened(tmp_path), "image_text_matching", "semantic_understanding")
    assert found["shard"].to_list() == ["00000"] * 2
    assert found["semantic_understanding"].to_list() == [100, 85]
    assert found["image_text_matching"].to_list() == [None, 85]


def test_tables_that_cannot_be_joined_or_read_are_told(two_shards, tmp_path):
    file = write_table(tmp_path / "x.parquet", {"id": [1]})
    with refused("x.parquet has the columns id; expected a uid of text"):
        opened(two_shards, tables=(file,))
    with refused("no .parquet at "):
        opened(two_shards, tables=(tmp_path / "gone",))
    file.write_bytes(b"PAR1 and no more")
    with refused("x.parquet cannot be read"):
        opened(two_shards, tables=(file,))
    with refused("no folder"):
        open_source("x", tmp_path / "gone", tmp_path)
    (tmp_path / "empty").mkdir()
    with refused("holds neither .tar nor .parquet"):
        open_source("x", tmp_path / "empty", tmp_path)


def test_files_of_one_table_with_other_columns_are_told(tmp_path):
    write_table(tmp_path / "src" / "a.parquet", {"uid": [uid(0)], "score": [1]})
    write_table(tmp_path / "src" / "b.parquet", {"uid": [uid(1)], "scores": [1]})
    with refused("b.parquet has no column score; it has uid, scores"):
        read(opened(tmp_path), "score")
    write_table(tmp_path / "src" / "b.parquet", {"uid": [uid(1)], "score": [1.5]})
    assert read(opened(tmp_path), "score")["score"].to_list() == [1, 1.5]
