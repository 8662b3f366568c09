"""A folder of packs to verify, and ways to tamper with it."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pyarrow.parquet as pq

from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.packing.index import Index, IndexRow, write_index
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.proof.verify import Verification, VerifyRequest, verify
from support.packs import pack
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard


def make(tmp_path: Path) -> SimpleNamespace:
    """Write raw shards with every kind of document and pack them with a validation split."""
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
    """Verify the packs of ``make``."""
    return verify(VerifyRequest(input=made.raw, packs=(made.packs,), deep=deep, **changes))


def told(found: Verification) -> str:
    """Give the faults in words, a line each."""
    return "\n".join(found.faults.sentences())


def rewrite_index(folder: Path, change: Callable[[list[IndexRow]], None]) -> None:
    rows = [IndexRow(**row) for row in pq.read_table(folder / "index.parquet").to_pylist()]
    change(rows)
    write_index(rows, folder)


def rewrite_manifest(folder: Path, **fields: object) -> None:
    """Change fields of a folder's manifest."""
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


def documents(folder: Path, number: int) -> list[dict[str, object]]:
    """Give the documents of a pack."""
    index = Index.load(folder)
    data = (folder / index.shards[index.shard[number]]).read_bytes()
    start, size = int(index.json_offset[number]), int(index.json_size[number])
    found: list[dict[str, object]] = json.loads(data[start : start + size])["documents"]
    return found
