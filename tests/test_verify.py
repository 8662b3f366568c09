import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.packs import pack
from support.runs import Run, assert_one_message
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard, write_tar

from openqwen2vl.engine.local import map_shards
from openqwen2vl.formats.corpora import read_shard
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import PackError, UserError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.tar import header, members
from openqwen2vl.packing.entries import plain_entries, shard_entries
from openqwen2vl.packing.index import Index, IndexRow, write_index
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.verify import Verification, VerifyRequest, verify


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    """Two raw shards with every kind of document, packed with a validation split."""
    raw, packs = tmp_path / "raw", tmp_path / "packs"
    write_caption_shard(raw / "00000.tar", 30, seed=0)
    write_conversation_shard(raw / "00001.tar", 30, seed=1, max_images=3)
    write_caption_shard(raw / "00002.tar", 4, seed=0)  # uids of the first shard again
    write_caption_shard(raw / "00003.tar", 3, seed=5, captions=["", "a cat " * 300, "a dog"])
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    selection = Selection(validation=0.2)
    pack(raw, packs, tokenizer, selection=selection, packs_per_shard=8)
    return SimpleNamespace(raw=raw, packs=packs, tokenizer=tokenizer)


def check(made: SimpleNamespace, deep: bool = False, **changes: object) -> Verification:
    return verify(VerifyRequest(input=made.raw, packs=(made.packs,), deep=deep, **changes))


def told(found: Verification) -> str:
    return "\n".join(found.faults.sentences())


def rewrite_index(folder: Path, change: Callable[[list[IndexRow]], None]) -> None:
    rows = [IndexRow(**row) for row in pq.read_table(folder / "index.parquet").to_pylist()]
    change(rows)
    write_index(rows, folder)


def rewrite_manifest(folder: Path, **fields: object) -> None:
    replace(Manifest.load(folder), **fields).save(folder)


def rewrite_pack(folder: Path, number: int, change: Callable[[dict[str, object]], None]) -> None:
    """Change a pack's JSON in place; what becomes shorter is filled with spaces."""
    index = Index.load(folder)
    path = folder / index.shards[index.shard[number]]
    data = bytearray(path.read_bytes())
    start, size = int(index.json_offset[number]), int(index.json_size[number])
    content = json.loads(data[start : start + size])
    change(content)
    text = json.dumps(content, separators=(",", ":")).encode()
    assert len(text) <= size
    data[start : start + size] = text.ljust(size)
    path.write_bytes(data)


