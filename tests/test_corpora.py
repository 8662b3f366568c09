import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shards import picture, write_caption_shard, write_conversation_shard, write_tar

from openqwen2vl.formats.corpora import open_corpus, read_shard, shard_path
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.rejects import Reject

TURNS = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]


def read(path, image_root=None):
    return [i for shard in open_corpus(path, image_root) for i in read_shard(shard, "s")]


def write_parquet(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"conversations": [TURNS] * rows}), path)


def test_a_folder_of_tars_is_read_as_raw_shards(tmp_path):
    write_caption_shard(tmp_path / "00000.tar", 3)
    write_conversation_shard(tmp_path / "00001.tar", 3, seed=1)
    expected = [d for n in range(2) for d in read_raw_shard(tmp_path / f"0000{n}.tar", "s")]
    assert read(tmp_path) == expected
    assert read(tmp_path / "00001.tar") == expected[3:]


def test_a_folder_of_parquet_files_is_read_by_name(tmp_path):
    for name in ("b", "a"):
        write_parquet(tmp_path / f"{name}.parquet", 2)
    assert [d.uid for d in read(tmp_path)] == [f"{n}/{k:09d}" for n in "ab" for k in range(2)]
    assert [d.shard for d in read(tmp_path / "b.parquet")] == ["b", "b"]


def test_tables_beside_tars_are_img2datasets_own(tmp_path):
    write_caption_shard(tmp_path / "00000.tar", 3)
    write_parquet(tmp_path / "00000.parquet", 2)
    assert [shard_path(shard) for shard in open_corpus(tmp_path)] == [tmp_path / "00000.tar"]


def test_a_listing_is_read_as_before(tmp_path):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps({"conversations": TURNS}) for _ in range(3)))
    assert all(isinstance(item, Document) for item in read(path, tmp_path))
    assert {shard_path(shard) for shard in open_corpus(path, tmp_path)} == {path}


def test_the_rules_reach_the_shards_that_they_are_for(tmp_path):
    page = {"parts": [{"type": "text", "text": "a"}, {"type": "image"}]}
    files = {"k.json": json.dumps(page).encode(), "k.0.jpg": picture(random.Random(0))}
    write_tar(tmp_path / "0.tar", files)
    (shard,) = open_corpus(tmp_path)
    (kept,) = read_shard(shard, "s")
    (left,) = read_shard(shard, "s", InterleavedRules(trailing_images="reject"))
    assert isinstance(kept, Document)
    assert isinstance(left, Reject)


def test_what_is_no_corpus_is_told(tmp_path):
    with pytest.raises(ShardError, match=r"no folder .*gone"):
        open_corpus(tmp_path / "gone")
    with pytest.raises(ShardError, match=r"no file or folder .*gone\.parquet"):
        open_corpus(tmp_path / "gone.parquet")
    with pytest.raises(ShardError, match=r"holds no \.tar and no \.parquet"):
        open_corpus(tmp_path)
    (tmp_path / "data.csv").write_text("a")
    with pytest.raises(ShardError, match=r"data\.csv is no \.tar, \.parquet, \.json or \.jsonl"):
        open_corpus(tmp_path / "data.csv")
