import json
import random
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.shards import picture

from openqwen2vl.formats.cells import CellReader, cell_path, is_cell, spill
from openqwen2vl.formats.documents import IMAGE, Document, ImageRef, Turn
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.parquet import ParquetShard, parquet_shards, read_parquet_shard
from openqwen2vl.formats.rejects import REASONS, Reject
from openqwen2vl.packing.pictures import ImageBytes

RNG = random.Random(0)
PICTURES = [picture(RNG, format=f) for f in ("JPEG", "PNG", "WEBP", "JPEG", "GIF")]
ANSWER = {"from": "gpt", "value": "Red."}
BYTES = pa.struct({"bytes": pa.binary(), "path": pa.string()})


def turns(num_images=1, text="What?"):
    return [{"from": "human", "value": "<image>\n" * num_images + text}, ANSWER]


def write(path, columns, types=None, **options):
    types = types or {}
    table = pa.table({name: pa.array(v, types.get(name)) for name, v in columns.items()})
    pq.write_table(table, path, **options)
    return path


def read(path, image_root=None):
    return list(read_parquet_shard(ParquetShard(path, image_root), "src"))


def originals(document):
    reader = ImageBytes()
    try:
        return [reader.read(image) for image in document.images]
    finally:
        reader.close()


def test_a_struct_of_bytes_and_path_is_an_image(tmp_path):
    cells = [{"bytes": data, "path": "a.JPG"} for data in PICTURES]
    path = write(
        tmp_path / "a.parquet", {"image": cells, "conversations": [turns()] * 5, "id": ["same"] * 5}
    )
    documents = read(path)
    assert [originals(d) for d in documents] == [[data] for data in PICTURES]
    assert [d.images[0].extension for d in documents] == ["jpg", "png", "webp", "jpg", "img"]
    assert [d.uid for d in documents] == [f"a/{row:09d}" for row in range(5)]
    assert documents[0].turns[0] == Turn("user", (IMAGE, "\nWhat?"))


@pytest.mark.parametrize("kind", [pa.list_(BYTES), pa.list_(pa.binary())])
def test_a_list_of_images_keeps_its_order(tmp_path, kind):
    structs = kind.value_type == BYTES
    cells = [[{"bytes": d, "path": None} if structs else d for d in PICTURES], [], None]
    columns = {"images": cells, "conversations": [turns(5), turns(0), turns(0)]}
    several, empty, null = read(write(tmp_path / "a.parquet", columns, {"images": kind}))
    assert originals(several) == PICTURES
    assert empty.images == null.images == ()


def test_raw_binary_is_an_image_and_null_is_none(tmp_path):
    columns = {"image": [PICTURES[0], None], "conversations": [turns(), turns(0)]}
    first, second = read(write(tmp_path / "a.parquet", columns))
    assert originals(first) == PICTURES[:1]
    assert second.images == ()


def test_messages_and_turns_written_as_json_are_read(tmp_path):
    content = [{"type": "image", "text": None}, {"type": "text", "text": "What?"}]
    messages = [{"role": "user", "content": content}]
    answer = [{"type": "text", "text": "Red."}]
    messages.append({"role": "assistant", "content": answer})
    listed = write(
        tmp_path / "a.parquet", {"image": [PICTURES[0]], "messages": [messages], "uid": ["me"]}
    )
    written = write(
        tmp_path / "b.parquet",
        {"image": [PICTURES[0]], "conversations": [json.dumps(turns())], "uid": [7]},
    )
    (first,), (second,) = read(listed), read(written)
    assert first.turns == second.turns == tuple([Turn("user", (IMAGE, "\nWhat?")), first.turns[1]])
    assert (first.uid, second.uid) == ("me", "7")


def test_a_path_stands_for_a_file_under_the_image_root(tmp_path):
    (tmp_path / "coco").mkdir()
    (tmp_path / "coco" / "a.jpg").write_bytes(PICTURES[0])
    structs = [{"bytes": None, "path": "coco/a.jpg"}, {"bytes": PICTURES[1], "path": "gone"}]
    path = write(tmp_path / "a.parquet", {"image": structs, "conversations": [turns()] * 2})
    by_file, by_bytes = read(path, tmp_path)
    assert originals(by_file) == PICTURES[:1]
    assert not is_cell(by_file.images[0])
    assert originals(by_bytes) == PICTURES[1:2]
    without, _ = read(path)
    assert without.reason == "missing_image"
    assert "image_root is not given" in without.detail
    names = write(tmp_path / "b.parquet", {"image": ["coco/a.jpg"], "conversations": [turns()]})
    assert originals(*read(names, tmp_path)) == PICTURES[:1]


