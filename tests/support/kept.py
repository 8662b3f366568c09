"""Kept tables over small raw shards, as resharding is given them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from support.shards import write_caption_shard

Contents = Counter[tuple[str, bytes, str]]
"""How often there is a sample of this uid, these image bytes, this caption."""


def write_raw(folder: Path, counts: list[int], **keys: Any) -> None:
    """Write raw shards of so many samples each."""
    for number, count in enumerate(counts):
        write_caption_shard(folder / f"{number:05d}.tar", count, seed=number, **keys)


def samples(raw: Path) -> list[Sample]:
    """Read all samples of a folder of raw shards."""
    found = [item for path in raw_shards(raw) for item in read_samples(path, "tiny")]
    assert all(isinstance(item, Sample) for item in found)
    return [item for item in found if isinstance(item, Sample)]


def write_kept(path: Path, kept: list[Sample], **columns: list[Any]) -> Path:
    """Write a kept table of these samples, with further columns."""
    table = {name: [getattr(s, name) for s in kept] for name in ("shard", "key", "uid")}
    table["sources"] = [[s.source] for s in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table | columns), path, row_group_size=7)
    return path


def contents(folder: Path) -> Contents:
    """Read a folder of shards back."""
    found: Contents = Counter()
    for path in sorted(folder.glob("*.tar")):
        data = path.read_bytes()
        for item in read_raw_shard(path, "tiny"):
            assert isinstance(item, Document), item
            (image,) = item.images
            found[item.uid, data[image.offset : image.offset + image.size], item.turns[0].text] += 1
    return found


def contents_of(kept: list[Sample]) -> Contents:
    """Give what is to be read back of samples."""
    return Counter((sample.uid, sample.read(), sample.caption) for sample in kept)


def fields(folder: Path) -> list[dict[str, Any]]:
    """Give what ``KEY.json`` holds of each sample, in the order in which they stand."""
    found = []
    for path in sorted(folder.glob("*.tar")):
        found += [item.fields for item in read_samples(path, "tiny") if isinstance(item, Sample)]
    return found


def files(folder: Path) -> dict[str, bytes]:
    """Give the bytes of all files below a folder, by name."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def told(folder: Path) -> dict[str, Any]:
    """Give the manifest of a folder."""
    manifest: dict[str, Any] = json.loads((folder / "manifest.json").read_text())
    return manifest
