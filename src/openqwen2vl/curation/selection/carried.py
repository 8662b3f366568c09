"""Columns that go along with a selection, for later steps and into the new shards."""

from collections.abc import Mapping

import polars as pl
import pyarrow as pa

from openqwen2vl.curation.measured import Measured
from openqwen2vl.curation.selection.spines import RawShards
from openqwen2vl.curation.selection.tables import IDENTITY, Column, SourceTables

CARRIED: Mapping[str, pa.DataType] = {
    "sha256": pa.binary(),
    "phash": pa.uint64(),
    "caption_hash": pa.uint64(),
    "width": pa.int32(),
    "height": pa.int32(),
    "blank_share": pa.float32(),
    "pictures": pa.int32(),
    "more_sha256": pa.binary(),
    "more_phash": pa.binary(),
    "more_blank_share": pa.binary(),
}
"""What later steps need, taken along from the scorers that know it."""

CARRY = "carried "
"""What their names begin with while they are looked at; no expression can spell it."""

_TAKEN = frozenset((*CARRIED, *IDENTITY, "sources", "reason", "detail"))
_PLAIN: Mapping[pl.DataType, pa.DataType] = {
    pl.String(): pa.string(),
    pl.Binary(): pa.binary(),
    pl.Int64(): pa.int64(),
}


def needed_later(tables: SourceTables) -> dict[str, Column]:
    """Find ``CARRIED``: of scorers that have seen every shard, one for each."""
    spine = tables.spine
    if not isinstance(spine, RawShards):
        return {}
    return {
        CARRY + column: Column(place, column, spine.places[place][column])
        for column in CARRIED
        for place in spine.whole
        if column in spine.places[place]
    }


def measured(tables: SourceTables, carried: Mapping[str, Column]) -> Measured:
    """Tell which scorers measured what goes along."""
    spine = tables.spine
    if not isinstance(spine, RawShards):
        return {}
    places = {column.place for column in carried.values()}
    found = {place: spine.measured_by(place) for place in sorted(places)}
    return {column.own: found[column.place] for column in carried.values()}


def is_in_scores(tables: SourceTables, column: Column) -> bool:
    """Whether a column can be looked up in the files of scores, as it is."""
    return column.place in tables.spine.places and column.how == "as it stands"


def brought(tables: SourceTables, columns: Mapping[str, Column]) -> dict[str, str]:
    """Name the columns that a selection of raw shards alone hands on: brought, or reckoned on the way.

    Args:
        tables: the source.
        columns: what the expression looked at, by the words that it uses.

    Returns:
        Names in the selection's table by those words. A name that means something there already
        gives way to ``COLUMN of PLACE``.
    """
    if not isinstance(tables.spine, RawShards):
        return {}
    return {
        word: f"{column.own} of {column.place}" if word in _TAKEN or "." in word else word
        for word, column in columns.items()
        if not is_in_scores(tables, column)
    }


def plain_type(dtype: pl.DataType) -> pa.DataType:
    """Give the type in which a column of polars is stored."""
    known = _PLAIN.get(dtype)
    return known if known is not None else pl.Series([], dtype=dtype).to_arrow().type
