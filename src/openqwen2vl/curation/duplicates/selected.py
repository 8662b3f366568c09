"""What was selected, source by source: tables read a few columns and a few rows at a time."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.curation.duplicates.groups import Words, uid_words
from openqwen2vl.formats.errors import ShardError

ROWS = 1 << 17
"""Rows that are read together, and that make a row group of what is written."""

Mask = NDArray[np.bool_]
Column = tuple[Words, Mask]
"""Numbers, and whether there is one: uint64 (n,), bool (n,)."""

_IDENTITY = ("shard", "key", "uid")


@dataclass(frozen=True)
class Selected:
    """The selection of one source.

    Attributes:
        name: of the source that is made of it.
        path: parquet with the columns ``shard``, ``key``, ``uid`` and those that samples are
            compared by; rows in the order of shards and of samples within them.
        corpus: name of the raw corpus that it was selected from; None when that is ``name``.
        conversations: whether its samples are conversations.
    """

    name: str
    path: Path
    corpus: str | None = None
    conversations: bool = False


@dataclass(frozen=True)
class Tables:
    """Selections end to end, so that a row has one number over all of them.

    Attributes:
        selections: those of higher priority first.
        columns: names of each one's columns.
        start: first row of each, and at the end how many rows there are.
    """

    selections: tuple[Selected, ...]
    columns: tuple[tuple[str, ...], ...]
    start: tuple[int, ...]

    @classmethod
    def open(cls, selections: Sequence[Selected]) -> "Tables":
        """Look at the names of columns and count the rows.

        Raises:
            ShardError: two selections of one name, a file that is missing or damaged, or a
                column of ``shard``, ``key``, ``uid`` that is.
        """
        names = [selected.name for selected in selections]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ShardError(f"two selections are named {twice[0]}; each source needs its own name")
        columns, rows = [], []
        for selected in selections:
            try:
                with pq.ParquetFile(selected.path) as file:
                    columns.append(tuple(file.schema_arrow.names))
                    rows.append(file.metadata.num_rows)
            except FileNotFoundError as error:
                raise ShardError(
                    f"no selection {selected.path}; run the selection first"
                ) from error
            except (pa.ArrowException, OSError) as error:
                raise _damaged(selected.path, error) from error
        tables = cls(tuple(selections), tuple(columns), (0, *accumulate(rows)))
        for name in _IDENTITY:
            tables.demand(name, "every selection has one")
        return tables

    @property
    def rows(self) -> int:
        """How many there are in all."""
        return self.start[-1]

    def demand(self, column: str, why: str, of_pairs: bool = False) -> None:
        """Refuse to go on without a column.

        Args:
            column: its name.
            why: what needs it.
            of_pairs: whether selections of conversations may lack it.

        Raises:
            ShardError: a selection does not have it.
        """
        for selected, names in zip(self.selections, self.columns, strict=True):
            if column not in names and not (of_pairs and selected.conversations):
                raise ShardError(
                    f"{selected.path} has no column {column}: {why}; it has {', '.join(names)}"
                )

    def batches(
        self, number: int, columns: Sequence[str] | None = None
    ) -> Iterator[tuple[int, pa.RecordBatch]]:
        """Read one selection; beside each batch the number of its first row over all selections.

        Raises:
            ShardError: the file is damaged.
        """
        path, first = self.selections[number].path, self.start[number]
        try:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(ROWS, columns=columns):
                    yield first, batch
                    first += batch.num_rows
        except (pa.ArrowException, OSError) as error:
            raise _damaged(path, error) from error

    def conversations(self) -> Mask:
        """Tell which rows are conversations."""
        found = np.zeros(self.rows, np.bool_)
        for number, selected in enumerate(self.selections):
            found[self.start[number] : self.start[number + 1]] = selected.conversations
        return found

    def uids(self) -> tuple[Words, Words, Mask]:
        """Give ``groups.uid_words`` of all rows, and which have a uid."""
        words, there = np.zeros((2, self.rows), np.uint64), np.zeros(self.rows, np.bool_)
        for number, selected in enumerate(self.selections):
            for first, batch in self.batches(number, _IDENTITY):
                rows = slice(first, first + batch.num_rows)
                words[:, rows] = uid_words(
                    batch, selected.corpus or selected.name, selected.conversations
                )
                there[rows] = _there(batch["uid"])
        return words[0], words[1], there

    def numbers(self, column: str) -> Column:
        """Give a column of unsigned numbers; where a selection has no such column there is none."""
        values, there = np.zeros(self.rows, np.uint64), np.zeros(self.rows, np.bool_)
        for rows, array in self._arrays(column):
            whole = self._cast(array, pa.uint64(), column)
            values[rows] = whole.fill_null(0).to_numpy(zero_copy_only=False)
            there[rows] = _there(array)
        return values, there

    def digests(self) -> tuple[Words, Words, Mask]:
        """Give the first 128 bits of column ``sha256``, and where there is one."""
        words, there = np.zeros((2, self.rows), np.uint64), np.zeros(self.rows, np.bool_)
        for rows, array in self._arrays("sha256"):
            whole = self._cast(array, pa.binary(32), "sha256").fill_null(bytes(32))
            data = np.frombuffer(whole.buffers()[1], np.uint64)[4 * whole.offset :]
            words[:, rows] = data[: 4 * len(whole)].reshape(-1, 4)[:, :2].T
            there[rows] = _there(array)
        return words[0], words[1], there

    def above(self, column: str, most: float) -> Mask:
        """Tell where a column of numbers is above a limit; no column or no number is not."""
        found = np.zeros(self.rows, np.bool_)
        for rows, array in self._arrays(column):
            values = self._cast(array, pa.float64(), column).fill_null(0.0)
            found[rows] = values.to_numpy(zero_copy_only=False) > most
        return found

    def _arrays(self, column: str) -> Iterator[tuple[slice, pa.Array]]:
        for number, names in enumerate(self.columns):
            if column in names:
                for first, batch in self.batches(number, [column]):
                    yield slice(first, first + batch.num_rows), batch[column]

    def _cast(self, array: pa.Array, kind: pa.DataType, column: str) -> pa.Array:
        try:
            return array.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            said = str(error).split("\n")[0]
            raise ShardError(
                f"column {column} of a selection holds {array.type}, expected {kind} ({said}); "
                "score and select again"
            ) from error


def _there(array: pa.Array) -> Mask:
    there: Mask = array.is_valid().to_numpy(zero_copy_only=False)
    return there


def _damaged(path: Path, error: Exception) -> ShardError:
    said = (str(error).splitlines() or [type(error).__name__])[0]
    return ShardError(f"{path} cannot be read ({said}); run the selection again")