@pytest.mark.parametrize("deep", [False, True])
@pytest.mark.parametrize("workers", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_what_was_packed_well_passes(made: SimpleNamespace, deep: bool, workers: int) -> None:
    request = VerifyRequest(input=made.raw, packs=(made.packs,), deep=deep)
    found = verify(request, lambda f, items: map_shards(f, items, workers))
    assert told(found) == ""
    train, held_out = (Manifest.load(made.packs / name) for name in (".", "validation"))
    assert found.documents == 67
    assert found.packed == train.counts.documents + held_out.counts.documents
    assert found.rejected["empty_caption"] == 1
    assert found.rejected["too_long"] >= 1
    assert found.rejected["duplicate_uid"] == 4
    assert found.packed + found.rejected.total() == 67
    assert found.images == train.counts.images + held_out.counts.images
    assert (found.bytes > 0) == deep


def test_a_corpus_with_broken_shards_passes_too(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_caption_shard(raw / "00000.tar", 10, seed=0)
    write_caption_shard(raw / "00001.tar", 10, seed=1, uids=False)
    whole = (raw / "00001.tar").read_bytes()
    (raw / "00001.tar").write_bytes(whole[: len(whole) // 2])
    (raw / "00002.tar").write_bytes(b"")
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    folders = []
    for low, high in ((0.0, 0.5), (0.5, 1.0)):
        folders.append(tmp_path / f"packs-{low}")
        pack(raw, folders[-1], tokenizer, selection=Selection((low, high)))
    found = verify(VerifyRequest(input=raw, packs=tuple(folders), deep=True))
    assert told(found) == ""
    assert found.rejected["truncated_shard"] == 2
    assert (found.outside, found.packed) == (0, found.documents - 2)


def test_parts_are_proven_together_and_one_alone_leaves_the_rest_outside(
    made: SimpleNamespace, tmp_path: Path
) -> None:
    parts = {part: tmp_path / f"part-{part[0]}" for part in ((0.0, 0.6), (0.6, 1.0))}
    for part, folder in parts.items():
        pack(made.raw, folder, made.tokenizer, selection=Selection(part, validation=0.2))
    both = verify(VerifyRequest(input=made.raw, packs=tuple(parts.values()), deep=True))
    assert told(both) == ""
    assert both.outside == 0
    assert both.packed + both.rejected.total() == both.documents == 67
    one = verify(VerifyRequest(input=made.raw, packs=(parts[0.0, 0.6],)))
    assert told(one) == ""
    assert one.outside == Manifest.load(parts[0.0, 0.6]).outside_part > 0
    assert one.packed + one.rejected.total() + one.outside == 67


def test_documents_in_two_folders_are_named(made: SimpleNamespace, tmp_path: Path) -> None:
    other = tmp_path / "other"
    pack(made.raw, other, made.tokenizer, selection=Selection((0.0, 0.5)))
    found = verify(VerifyRequest(input=made.raw, packs=(made.packs, other)))
    assert set(found.faults.counts) == {"duplicate", "leak"}
    assert f"is in {made.packs} too" in told(found)
    # Trained on there and held out here.
    assert f"is in {made.packs}/validation too" in told(found)


def test_a_missing_document_is_named(made: SimpleNamespace) -> None:
    def forget(content: dict[str, list[dict[str, object]]]) -> None:
        content["documents"].pop(0)

    name = next(iter(_documents(made.packs, 2)))
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
    number = next(n for n in range(9) if len(_documents(made.packs, n)) > 1)
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


def test_a_pack_that_is_gone_is_told_with_its_documents(made: SimpleNamespace) -> None:
    gone = _documents(made.packs, 8)
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
    document = _documents(made.packs, 0)[0]
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

    number = next(n for n in range(9) if len(_documents(made.packs, n)) > 1)
    rewrite_pack(made.packs, number, forge)
    assert message in told(check(made))


def test_target_spans_over_a_boundary_are_named(made: SimpleNamespace) -> None:
    def forge(content: dict[str, list[list[int]]]) -> None:
        content["targets"][-1][0] = 0

    number = next(n for n in range(9) if len(_documents(made.packs, n)) > 1)
    rewrite_pack(made.packs, number, forge)
    assert "has the target span" in told(check(made))


def test_uids_that_are_not_those_of_the_documents_are_counted(made: SimpleNamespace) -> None:
    uids = np.load(made.packs / "uids.npy")
    np.save(made.packs / "uids.npy", uids[1:])
    assert "the packed documents differ in 1 uids" in told(check(made))


def test_a_folder_that_is_no_folder_of_packs_is_refused(made: SimpleNamespace) -> None:
    with pytest.raises(UserError, match=r"no manifest\.json"):
        verify(VerifyRequest(input=made.raw, packs=(made.raw,)))
    with pytest.raises(UserError, match="name the folder above it"):
        verify(VerifyRequest(input=made.raw, packs=(made.packs / "validation",)))


def test_the_command_ends_with_json_and_faults_have_exit_code_2(
    made: SimpleNamespace, call: Run
) -> None:
    words = ("verify", f"input={made.raw}", f"packs={made.packs}", "workers=1", "json=true")
    code, out, err = call(*words)
    assert (code, err.strip()) == (0, "")
    figures = json.loads(out.splitlines()[-1])
    assert (figures["documents"], figures["faults"]) == (67, {})
    rewrite_manifest(made.packs, outside_part=9)
    code, out, err = call(*words)
    assert json.loads(out.splitlines()[-1])["faults"] == {"manifest": 1}
    assert_one_message((code, out, err), "1 fault (1 manifest)", "the manifest says 9")


def test_parts_are_given_as_a_list(made: SimpleNamespace, call: Run) -> None:
    code, out, _ = call("verify", f"input={made.raw}", f"packs=[{made.packs}]", "workers=1")
    assert code == 0
    assert "67" in out


ENDINGS = st.sampled_from(["jpg", "txt", "json", "0.png", "1.JPG", "x", "10.webp", "json", "mp3"])
JSONS = st.sampled_from(
    [
        b'{"uid": "u"}',
        b'{"uid": 7}',
        b'{"uid": "\\ud800"}',
        b'{"uid": "\\u00e9"}',
        b"{",
        b"[]",
        b'{"a": [{}',
        b"{}]}",
        b'{"texts": ["a", null], "uid": "v"}',
        b"",
    ]
)
NAMES = st.tuples(st.sampled_from(["a", "b", "__c", "", "d/e", "0" * 90]), ENDINGS, JSONS)


@given(
    files=st.lists(NAMES, max_size=12), cut=st.integers(0, 3000) | st.none(), alike=st.booleans()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_fast_reader_finds_what_the_packers_reader_finds(
    tmp_path: Path, files: list[tuple[str, str, bytes]], cut: int | None, alike: bool
) -> None:
    path = tmp_path / "raw.tar"
    if alike:
        files = [(f"{i}", end, raw) for i in range(3) for _, end, raw in files[:3]]
    write_files(path, files, cut)
    expected = [
        (item.key, item.uid, [(i.offset, i.size) for i in item.images])
        if isinstance(item, Document)
        else (item.key, item.uid)
        for item in read_shard(path, "")
    ]
    found = list(shard_entries(path))
    assert [entry[:2] for entry in found] == [item[:2] for item in expected]
    for entry, item in zip(found, expected, strict=True):
        if len(item) == 3:
            assert [image[1:] for image in entry.images] == item[2]


def write_files(path: Path, files: list[tuple[str, str, bytes]], cut: int | None) -> None:
    with path.open("wb") as tar:
        for stem, ending, raw in files:
            content = raw if ending == "json" else b"p" * len(raw)
            tar.write(header(f"{stem}.{ending}", len(content)) + content)
            tar.write(bytes(-len(content) % 512))
        tar.write(bytes(1024))
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])


def test_plain_shards_take_the_fast_reader_and_others_do_not(tmp_path: Path) -> None:
    write_caption_shard(tmp_path / "plain.tar", 3)
    write_tar(tmp_path / "deep.tar", {"a/b.jpg": b"x", "a/b.txt": b"y"})
    for name, fast in (("plain.tar", True), ("deep.tar", False)):
        with (tmp_path / name).open("rb") as file:
            assert (plain_entries(file.fileno(), tmp_path / name) is not None) == fast


def _documents(folder: Path, number: int) -> list[dict[str, object]]:
    index = Index.load(folder)
    data = (folder / index.shards[index.shard[number]]).read_bytes()
    start, size = int(index.json_offset[number]), int(index.json_size[number])
    found: list[dict[str, object]] = json.loads(data[start : start + size])["documents"]
    return found


def test_web_pages_that_choose_their_images_pass(tmp_path: Path) -> None:
    page = {"texts": ["one", None, "two", None], "images": [None, "1", None, "0"]}
    files = {"a.json": json.dumps(page).encode(), "a.0.jpg": b"first", "a.1.jpg": b"second one"}
    write_tar(tmp_path / "raw" / "00001.tar", files)
    write_caption_shard(tmp_path / "raw" / "00000.tar", 3)
    pack(tmp_path / "raw", tmp_path / "packs", tiny_tokenizer(tmp_path / "tokenizer"))
    request = VerifyRequest(input=tmp_path / "raw", packs=(tmp_path / "packs",), deep=True)
    found = verify(request)
    assert told(found) == ""
    assert found.documents == 4
    assert found.packed + found.rejected.total() == 4


def test_packs_of_other_rules_are_refused_instead_of_misjudged(made: SimpleNamespace) -> None:
    rewrite_manifest(made.packs, overlong="drop_last_turns")
    with pytest.raises(PackError, match=r"packed with overlong=drop_last_turns .*; verify proves"):
        check(made)