def test_pages_of_text_are_captions(tmp_path):
    truth = json.dumps({"gt_parse": {"text_sequence": "two words"}})
    columns = {"image": [PICTURES[0]], "ground_truth": [truth]}
    (document,) = read(write(tmp_path / "a.parquet", columns))
    assert document.turns == (Turn("caption", (IMAGE, "two words")),)
    assert originals(document) == PICTURES[:1]


def test_each_bad_row_is_rejected_for_its_reason_and_the_rest_is_read(tmp_path):
    image = {"bytes": PICTURES[0], "path": None}
    rows = [
        (image, json.dumps(turns()), None),
        ({"bytes": None, "path": None}, json.dumps(turns()), "missing_image"),
        ({"bytes": b"", "path": None}, json.dumps(turns()), "missing_image"),
        (image, json.dumps(turns(2)), "image_count"),
        (None, json.dumps(turns(1)), "image_count"),
        (image, json.dumps(turns()[:1]), "no_answer"),
        (image, "[{broken", "bad_json"),
        (image, '[{"from": "human", "value": "\\ud800"}]', "bad_json"),
        (image, "5", "bad_conversation"),
        (image, None, "missing_text"),
        (image, json.dumps(turns()), None),
    ]
    columns = {"image": [r[0] for r in rows], "conversations": [r[1] for r in rows]}
    items = read(write(tmp_path / "a.parquet", columns, row_group_size=4))
    assert [getattr(item, "reason", None) for item in items] == [reason for *_, reason in rows]
    assert {item.reason for item in items if isinstance(item, Reject)} <= set(REASONS)
    assert [item.key for item in items] == [f"{row:09d}" for row in range(len(rows))]


def test_text_that_is_not_utf8_costs_its_own_row(tmp_path):
    texts = pa.array([json.dumps(turns(0)).encode(), b"\xff\xfe"], pa.binary())
    broken = pa.StringArray.from_buffers(2, texts.buffers()[1], texts.buffers()[2])
    path = write(tmp_path / "a.parquet", {"conversations": broken})
    good, bad = read(path)
    assert isinstance(good, Document)
    assert bad.reason == "bad_text"


def test_a_file_that_is_no_parquet_is_one_reject(tmp_path):
    for number, content in enumerate((b"", b"PAR1 not really")):
        path = tmp_path / f"{number}.parquet"
        path.write_bytes(content)
        (rest,) = read(path)
        assert (rest.reason, rest.key, rest.uid) == ("truncated_shard", "", str(number))
        assert "cannot be opened" in rest.detail


def test_a_damaged_row_group_costs_its_rows_alone(tmp_path):
    columns = {"image": PICTURES[:4], "conversations": [turns()] * 4}
    path = write(tmp_path / "a.parquet", columns, row_group_size=2, compression="snappy")
    group = pq.ParquetFile(path).metadata.row_group(0)
    chunk = next(
        group.column(k)
        for k in range(group.num_columns)
        if group.column(k).path_in_schema == "image"
    )
    data = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start : start + chunk.total_compressed_size] = bytes(chunk.total_compressed_size)
    path.write_bytes(data)
    rest, *documents = read(path)
    assert (rest.reason, rest.key) == ("truncated_shard", "")
    assert "from row 0 to 1" in rest.detail
    assert [originals(d) for d in documents] == [[data] for data in PICTURES[2:4]]
    assert [d.key for d in documents] == ["000000002", "000000003"]


