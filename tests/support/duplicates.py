"""Small selections, and what de-duplication made of them."""

import hashlib
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.duplicates.deduplicate import deduplicate
from openqwen2vl.curation.duplicates.selected import Selected

KINDS = {
    "shard": pa.string(),
    "key": pa.string(),
    "uid": pa.string(),
    "sha256": pa.binary(32),
    "phash": pa.uint64(),
    "caption_hash": pa.uint64(),
    "blank_share": pa.float32(),
}


def rows_of(source, drawn):
    """Turn drawn numbers into rows; None stays None."""
    return [
        {
            "shard": f"{i // 3:05d}",
            "key": f"{i:09d}",
            "uid": f"{i // 3:05d}/{i:09d}" if uid == "own" else uid,
            "sha256": None if image is None else hashlib.sha256(bytes([image])).digest(),
            "phash": seen,
            "caption_hash": caption,
            "blank_share": blank,
            "source": source,
        }
        for i, (uid, image, seen, caption, blank) in enumerate(drawn)
    ]


def simple(**columns):
    """One row that is alone but for what is said."""
    default = {"shard": "00000", "key": "0", "uid": "u", "phash": None, "caption_hash": None}
    return default | {"sha256": None, "blank_share": None, "source": ""} | columns


def write(folder: Path, mixture, corpora=None) -> list[Selected]:
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in mixture.items():
        table = pa.Table.from_pylist(rows, schema=pa.schema(KINDS))
        pq.write_table(table, folder / f"{name}.parquet", row_group_size=2)
    return [
        Selected(name, folder / f"{name}.parquet", (corpora or {}).get(name)) for name in mixture
    ]


def read(out: Path, names):
    """Give what was written, in the form of `reference`."""
    kept, dropped = [], []
    for name in names:
        for r in pq.read_table(out / "kept" / f"{name}.parquet").to_pylist():
            kept.append((name, r["shard"], r["key"], r["uid"], r["sources"]))
        for r in pq.read_table(out / "dropped" / f"deduplicate-{name}.parquet").to_pylist():
            dropped.append((name, r["shard"], r["key"], r["uid"], r["reason"], r["detail"]))
    return kept, dropped


def run(folder: Path, selections, rule, **more):
    return deduplicate(selections, folder / "kept", folder / "dropped", rule, **more)
