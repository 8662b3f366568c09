"""All that is known of a source's samples, column by column, wherever it comes from."""

from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openqwen2vl.curation.selection.brought import ShardTables, UidTables, metric_of, read_scores
from openqwen2vl.curation.selection.frames import TableError
from openqwen2vl.curation.selection.spines import RawShards, Spine
from openqwen2vl.curation.selection.uid_index import UidIndex

FREQUENCY = "caption_frequency"
IDENTITY = ("shard", "key", "uid")
_HASH = "caption_hash"


@dataclass(frozen=True)
class Column:
    """Where a column is.

    Attributes:
        place: the scorer or table.
        own: its name there.
        dtype: its type, as an expression meets it.
        how: as it stands; a released score to be read; how often a caption's hash occurs.
    """

    place: str
    own: str
    dtype: pl.DataType
    how: Literal["as it stands", "score", "frequency"] = "as it stands"


@dataclass
class SourceTables:
    """The samples of one source and all columns that they have.

    Attributes:
        name: of the source.
        spine: its samples, with their scores.
        brought: tables to be joined, by the name that an expression may use.
        unparsed: released scores that are no number from 0 to 100, by column; of the last pass.
    """

    name: str
    spine: Spine
    brought: Mapping[str, ShardTables | UidTables]
    unparsed: dict[str, int] = field(default_factory=dict)
    _frequent: dict[Column, tuple[UidIndex, NDArray[np.uint32]]] = field(
        default_factory=dict, repr=False
    )

    @property
    def names(self) -> dict[str, list[Column]]:
        """Give all columns by name, and by ``place.name``."""
        found: dict[str, list[Column]] = {}
        places = {**self.spine.places, **{name: t.columns for name, t in self.brought.items()}}
        for place, columns in places.items():
            for name, column in _columns(place, columns):
                found.setdefault(name, []).append(column)
                found[f"{place}.{name}"] = [column]
        return found

    def resolve(self, names: Iterable[str]) -> dict[str, Column]:
        """Find columns by the names that an expression uses; unknown ones are left out.

        Raises:
            TableError: a name stands in two places, or a scorer or table has not all shards.
        """
        known, found = self.names, {}
        for name in names:
            choices = known.get(name, [])
            if len(choices) > 1:
                said = " and ".join(self._said(column.place) for column in choices)
                ways = " or ".join(f"{column.place}.{name}" for column in choices)
                raise TableError(f"column {name!r} of {self.name} is in {said}; write {ways}")
            for column in choices:
                self._demand(column.place)
                found[name] = column
        return found

    def pieces(
        self,
        wanted: Mapping[str, Column],
        numbers: Container[int] | None = None,
        bare: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """Yield the samples in order, rising by shard, some hundred thousand at a time.

        Args:
            wanted: columns by the name to give them.
            numbers: of the pieces to yield, counted from 0; all when None.
            bare: whether ``shard``, ``key`` and ``uid`` may be left out.

        Yields:
            ``shard``, ``key``, ``uid`` and the columns.

        Raises:
            TableError: a file is missing or damaged, or its rows are of other samples.
        """
        by_place: dict[str, dict[str, str]] = {}
        for name, column in wanted.items():
            by_place.setdefault(column.place, {})[name] = column.own
        own = {place: names for place, names in by_place.items() if place in self.spine.places}
        for column in wanted.values():
            # Before the pass begins: it takes one of its own.
            if column.how == "frequency" and column not in self._frequent:
                self._frequent[column] = self._count(column)
        self.unparsed.clear()
        # What is brought is joined by them.
        bare = bare and not any(place in self.brought for place in by_place)
        for frame in self.spine.pieces(own, numbers, bare):
            for place, names in by_place.items():
                if place in self.brought:
                    frame = self.brought[place].attach(frame, names)
            for name, column in wanted.items():
                if column.how != "as it stands":
                    frame = self._derive(frame, name, column)
            yield frame

    def _said(self, place: str) -> str:
        return self.spine.said[place] if place in self.spine.said else self.brought[place].said

    def _demand(self, place: str) -> None:
        if isinstance(self.spine, RawShards) and place in self.spine.places:
            self.spine.demand(place)
        elif place in self.brought and (lacking := self.brought[place].lacking):
            raise TableError(
                f"{len(lacking)} shards of {self.name} have no table like {self._said(place)}, "
                f"the first is {lacking[0]}; fetch the tables that belong to the shards"
            )

    def _derive(self, frame: pl.DataFrame, name: str, column: Column) -> pl.DataFrame:
        if column.how == "frequency":
            return frame.with_columns(self._frequency(frame[name], column).alias(name))
        scores = frame.select(read_scores(pl.col(name)))[name]
        lost = int((frame[name].is_not_null() & scores.is_null()).sum())
        self.unparsed[name] = self.unparsed.get(name, 0) + lost
        return frame.with_columns(scores)

    def _frequency(self, hashes: pl.Series, column: Column) -> pl.Series:
        """Count how often each hash occurs in the whole source; null for null."""
        index, counts = self._frequent[column]
        high = hashes.fill_null(0).to_numpy()
        found = pl.Series(counts[index.find(high, np.zeros_like(high))])
        return pl.select(pl.when(hashes.is_not_null()).then(found).alias("n"))["n"]

    def _count(self, column: Column) -> tuple[UidIndex, NDArray[np.uint32]]:
        """Keep the hashes that occur more than once, with how often; 1 follows for all others."""
        plain = Column(column.place, column.own, column.dtype)
        pieces = self.pieces({"hash": plain}, bare=True)
        parts = [piece["hash"].drop_nulls().to_numpy() for piece in pieces]
        hashes = np.concatenate(parts)
        del parts
        hashes.sort()
        starts = np.flatnonzero(np.concatenate([[True], hashes[1:] != hashes[:-1]]))
        counts = np.diff(np.append(starts, len(hashes)))
        many = counts > 1
        high = hashes[starts[many]]
        often = np.append(counts[many], 1).astype(np.uint32)
        return UidIndex(high, np.zeros_like(high)), often


def _columns(place: str, columns: Mapping[str, pl.DataType]) -> Iterator[tuple[str, Column]]:
    """Yield what an expression can call the columns of a place, those that follow from them too."""
    for own, dtype in columns.items():
        if own not in IDENTITY:
            yield own, Column(place, own, dtype)
        metric = metric_of(own)
        if metric and dtype == pl.String:
            yield metric, Column(place, own, pl.Float32(), "score")
        elif metric:
            yield metric, Column(place, own, dtype)
        if own == _HASH and dtype == pl.UInt64:
            yield FREQUENCY, Column(place, own, pl.UInt32(), "frequency")
