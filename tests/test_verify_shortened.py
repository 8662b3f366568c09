import json
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.packs import pack
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard, write_tar
from support.verified import check, documents, rewrite_manifest, told

from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.proof.verify import VerifyRequest, verify

CUT = "shortened.parquet"


@pytest.fixture
def made(tmp_path: Path) -> SimpleNamespace:
    """Captions, and conversations of which many outgrow the context and lost turns for it."""
    raw, packs = tmp_path / "raw", tmp_path / "packs"
    write_caption_shard(raw / "00000.tar", 6)
    write_conversation_shard(raw / "00001.tar", 20, max_images=2, max_rounds=8)
    write_tar(raw / "00002.tar", later_images())
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    pack(raw, packs, tokenizer, context=150, overlong="drop_last_turns")
    return SimpleNamespace(raw=raw, packs=packs, tokenizer=tokenizer)


def later_images(mark: bytes = b"p", more: int = 0) -> dict[str, bytes]:
    """Conversations with a picture in each of eight exchanges."""
    exchange = [
        {"from": "human", "value": "<image>\nwhat is it?"},
        {"from": "gpt", "value": "a red circle"},
    ]
    files: dict[str, bytes] = {}
    for number in range(4):
        fields = {"uid": f"later-{number}", "conversations": exchange * 8}
        files[f"{number}.json"] = json.dumps(fields).encode()
        files |= {f"{number}.{i}.jpg": mark * (10 * number + i + 1 + more) for i in range(8)}
    return files


def recorded(folder: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = pq.read_table(folder / CUT).to_pylist()
    return rows


def record(folder: Path, rows: list[dict[str, str]]) -> None:
    """Forge the list of shortened documents, and the manifest with it."""
    schema = pq.read_schema(folder / CUT)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / CUT)
    rewrite_manifest(folder, shortened=len(rows))


@pytest.mark.parametrize("deep", [False, True])
def test_what_was_shortened_and_recorded_so_passes(made: SimpleNamespace, deep: bool) -> None:
    found = check(made, deep)
    assert told(found) == ""
    rows = recorded(made.packs)
    assert len(rows) == Manifest.load(made.packs).shortened > 6
    assert {row["shard"] for row in rows} == {"00001", "00002"}
    assert found.packed + found.rejected.total() == found.documents == 30
    assert (found.bytes > 0) == deep


def test_a_document_that_lost_turns_and_is_not_recorded_so_is_named(made: SimpleNamespace) -> None:
    first, *rest = recorded(made.packs)
    record(made.packs, rest)
    found = check(made)
    assert dict(found.faults.counts) == {"turns": 1}
    assert f"{first['shard']}/{first['key']} (uid {first['uid']})" in told(found)
    assert "turns, the corpus" in told(found)
    assert "it is not recorded as shortened" in told(found)


def test_packs_that_deny_all_shortening_are_found_out(made: SimpleNamespace) -> None:
    rows = recorded(made.packs)
    rewrite_manifest(made.packs, overlong="reject", shortened=0)
    found = check(made)
    assert found.faults.counts["turns"] == len(rows)
    # The pictures of the turns that went are missed as well.
    assert found.faults.counts["images"] == 4


def test_a_whole_document_that_is_told_to_be_shortened_is_named(made: SimpleNamespace) -> None:
    rows = recorded(made.packs)
    every = [
        d for n in range(Manifest.load(made.packs).counts.packs) for d in documents(made.packs, n)
    ]
    whole = next(d for d in every if d["uid"] not in {row["uid"] for row in rows})
    record(made.packs, [*rows, {k: whole[k] for k in rows[0]}])
    found = check(made)
    assert dict(found.faults.counts) == {"shortened": 1}
    assert f"{whole['shard']}/{whole['key']} is told to be shortened and has" in told(found)


def test_rows_of_unpacked_documents_and_rows_told_twice_are_named(made: SimpleNamespace) -> None:
    rows = recorded(made.packs)
    record(made.packs, [*rows, rows[0], {**rows[0], "uid": "nobody"}])
    found = check(made)
    assert dict(found.faults.counts) == {"shortened": 2}
    assert f"{CUT}: {rows[0]['shard']}/{rows[0]['key']} is in no pack" in told(found)


def test_a_count_without_its_list_is_named(made: SimpleNamespace) -> None:
    rewrite_manifest(made.packs, shortened=99)
    assert "shortened documents, the manifest says 99" in told(check(made))
    (made.packs / CUT).unlink()
    with pytest.raises(ShardError, match=f"{CUT} cannot be read"):
        check(made)


def test_what_is_left_must_be_the_beginning_of_the_corpus_document(made: SimpleNamespace) -> None:
    write_tar(made.raw / "00002.tar", later_images(more=1))
    found = check(made, deep=True)
    assert found.faults.counts["shortened"] == 4
    assert "whose images are others than in its pack" in told(found)


def test_the_pictures_that_are_left_are_compared_byte_by_byte(made: SimpleNamespace) -> None:
    write_tar(made.raw / "00002.tar", later_images(b"q"))
    assert told(check(made)) == ""
    found = check(made, deep=True)
    assert set(found.faults.counts) == {"images"}
    assert "image 0 of 00002/0 has other bytes in" in told(found)


RULES = InterleavedRules(trailing_images="drop", max_images=3)


def write_pages(raw: Path) -> None:
    """Write pages of one to five images, the last of which no text follows."""
    files: dict[str, bytes] = {}
    for number in range(5):
        texts = [text for i in range(number + 1) for text in (f"line {i}", None)]
        images = [image for i in range(number + 1) for image in (None, f"{i}")]
        page = {"texts": texts, "images": images}
        files[f"{number}.json"] = json.dumps(page).encode()
        files |= {f"{number}.{i}.jpg": b"p" * (10 * number + i + 1) for i in range(number + 1)}
    write_tar(raw / "00000.tar", files)


def test_pages_that_were_taken_by_other_rules_pass_by_them(tmp_path: Path) -> None:
    raw, packs, others = (tmp_path / name for name in ("raw", "packs", "others"))
    write_pages(raw)
    tokenizer = tiny_tokenizer(tmp_path / "tokenizer")
    pack(raw, packs, tokenizer, rules=RULES)
    found = verify(VerifyRequest(input=raw, packs=(packs,), deep=True))
    assert told(found) == ""
    assert (found.packed, dict(found.rejected)) == (3, {"image_count": 2})
    # By the rules of another corpus the same packs are not what was asked for.
    rewrite_manifest(packs, interleaved=InterleavedRules())
    assert "has images of other sizes in the corpus" in told(
        verify(VerifyRequest(input=raw, packs=(packs,)))
    )
    pack(raw, others, tokenizer, rules=RULES)
    with pytest.raises(PackError, match="different rules for interleaved documents"):
        verify(VerifyRequest(input=raw, packs=(packs, others)))
