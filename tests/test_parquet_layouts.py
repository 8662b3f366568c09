import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.packs import pack
from support.shards import picture, tiny_tokenizer
from support.verified import told

from openqwen2vl.formats.documents import IMAGE, Document, Turn
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.parquet import ParquetShard, read_parquet_shard
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.pictures import ImageBytes
from openqwen2vl.packing.proof.verify import VerifyRequest, verify

RNG = random.Random(0)
PICTURES = [picture(RNG) for _ in range(4)]
PAGE = {"texts": ["one", None, "two", None], "images": [None, PICTURES[0], None, PICTURES[1]]}


def write(path: Path, rows: list[dict[str, object]]) -> ParquetShard:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path)
    return ParquetShard(path)


def originals(document: Document) -> list[bytes]:
    with ImageBytes() as read:
        return [read.read(image) for image in document.images]


@pytest.mark.parametrize(("text", "image"), [("caption", "jpg"), ("text", "image")])
def test_captions_are_read(tmp_path: Path, text: str, image: str) -> None:
    rows = [{text: "a cat", image: PICTURES[0], "uid": "u"}, {text: " ", image: PICTURES[1]}]
    first, empty, alone = read_parquet_shard(
        write(tmp_path / "a.parquet", [*rows, {text: "a dog", image: None}]), "s"
    )
    assert isinstance(first, Document)
    assert (first.uid, first.turns) == ("u", (Turn("caption", (IMAGE, "a cat")),))
    assert originals(first) == PICTURES[:1]
    assert isinstance(empty, Reject)
    assert isinstance(alone, Reject)
    assert (empty.reason, alone.reason) == ("empty_caption", "missing_image")


def test_pairs_of_question_and_answer_are_conversations(tmp_path: Path) -> None:
    pairs = [{"user": "what <image>?", "assistant": "a cat"}, {"user": "sure?", "assistant": "yes"}]
    rows = [{"texts": pairs, "images": PICTURES[:2]}, {"texts": pairs[:1], "images": []}]
    rows.append({"texts": [{"user": "why?", "assistant": None}], "images": []})
    two, none, silent = read_parquet_shard(write(tmp_path / "a.parquet", rows), "s")
    assert isinstance(two, Document)
    # The letters of a mark are text here: all images come first.
    assert two.turns == (
        Turn("user", (IMAGE, IMAGE, "\nwhat <image>?")),
        Turn("assistant", ("a cat",)),
        Turn("user", ("sure?",)),
        Turn("assistant", ("yes",)),
    )
    assert originals(two) == PICTURES[:2]
    assert isinstance(none, Document)
    assert none.images == ()
    assert isinstance(silent, Reject)
    assert silent.reason == "bad_conversation"


def test_pages_are_read_by_their_rules(tmp_path: Path) -> None:
    shard = write(tmp_path / "a.parquet", [PAGE])
    (page,) = read_parquet_shard(shard, "s")
    assert isinstance(page, Document)
    assert page.turns == (Turn("interleaved", ("one", IMAGE, "two", IMAGE)),)
    assert originals(page) == PICTURES[:2]
    (dropped,) = read_parquet_shard(shard, "s", InterleavedRules(trailing_images="drop"))
    assert isinstance(dropped, Document)
    assert originals(dropped) == PICTURES[:1]
    (rejected,) = read_parquet_shard(shard, "s", InterleavedRules(min_images=3))
    assert isinstance(rejected, Reject)
    assert rejected.reason == "image_count"


def test_tables_of_every_layout_are_packed_and_verified(tmp_path: Path) -> None:
    raw, packs = tmp_path / "raw", tmp_path / "packs"
    write(raw / "a.parquet", [{"caption": f"a cat {i}", "jpg": PICTURES[i % 4]} for i in range(9)])
    write(raw / "b.parquet", [PAGE] * 5)
    pairs = [{"user": "what?", "assistant": "a cat"}]
    write(raw / "c.parquet", [{"texts": pairs, "images": PICTURES[:n]} for n in range(1, 4)])
    rules = InterleavedRules(trailing_images="drop")
    pack(raw, packs, tiny_tokenizer(tmp_path / "tokenizer"), rules=rules)
    found = verify(VerifyRequest(input=raw, packs=(packs,), deep=True))
    assert told(found) == ""
    assert (found.packed, found.images) == (17, 9 + 5 + 6)
    assert found.bytes > 0
