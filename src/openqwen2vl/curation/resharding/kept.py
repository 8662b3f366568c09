"""Kept tables: which samples of which raw shard are left, a few shards in memory at a time."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from openqwen2vl.formats.errors import ShardError

_NEEDED = ("shard", "key", "uid")


@dataclass(frozen=True)
class KeptShard:
    """The rows of a kept table that speak of one raw shard.

    Attributes:
        name: the raw shard's file name without its ending.
        first: number of the first row.
        rows: how many, all in a row.
    """

    name: str
    first: int
    rows: int


@dataclass(frozen=True)
class KeptTable:
    """A kept table as it is on disk.

    Attributes:
        path: the parquet file, sorted by shard.
        hash: sha256 over its bytes, in hex.
        columns: the names of its columns.
        shards: the raw shards that it speaks of, in the order of the rows.
    """

    path: Path
    hash: str
    columns: tuple[str, ...]
    shards: tuple[KeptShard, ...]

    @classmethod
    def open(cls, path: Path) -> Self:
        """Look through the names of the raw shards; no other column is read.

        Raises:
            ShardError: the table is missing, damaged, not sorted by shard, or has no column
                ``shard``, ``key`` or ``uid``.
        """
        try:
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            table = pq.ParquetFile(path)
        except FileNotFoundError as error:
            raise ShardError(f"kept table {path} is missing; select and deduplicate first") from (
                error
            )
        except (OSError, pa.ArrowException) as error:
            raise _damaged(path, error) from error
        with table:
            columns = tuple(table.schema_arrow.names)
            missing = [name for name in _NEEDED if name not in columns]
            if missing:
                raise ShardError(
                    f"{path} has no column {', '.join(missing)}; it has {', '.join(columns)}: "
                    "select and deduplicate again"
                )
            return cls(path, digest, columns, _runs(table, path))


def read_kept(path: Path, shard: KeptShard, columns: Sequence[str]) -> pa.Table:
    """Read some columns of a raw shard's rows, and no row group without any of them.

    Raises:
        ShardError: the table is damaged.
    """
    first, stop, at = shard.first, shard.first + shard.rows, 0
    groups, before = [], 0
    try:
        with pq.ParquetFile(path) as table:
            for number in range(table.num_row_groups):
                rows = table.metadata.row_group(number).num_rows
                if at + rows <= first:
                    before = at + rows
                elif at < stop:
                    groups.append(number)
                at += rows
            found = table.read_row_groups(groups, columns=list(columns), use_threads=False)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    return found.slice(first - before, shard.rows).combine_chunks()


def _damaged(path: Path, error: Exception) -> ShardError:
    said = str(error).split("\n")[0]
    return ShardError(f"{path} cannot be read ({said}); select and deduplicate again")


def _runs(table: pq.ParquetFile, path: Path) -> tuple[KeptShard, ...]:
    """Find where each raw shard's rows begin and end."""
    names: list[str] = []
    ends: list[int] = []
    first = 0
    try:
        for batch in table.iter_batches(batch_size=2**16, columns=["shard"], use_threads=False):
            runs = pc.run_end_encode(batch.column(0).cast(pa.string()))
            for name, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
                if names and names[-1] == name:
                    ends.pop()
                else:
                    names.append(name)
                ends.append(first + end)
            first += batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise _damaged(path, error) from error
    apart = [name for name, times in Counter(names).items() if times > 1]
    if apart:
        raise ShardError(
            f"the rows of {path} are not sorted: those of {apart[0]} lie apart; select and "
            "deduplicate again"
        )
    starts = [0, *ends]
    return tuple(
        KeptShard(name, start, end - start)
        for name, start, end in zip(names, starts, ends, strict=False)
    )
