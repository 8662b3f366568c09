"""What de-duplication writes: the tables of samples that stay, and of those that do not."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.curation.duplicates.selected import ROWS, Tables
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.files import atomic_file

VERSION = 1
"""Goes up whenever the same samples would be written in another way."""

SOURCES = "sources"
"""Column of the sources that held a sample, or one that gave way to it."""

_FACTS = b"openqwen2vl"
_MOST_SOURCES = 64  # bits of a row's mask
_DROPPED = pa.schema({name: pa.string() for name in ("shard", "key", "uid", "reason", "detail")})
_TEXT = pa.large_string()  # joined names may exceed 2 GiB
_NAMES = pa.list_(pa.string())


@dataclass(frozen=True)
class Marks:
    """What becomes of each row.

    Attributes:
        kept: (n,).
        keeper: int64 (n,), the row that a dropped one gave way to, -1 when it is none.
        reason: int8 (n,), place of a dropped row's reason in ``reasons``.
        reasons: their names.
        details: what to say of each dropped row that gave way to none, in order.
    """

    kept: NDArray[np.bool_]
    keeper: NDArray[np.int64]
    reason: NDArray[np.int8]
    reasons: tuple[str, ...]
    details: Sequence[str]


def kept_path(folder: Path, source: str) -> Path:
    """Give the table of a source's samples that stay."""
    return folder / f"{source}.parquet"


def dropped_path(folder: Path, source: str) -> Path:
    """Give the table of a source's samples that de-duplication dropped."""
    return folder / f"deduplicate-{source}.parquet"


def write_outcome(
    tables: Tables, marks: Marks, kept: Path, dropped: Path, facts: Mapping[str, Any]
) -> None:
    """Write both tables of every source; all of them get their names once all are complete.

    Args:
        tables: the selections.
        marks: of their rows.
        kept: folder of the samples that stay.
        dropped: folder of the others.
        facts: what to note in the files beside version and sources.

    Raises:
        ConfigError: more sources than a row's mask has bits for.
        ShardError: a selection is damaged.
    """
    names, masks = _holders(tables, marks)
    ordered = [selected.name for selected in tables.selections]
    noted = {"version": VERSION, "step": "deduplicate", "sources": ordered, **facts}
    metadata = {_FACTS: json.dumps(noted, sort_keys=True).encode()}
    details = _Details.gather(tables, marks)
    with ExitStack() as files:
        for number, name in enumerate(ordered):
            staying = files.enter_context(atomic_file(kept_path(kept, name)))
            with pq.ParquetFile(tables.selections[number].path) as file:
                schema = _kept_schema(file.schema_arrow).with_metadata(metadata)
            _write(staying, schema, _kept(tables, number, marks, names, masks))
            leaving = files.enter_context(atomic_file(dropped_path(dropped, name)))
            rows = _dropped(tables, number, marks, details)
            _write(leaving, _DROPPED.with_metadata(metadata), rows)


def _write(file: Any, schema: pa.Schema, batches: Iterator[pa.RecordBatch]) -> None:
    """Write row groups of ``ROWS`` rows, so that what was kept twice has the same bytes."""
    with pq.ParquetWriter(file, schema) as writer:
        waiting: list[pa.Table] = []
        count = 0
        for batch in batches:
            waiting.append(pa.Table.from_batches([batch]).cast(schema))
            count += batch.num_rows
            while count >= ROWS:
                table = pa.concat_tables(waiting)
                writer.write_table(table.slice(0, ROWS), row_group_size=ROWS)
                waiting, count = [table.slice(ROWS)], count - ROWS
        if count:
            writer.write_table(pa.concat_tables(waiting), row_group_size=ROWS)


def _kept_schema(schema: pa.Schema) -> pa.Schema:
    fields = [field.remove_metadata() for field in schema if field.name != SOURCES]
    return pa.schema([*fields, pa.field(SOURCES, _NAMES)])


def _kept(
    tables: Tables,
    number: int,
    marks: Marks,
    names: Sequence[str],
    masks: NDArray[np.uint64],
) -> Iterator[pa.RecordBatch]:
    """Give the rows of a source that stay, with the sources that held them."""
    for first, batch in tables.batches(number):
        stays = marks.kept[first : first + batch.num_rows]
        found, place = np.unique(masks[first : first + batch.num_rows][stays], return_inverse=True)
        lists = [[n for bit, n in enumerate(names) if mask >> bit & 1] for mask in found.tolist()]
        columns = {
            name: column
            for name, column in zip(batch.schema.names, batch.columns, strict=True)
            if name != SOURCES
        }
        rows = pa.RecordBatch.from_pydict(columns).filter(pa.array(stays))
        yield rows.append_column(SOURCES, pa.array(lists, _NAMES).take(pa.array(place)))


