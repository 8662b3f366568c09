"""A few samples to look at: some that stayed, some that went, with the reason."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import polars as pl

from openqwen2vl.curation.samples import Sample, read_samples, shard_at

_LOOKED_AT = 20_000  # rows of a table that are drawn from


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


def draw_examples(table: Path, folder: Path, source: str, count: int) -> list[Example]:
    """Draw samples that a table names, the same ones each time.

    Args:
        table: parquet with ``shard``, ``key`` and ``uid``, and ``reason`` and ``detail`` when it is
            one of those that went.
        folder: the raw shards.
        source: the name that they go by.
        count: how many, at most; fewer when the table has fewer or a shard is gone.

    Raises:
        ShardError: a raw shard is missing.
    """
    rows = pl.scan_parquet(table).head(_LOOKED_AT).collect()
    chosen = sorted(rows.iter_rows(named=True), key=_lot)[:count]
    samples = _find([(row["shard"], row["key"]) for row in chosen], folder, source)
    return [
        Example(samples[place], row.get("reason") or "", row.get("detail") or "")
        for row in chosen
        if (place := (row["shard"], row["key"])) in samples
    ]


def _lot(row: dict[str, str]) -> bytes:
    """Draw by the uid's hash: neither by chance nor by where a sample stands."""
    return hashlib.blake2b(f"{row['shard']}/{row['key']}".encode(), digest_size=8).digest()


def _find(
    places: Sequence[tuple[str, str]], folder: Path, source: str
) -> dict[tuple[str, str], Sample]:
    """Look samples up in their shards, each of which is walked once."""
    found: dict[tuple[str, str], Sample] = {}
    for shard in dict.fromkeys(shard for shard, _ in places):
        keys = {key for name, key in places if name == shard}
        for sample in _samples(shard_at(folder, shard), source):
            if sample.key in keys:
                # What its table's other samples leave in memory, a few do not need.
                found[shard, sample.key] = replace(sample, cells=None)
    return found


def _samples(path: Path, source: str) -> Iterable[Sample]:
    return (item for item in read_samples(path, source) if isinstance(item, Sample))
