from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.shards import write_caption_shard
from support.verified import (
    check,
    documents,
    make,
    rewrite_index,
    rewrite_manifest,
    rewrite_pack,
    told,
)

from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.tar import members
from openqwen2vl.packing.index import Index, IndexRow


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    """Two raw shards with every kind of document, packed with a validation split."""
    return make(tmp_path)


def test_a_missing_document_is_named(made: SimpleNamespace) -> None:
    def forget(content: dict[str, list[dict[str, object]]]) -> None:
        content["documents"].pop(0)

    name = next(iter(documents(made.packs, 2)))
    rewrite_pack(made.packs, 2, forget)
    found = check(made)
    assert found.faults.counts["missing"] == 1
    assert f"{name['shard']}/{name['key']} (uid {name['uid']}) is in no pack" in told(found)


def test_a_document_packed_twice_is_named(made: SimpleNamespace) -> None:
    def named(document: dict[str, object]) -> tuple[object, ...]:
        return tuple(document[k] for k in ("uid", "shard", "key"))

    def repeat(content: dict[str, list[dict[str, object]]]) -> None:
        short, long = sorted(content["documents"][:2], key=lambda d: len(str(named(d))))
        lost.append(dict(long))
        long.update(zip(("uid", "shard", "key"), named(short), strict=True))

    lost: list[dict[str, object]] = []
    number = next(n for n in range(9) if len(documents(made.packs, n)) > 1)
    rewrite_pack(made.packs, number, repeat)
    found = check(made)
    assert found.faults.counts["duplicate"] == found.faults.counts["missing"] == 1
    assert "is there a second time" in told(found)
    assert f"{lost[0]['shard']}/{lost[0]['key']}" in told(found)


def test_an_unknown_document_is_named(made: SimpleNamespace) -> None:
    def rename(content: dict[str, list[dict[str, object]]]) -> None:
        content["documents"][0]["uid"] = "x"

    rewrite_pack(made.packs, 0, rename)
    found = check(made)
    assert found.faults.counts["unknown"] == found.faults.counts["missing"] == 1
    assert "(uid x) in pack 0 of" in told(found)
    assert "is not in the corpus" in told(found)
    assert found.faults.counts["uids"] >= 1


def test_a_pack_that_is_gone_is_told_with_itsdocuments(made: SimpleNamespace) -> None:
    gone = documents(made.packs, 8)
    rewrite_index(made.packs, lambda rows: rows.pop(8))
    found = check(made)
    assert found.faults.counts["missing"] == len(gone)
    assert all(f"(uid {document['uid']})" in told(found) for document in gone[:5])
    assert "the manifest says" in told(found)


@pytest.mark.parametrize("by", ["cut", "removed"])
def test_a_damaged_packed_shard_is_named(made: SimpleNamespace, by: str) -> None:
    path = made.packs / "packed-000001.tar"
    if by == "cut":
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2])
    else:
        path.unlink()
    found = check(made, deep=True)
    assert str(path) in told(found)
    assert found.faults.counts["missing"] > 0


def test_swapped_image_bytes_of_one_size_need_the_deep_look(made: SimpleNamespace) -> None:
    index = Index.load(made.packs)
    path, at = made.packs / index.shards[0], int(index.image_offsets[0])
    data = bytearray(path.read_bytes())
    data[at + 40] ^= 1
    path.write_bytes(data)
    assert told(check(made)) == ""
    found = check(made, deep=True)
    assert dict(found.faults.counts) == {"packed shard": 1, "images": 1}
    assert "has other bytes in" in told(found)
    assert "sha256" in told(found)


def test_a_change_of_the_corpus_is_found(made: SimpleNamespace) -> None:
    path = made.raw / "00000.tar"
    data = bytearray(path.read_bytes())
    image = next(member for member in members(bytes(data)) if member.name.endswith("0007.jpg"))
    data[image.offset + 50] ^= 1
    path.write_bytes(data)
    assert told(check(made)) == ""
    assert "image 0 of 00000/000000007" in told(check(made, deep=True))
    # One document more, and one whose picture has another size.
    write_caption_shard(path, 31, seed=0, size=(65, 48))
    found = check(made)
    assert found.faults.counts["missing"] == 1
    assert "00000/000000030" in told(found)
    assert found.faults.counts["images"] > 0
    assert "has images of other sizes in the corpus" in told(found)
    (made.raw / "00001.tar").unlink()
    assert check(made).faults.counts["unknown"] > 20