def _dropped(
    tables: Tables, number: int, marks: Marks, details: "_Details"
) -> Iterator[pa.RecordBatch]:
    """Give the rows of a source that do not stay, with the reason."""
    reasons = pa.array(marks.reasons, pa.string())
    for first, batch in tables.batches(number, ["shard", "key", "uid"]):
        rows = first + np.flatnonzero(~marks.kept[first : first + batch.num_rows])
        columns = {
            name: batch[name].take(pa.array(rows - first)).cast(pa.string())
            for name in ("shard", "key", "uid")
        }
        columns["reason"] = reasons.take(pa.array(marks.reason[rows]))
        columns["detail"] = details.of(rows, marks.keeper[rows])
        yield pa.RecordBatch.from_pydict(columns)


@dataclass(frozen=True)
class _Details:
    """What to say of dropped rows.

    Attributes:
        keepers: int64 (k,), rising; the rows that others gave way to.
        orphans: int64 (o,), rising; the dropped rows that gave way to none.
        texts: strings (k + o,), the names of the former, what to say of the latter.
    """

    keepers: NDArray[np.int64]
    orphans: NDArray[np.int64]
    texts: pa.Array

    @classmethod
    def gather(cls, tables: Tables, marks: Marks) -> "_Details":
        """Read the names of the rows that others gave way to, and of no other."""
        gone = ~marks.kept
        orphans = np.flatnonzero(gone & (marks.keeper < 0))
        keepers = np.unique(marks.keeper[gone])
        keepers = keepers[keepers >= 0]
        texts = []
        for number, selected in enumerate(tables.selections):
            name, slash = (pa.scalar(text, _TEXT) for text in (selected.name, "/"))
            for first, batch in tables.batches(number, ["shard", "key"]):
                begin, end = np.searchsorted(keepers, [first, first + batch.num_rows])
                rows = pa.array(keepers[begin:end] - first)
                shards, keys = (batch[n].take(rows).cast(_TEXT) for n in ("shard", "key"))
                texts.append(pc.binary_join_element_wise(name, shards, keys, slash))
        texts.append(pa.array(marks.details, _TEXT))
        return cls(keepers, orphans, pa.concat_arrays(texts))

    def of(self, rows: NDArray[np.int64], keeper: NDArray[np.int64]) -> pa.Array:
        """Give the texts of some dropped rows, and the rows that they gave way to or -1."""
        place = np.searchsorted(self.keepers, keeper)
        alone = keeper < 0
        place[alone] = len(self.keepers) + np.searchsorted(self.orphans, rows[alone])
        return self.texts.take(pa.array(place)).cast(pa.string())


def _holders(tables: Tables, marks: Marks) -> tuple[list[str], NDArray[np.uint64]]:
    """Give names of sources, and for each kept row a bit for each that held it or its likeness."""
    names = [selected.name for selected in tables.selections]
    masks = np.zeros(tables.rows, np.uint64)
    for number in range(min(len(names), _MOST_SOURCES)):
        bit = np.uint64(1) << np.uint64(number)
        masks[tables.start[number] : tables.start[number + 1]] = bit
    _add_held(tables, names, masks)
    gave_way = np.flatnonzero(~marks.kept & (marks.keeper >= 0))
    np.bitwise_or.at(masks, marks.keeper[gave_way], masks[gave_way])
    return names, masks


def _add_held(tables: Tables, names: list[str], masks: NDArray[np.uint64]) -> None:
    """Add what an earlier de-duplication noted; sources that are no longer there go last."""
    with_notes = [n for n, columns in enumerate(tables.columns) if SOURCES in columns]
    noted: set[str] = set()
    for number in with_notes:
        for _, batch in tables.batches(number, [SOURCES]):
            noted.update(batch[SOURCES].flatten().unique().to_pylist())
    names += sorted(noted - set(names))
    if len(names) > _MOST_SOURCES:
        raise ConfigError(
            f"{len(names)} sources; at most {_MOST_SOURCES} can be de-duplicated together"
        )
    for number in with_notes:
        for first, batch in tables.batches(number, [SOURCES]):
            lists = batch[SOURCES]
            bits = pc.index_in(lists.flatten(), pa.array(names, pa.string()))
            flags = np.uint64(1) << bits.to_numpy().astype(np.uint64)
            rows = first + pc.list_parent_indices(lists).to_numpy()
            np.bitwise_or.at(masks, rows, flags)
