import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.packs import contents, pack
from support.shards import picture, tiny_tokenizer

from openqwen2vl.formats.cells import CellReader
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.shards import write_shards
from openqwen2vl.packing.writer import pack_folder

RNG = random.Random(0)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def tables(tmp_path):
    """Two files of 60 conversations with one or two images; gives the images by uid."""
    images = {}
    (tmp_path / "raw").mkdir()
    for number in range(2):
        rows = []
        for row in range(60):
            uid = f"{number}-{row}"
            images[uid] = [picture(RNG) for _ in range(1 + row % 2)]
            words = "word " * RNG.randrange(1, 30)
            turns = [
                {"from": "human", "value": "<image>\n" * len(images[uid]) + words},
                {"from": "gpt", "value": "Red."},
            ]
            rows.append({"uid": uid, "images": images[uid], "conversations": json.dumps(turns)})
        table = pa.Table.from_pylist(rows)
        pq.write_table(table, tmp_path / "raw" / f"{number}.parquet", row_group_size=7)
    return images


def test_a_folder_of_tables_is_packed_with_its_images_as_they_are(tables, tokenizer, tmp_path):
    manifest = pack(tmp_path / "raw", tmp_path / "out", tokenizer, packs_per_shard=5)
    assert len(manifest.shards) > 2
    packs = PackFolder(tmp_path / "out")
    found = {}
    for number in range(len(packs)):
        one = packs.read(number)
        images = iter(one.images)
        for document in one.documents:
            found[document["uid"]] = [next(images) for _ in range(document["images"])]
    assert found == tables
    assert not (tmp_path / "out" / ".work").exists()


def test_row_groups_are_read_once_however_many_packed_shards_need_them(
    tables, tokenizer, tmp_path, monkeypatch
):
    asked, read = [], CellReader.read
    monkeypatch.setattr(CellReader, "read", lambda self, i: asked.append(i) or read(self, i))
    pack(tmp_path / "raw", tmp_path / "out", tokenizer, packs_per_shard=2)
    assert len(asked) == sum(map(len, tables.values()))
    assert [(i.path.split("#")[0], i.offset) for i in asked] == sorted(
        (i.path.split("#")[0], i.offset) for i in asked
    )


def test_a_table_that_changes_before_writing_is_told(tables, tokenizer, tmp_path):
    def change(function, items):
        if function is write_shards:
            path = tmp_path / "raw" / "0.parquet"
            path.write_bytes(path.read_bytes()[:-9])
        return map(function, items)

    spec = make_spec(tokenizer, 256, 4, "qwen2_5")
    request = PackRequest(input=tmp_path / "raw", out=tmp_path / "out", source="tiny", spec=spec)
    with pytest.raises(ShardError, match=r"0\.parquet.* changed"):
        pack_folder(request, tokenizer, change)
    assert not list((tmp_path / "out" / ".work" / "train").glob("images-*"))


def test_a_new_start_after_the_images_were_copied_gives_the_same_bytes(tables, tokenizer, tmp_path):
    pack(tmp_path / "raw", tmp_path / "unbroken", tokenizer, packs_per_shard=5)

    def stop(function, items):
        if function is write_shards:
            (group,) = items
            group.spill.parent.mkdir(exist_ok=True)
            group.spill.write_bytes(b"half of them")
            raise KeyboardInterrupt
        return map(function, items)

    spec = make_spec(tokenizer, 256, 4, "qwen2_5")
    out = tmp_path / "out"
    request = PackRequest(
        input=tmp_path / "raw", out=out, source="tiny", spec=spec, packs_per_shard=5
    )
    with pytest.raises(KeyboardInterrupt):
        pack_folder(request, tokenizer, stop)
    pack_folder(request, tokenizer)
    assert contents(out) == contents(tmp_path / "unbroken")