def test_a_file_without_turns_or_a_missing_one_is_told(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": PICTURES, "question": ["x"] * 5})
    with pytest.raises(ShardError, match="has the columns image, question; expected one of conv"):
        read(path)
    with pytest.raises(ShardError, match=r"parquet file .*gone\.parquet is missing"):
        read(tmp_path / "gone.parquet")
    with pytest.raises(ShardError, match=r"no file or folder .*gone"):
        parquet_shards(tmp_path / "gone")
    with pytest.raises(ShardError, match=r"image_root is .*nowhere, which is no folder"):
        parquet_shards(path, tmp_path / "nowhere")


@settings(deadline=None, max_examples=20, suppress_health_check=[HealthCheck.differing_executors])
@given(
    st.lists(st.lists(st.binary(min_size=1, max_size=300), max_size=3), min_size=1, max_size=30),
    st.integers(1, 8),
    st.sampled_from(["snappy", "zstd", "none"]),
    st.integers(1, 2000),
    st.randoms(use_true_random=False),
)
def test_any_order_of_reading_gives_the_stored_bytes(
    tmp_path_factory, rows, group_size, compression, most_bytes, rng
):
    folder = tmp_path_factory.mktemp("tables")
    columns = {"images": rows, "conversations": [turns(len(row)) for row in rows]}
    path = write(
        folder / "a.parquet",
        columns,
        {"images": pa.list_(pa.binary())},
        row_group_size=group_size,
        compression=compression,
    )
    documents = read(path)
    wanted = [
        (image, data)
        for document, row in zip(documents, rows, strict=True)
        for image, data in zip(document.images, row, strict=True)
    ]
    assert all(image.size == len(data) for image, data in wanted)
    rng.shuffle(wanted)
    reader = CellReader(most_bytes)
    assert all(reader.read(image) == data for image, data in wanted)
    reader.close()


def test_little_is_kept_and_row_groups_are_read_once_in_order(tmp_path, monkeypatch):
    columns = {
        "image": [bytes([n]) * 1000 for n in range(1, 101)],
        "conversations": [turns()] * 100,
    }
    path = write(tmp_path / "a.parquet", columns, row_group_size=10)
    asked = []
    real = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile,
        "read_row_group",
        lambda self, group, columns: asked.append(group) or real(self, group, columns),
    )
    reader = CellReader(most_bytes=25_000)
    for document in read(path):
        reader.read(document.images[0])
        assert sum(kept.nbytes for kept in reader._kept.values()) <= 25_000
    assert asked == list(range(10))


def test_a_table_that_changed_or_went_away_is_told(tmp_path):
    path = write(tmp_path / "a.parquet", {"image": PICTURES, "conversations": [turns()] * 5})
    image = read(path)[3].images[0]
    with pytest.raises(ShardError, match="changed after it was scanned"):
        CellReader().read(replace(image, size=image.size + 1))
    write(path, {"image": PICTURES[:2], "conversations": [turns()] * 2})
    with pytest.raises(ShardError, match="at row 3 where there were"):
        CellReader().read(image)
    write(path, {"conversations": [turns()] * 5})
    with pytest.raises(ShardError, match="changed after it was scanned"):
        CellReader().read(image)
    path.unlink()
    with pytest.raises(ShardError, match="went away"):
        CellReader().read(image)


def test_spilled_images_are_plain_bytes_of_a_file(tmp_path):
    (tmp_path / "f.jpg").write_bytes(PICTURES[1])
    path = write(tmp_path / "a.parquet", {"image": PICTURES, "conversations": [turns()] * 5})
    document = read(path)[2]
    plain = ImageRef(str(tmp_path / "f.jpg"), 0, len(PICTURES[1]), "jpg")
    mixed = replace(document, images=(*document.images, plain))
    with (tmp_path / "scan.images").open("wb") as file:
        file.write(b"before")
        spilled = spill(mixed, CellReader(), file)
        untouched = replace(document, images=(plain,))
        assert spill(untouched, CellReader(), file) is untouched
    assert spilled.images[0] == ImageRef(str(tmp_path / "scan.images"), 6, len(PICTURES[2]), "webp")
    assert spilled.images[1] == plain
    assert originals(spilled) == [PICTURES[2], PICTURES[1]]
    assert replace(spilled, images=()) == replace(mixed, images=())


def test_an_address_keeps_marks_and_dots_of_its_folder(tmp_path):
    folder = tmp_path / "a#b.parquet.d" / "c"
    folder.mkdir(parents=True)
    path = write(folder / "x.parquet", {"image": PICTURES[:1], "conversations": [turns()]})
    (document,) = read(path)
    assert document.images[0].path == cell_path(path, "image", 0) == f"{path}#image/0"
    assert originals(document) == PICTURES[:1]
