"""Columns of parquet files, read into polars a few files at a time; the file at fault is named."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.formats.errors import UserError

ROWS = 1 << 20  # looked at together, in whole row groups

# Of a damaged file polars may say so, or stop in a way that is no Exception.
_FAULTS = (pl.exceptions.PolarsError, pl.exceptions.PanicException, pa.ArrowException, OSError)


class TableError(UserError):
    """Tables of scores or metadata that cannot be read, or that do not fit together."""


@dataclass(frozen=True)
class Part:
    """Some rows of a parquet file.

    Attributes:
        path: the file.
        shard: what they belong to.
        start: number of the first row.
        rows: how many; None for all from there.
    """

    path: Path
    shard: str
    start: int = 0
    rows: int | None = None


def schema_of(path: Path) -> dict[str, pl.DataType]:
    """Give a file's columns and their types.

    Raises:
        TableError: it is missing or no parquet.
    """
    try:
        return dict(pl.read_parquet_schema(path))
    except _FAULTS as error:
        raise _unreadable(path, error) from error


def cut_files(files: Sequence[Path]) -> Iterator[list[Part]]:
    """Cut files into parts of about a million rows together, in order.

    Files are cut where their row groups end, so that none is read twice.

    Args:
        files: parquet; a file's name without its ending stands for a shard.

    Raises:
        TableError: one is missing or damaged.
    """
    parts: list[Part] = []
    rows = 0
    for path in files:
        for part, size in _row_groups(path):
            if parts and rows + size > ROWS:
                yield parts
                parts, rows = [], 0
            parts.append(part)
            rows += size
    if parts:
        yield parts


def _row_groups(path: Path) -> Iterator[tuple[Part, int]]:
    try:
        facts = pq.read_metadata(path)
    except _FAULTS as error:
        raise _unreadable(path, error) from error
    start = 0
    for group in range(facts.num_row_groups):
        size = facts.row_group(group).num_rows
        if size:
            yield Part(path, path.stem, start, size), size
        start += size


def read_parts(parts: Sequence[Part], columns: Mapping[str, str]) -> pl.DataFrame:
    """Read columns of several parts, one below the other.

    Args:
        parts: at least one.
        columns: the name in the file by the name to give.

    Returns:
        ``shard`` and the columns.

    Raises:
        TableError: a file is missing, damaged or lacks a column.
    """
    try:
        return _collect(parts, columns)
    except _FAULTS as error:
        for part in parts:
            _find_fault(part, columns)
        first, last = parts[0].path, parts[-1].path
        raise TableError(f"{first} to {last.name} do not fit together: {_line(error)}") from error


def _collect(parts: Sequence[Part], columns: Mapping[str, str]) -> pl.DataFrame:
    named = [pl.col(own).alias(name) for name, own in columns.items()]
    frames = [
        pl.scan_parquet(part.path)
        .slice(part.start, part.rows)
        .select(pl.lit(part.shard).alias("shard"), *named)
        for part in parts
    ]
    return pl.concat(frames, how="vertical_relaxed").collect()


def _find_fault(part: Part, columns: Mapping[str, str]) -> None:
    """Raise when it is this part that cannot be read."""
    there = schema_of(part.path)
    missing = [name for name in columns.values() if name not in there]
    if missing:
        raise TableError(
            f"{part.path} has no column {', '.join(missing)}; it has {', '.join(there)}"
        )
    try:
        _collect([part], columns)
    except _FAULTS as error:
        raise _unreadable(part.path, error) from error


def _unreadable(path: Path, error: BaseException) -> TableError:
    return TableError(
        f"{path} cannot be read ({_line(error)}); fetch it again, or remove it and score again"
    )


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
