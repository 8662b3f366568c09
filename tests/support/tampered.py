"""Ways to tamper with the words of a corpus, and with the text that its packs hold."""

from collections.abc import Sequence
from functools import partial
from itertools import combinations
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.formats.manifest import Manifest
from support.verified import documents, rewrite_manifest, rewrite_pack


def replace_word(path: Path, word: bytes, other: bytes) -> int:
    """Replace a word of a file by another of as many bytes; gives how often it was there."""
    assert len(word) == len(other)
    data = path.read_bytes()
    path.write_bytes(data.replace(word, other))
    return data.count(word)


def swap_ids(folder: Path) -> list[dict[str, Any]]:
    """Swap the ids of two documents of one pack that have as many; gives both."""
    for number in range(Manifest.load(folder).counts.packs):
        for both in combinations(documents(folder, number), 2):
            if both[0]["length"] == both[1]["length"] and both[0]["images"] == both[1]["images"]:
                rewrite_pack(folder, number, partial(_swap, both=both))
                return list(both)
    raise AssertionError(f"no two documents of {folder} are of one length")


def _swap(content: dict[str, Any], both: Sequence[dict[str, Any]]) -> None:
    ids = content["ids"]
    one, other = (slice(d["start"], d["start"] + d["length"]) for d in both)
    assert ids[one] != ids[other]
    ids[one], ids[other] = ids[other], ids[one]


def reword_reject(folder: Path, old: str, new: str) -> dict[str, str]:
    """Give the first reject of a reason another one, in the ledger and in the manifest."""
    table = pq.read_table(folder / "rejects.parquet")
    rows: list[dict[str, str]] = table.to_pylist()
    row = next(row for row in rows if row["reason"] == old)
    row["reason"] = new
    pq.write_table(pa.Table.from_pylist(rows, table.schema), folder / "rejects.parquet")
    rejects = Manifest.load(folder).rejects
    counts = {reason: sum(row["reason"] == reason for row in rows) for reason in {*rejects, new}}
    rewrite_manifest(folder, rejects={k: n for k, n in sorted(counts.items()) if n})
    return row