def test_a_removed_row_of_the_ledger_is_named(made: SimpleNamespace) -> None:
    table = pq.read_table(made.packs / "rejects.parquet")
    row = table.slice(0, 1).to_pylist()[0]
    pq.write_table(table.slice(1), made.packs / "rejects.parquet")
    found = check(made)
    assert dict(found.faults.counts) == {"manifest": 1, "missing": 1}
    assert f"{row['shard']}/{row['key']}" in told(found)


def test_a_document_in_a_pack_and_in_the_ledger_is_named(made: SimpleNamespace) -> None:
    table = pq.read_table(made.packs / "rejects.parquet")
    document = documents(made.packs, 0)[0]
    row = {k: document[k] for k in ("source", "shard", "key", "uid")}
    row |= {"reason": "mislaid", "detail": ""}
    both = pa.Table.from_pylist([*table.to_pylist(), row], schema=table.schema)
    pq.write_table(both, made.packs / "rejects.parquet")
    found = check(made)
    assert dict(found.faults.counts) == {"manifest": 1, "ledger": 1, "duplicate": 1}
    assert "has the unknown reason 'mislaid'" in told(found)


@pytest.mark.parametrize("name", ["packs", "documents", "images", "tokens", "targets"])
def test_a_forged_count_is_named(made: SimpleNamespace, name: str) -> None:
    counts = Manifest.load(made.packs).counts
    forged = replace(counts, **{name: getattr(counts, name) + 1})
    rewrite_manifest(made.packs, counts=forged)
    found = check(made)
    assert dict(found.faults.counts) == {"manifest": 1}
    assert f"{getattr(counts, name)} {name}, the manifest says {getattr(forged, name)}" in told(
        found
    )


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"outside_part": 3}, "0 documents outside the part, the manifest says 3"),
        ({"fill": 0.5}, "the manifest says 50.0000%"),
        ({"max_documents": 99}, "documents in the largest pack, the manifest says 99"),
        ({"rejects": {}}, "rejects, the manifest says {}"),
        ({"source": "other"}, "is of source 'tiny', the manifest says 'other'"),
        ({"part": (0.0, 0.5)}, "does not belong to the part or split"),
    ],
)
def test_a_forged_manifest_is_named(
    made: SimpleNamespace, fields: dict[str, object], message: str
) -> None:
    rewrite_manifest(made.packs, **fields)
    assert message in told(check(made))


@pytest.mark.parametrize("name", ["tokens", "targets", "documents", "json_offset", "json_size"])
def test_a_forged_index_is_named(made: SimpleNamespace, name: str) -> None:
    def forge(rows: list[IndexRow]) -> None:
        rows[1] = replace(rows[1], **{name: getattr(rows[1], name) + 1})

    rewrite_index(made.packs, forge)
    found = check(made)
    assert found.faults.counts["index"] >= 1
    assert "pack 1 of" in told(found) or "where the index has 000000001.json*" in told(found)


def test_image_places_that_do_not_hold_are_named(made: SimpleNamespace) -> None:
    def forge(rows: list[IndexRow]) -> None:
        rows[0].image_offsets[0] += 512

    rewrite_index(made.packs, forge)
    assert "the index has 000000000.0.* of" in told(check(made))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("length", 3, "the document before ends at 3"),
        ("images", 7, "image marks and 7 images"),
        ("source", "o", "is of source 'o'"),
    ],
)
def test_documents_that_do_not_fit_their_pack_are_named(
    made: SimpleNamespace, key: str, value: object, message: str
) -> None:
    def forge(content: dict[str, list[dict[str, object]]]) -> None:
        content["documents"][0][key] = value

    number = next(n for n in range(9) if len(documents(made.packs, n)) > 1)
    rewrite_pack(made.packs, number, forge)
    assert message in told(check(made))


def test_target_spans_over_a_boundary_are_named(made: SimpleNamespace) -> None:
    def forge(content: dict[str, list[list[int]]]) -> None:
        content["targets"][-1][0] = 0

    number = next(n for n in range(9) if len(documents(made.packs, n)) > 1)
    rewrite_pack(made.packs, number, forge)
    assert "has the target span" in told(check(made))


def test_uids_that_are_not_those_of_the_documents_are_counted(made: SimpleNamespace) -> None:
    uids = np.load(made.packs / "uids.npy")
    np.save(made.packs / "uids.npy", uids[1:])
    assert "the packed documents differ in 1 uids" in told(check(made))
