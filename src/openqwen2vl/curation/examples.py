"""A few samples to look at: some that stayed, some that went, with the reason."""

import hashlib
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.shards import RawShard, shards_at

_LOOKED_AT = 20_000  # rows of a table that are drawn from, about
_GROUPS = 16  # groups of rows that these are taken of; reading more would cost more
_COLUMNS = ("shard", "key", "reason", "detail")


@dataclass(frozen=True)
class Example:
    """One sample.

    Attributes:
        sample: where its picture and its caption are.
        reason: why it went; empty when it stayed.
        detail: what else is told of that.
    """

    sample: Sample
    reason: str = ""
    detail: str = ""


def draw_examples(
    table: Path, folder: Path, source: str, count: int, image_root: Path | None = None
) -> list[Example]:
    """Draw samples from all over a table, the same ones each time.

    Args:
        table: parquet with ``shard``, ``key`` and ``uid``, and ``reason`` and ``detail`` when it is
            one of those that went.
        folder: the raw shards, or a listing.
        source: the name that they go by.
        count: how many, at most; fewer when the table has fewer or a shard is gone.
        image_root: folder of the images that the input names by path.

    Raises:
        ShardError: a raw shard is missing.
    """
    chosen = sorted(_rows(table), key=_lot)[:count]
    places = [(row["shard"], row["key"]) for row in chosen]
    shards = shards_at(folder, [shard for shard, _ in places], image_root)
    samples = _find(places, shards, source)
    return [
        Example(samples[place], row.get("reason") or "", row.get("detail") or "")
        for row in chosen
        if (place := (row["shard"], row["key"])) in samples
    ]


def _rows(table: Path) -> list[dict[str, Any]]:
    """Give the rows of a table; of a large one some of each of some groups of rows."""
    with pq.ParquetFile(table) as file:
        columns = [name for name in _COLUMNS if name in file.schema_arrow.names]
        groups = list(range(file.num_row_groups))
        if file.metadata.num_rows > _LOOKED_AT:
            # Neither the first ones, which are the first shards, nor others on another day.
            groups = random.Random(0).sample(groups, min(_GROUPS, len(groups)))
        found: list[dict[str, Any]] = []
        for group in groups:
            rows = file.read_row_group(group, columns=columns)
            step = max(1, rows.num_rows * len(groups) // _LOOKED_AT)
            found += rows.take(pa.array(range(0, rows.num_rows, step), pa.int64())).to_pylist()
    return found


def _lot(row: dict[str, str]) -> bytes:
    """Draw by the uid's hash: neither by chance nor by where a sample stands."""
    return hashlib.blake2b(f"{row['shard']}/{row['key']}".encode(), digest_size=8).digest()


def _find(
    places: Sequence[tuple[str, str]], shards: Mapping[str, RawShard], source: str
) -> dict[tuple[str, str], Sample]:
    """Look samples up in their shards, each of which is walked once."""
    found: dict[tuple[str, str], Sample] = {}
    for shard, raw in shards.items():
        keys = {key for name, key in places if name == shard}
        for sample in _samples(raw, source):
            if sample.key in keys:
                # What its table's other samples leave in memory, a few do not need.
                found[shard, sample.key] = replace(sample, cells=None)
    return found


def _samples(shard: RawShard, source: str) -> Iterable[Sample]:
    return (item for item in read_samples(shard, source) if isinstance(item, Sample))
