"""``top`` and ``top_n``: exactly so many of a source's samples, whatever the order of its shards.

Where the last place is shared, those stay first whose uid has the smaller hash; should uids be the
same, those whose shard and key have. So ties are cut at random, yet always in the same way.
"""

from collections.abc import Iterator, Mapping

import numpy as np
import polars as pl
from numpy.typing import NDArray

from openqwen2vl.curation.selection.expression import Expression, Top
from openqwen2vl.curation.selection.predicate import Predicate
from openqwen2vl.curation.selection.tables import Column, SourceTables
from openqwen2vl.curation.selection.uids import number_uids

Ranks = Mapping[str, NDArray[np.int8]]
"""By the text of the call: 1 for what stays, 0 for the others, -1 where the number is null."""

_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def rank(
    tables: SourceTables,
    expression: Expression,
    predicate: Predicate,
    columns: Mapping[str, Column],
) -> Ranks:
    """Decide every ``top`` of an expression over a whole source.

    The columns that are ranked are read once and kept, 8 bytes a sample; then the uids of those
    pieces in which there is a tie to break.

    Args:
        tables: the source.
        expression: with its tops.
        predicate: made of the expression.
        columns: of the expression, as ``tables.resolve`` gave them.
    """
    if not expression.tops:
        return {}
    # Other columns are of no use here; a number's are told by polars.
    needed = {name for part in predicate.numbers.values() for name in part.meta.root_names()}
    sizes: list[int] = []
    values: dict[str, list[NDArray[np.float64]]] = {top.text: [] for top in expression.tops}
    for piece in tables.pieces({name: columns[name] for name in needed}, bare=True):
        sizes.append(len(piece))
        found = piece.select(
            part.fill_null(float("nan")).alias(text) for text, part in predicate.numbers.items()
        )
        for text in values:
            values[text].append(_whole(found[text], len(piece)))
    starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return {
        top.text: _decide(top, np.concatenate(values.pop(top.text)), starts, tables)
        for top in expression.tops
    }


def tie_hash(uids: pl.Series) -> NDArray[np.uint64]:
    """Give the hash by which ties are broken: SplitMix64's last steps over both halves of a uid.

    Args:
        uids: strings (n,), any; see ``uids.number_uids``.

    Returns:
        uint64 (n,).
    """
    high, low = number_uids(uids)
    return _mixed(high ^ _mixed(low))


def _mixed(numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
    numbers = (numbers ^ (numbers >> np.uint64(30))) * _MIX[0]
    numbers = (numbers ^ (numbers >> np.uint64(27))) * _MIX[1]
    return numbers ^ (numbers >> np.uint64(31))


def _whole(found: pl.Series, rows: int) -> NDArray[np.float64]:
    # A number that reads no column is one value for all.
    values = found.to_numpy()
    return values if len(values) == rows else np.full(rows, values[0])


def _decide(
    top: Top, values: NDArray[np.float64], starts: NDArray[np.int64], tables: SourceTables
) -> NDArray[np.int8]:
    known = ~np.isnan(values)
    kept = np.where(known, np.int8(0), np.int8(-1))
    ranked = values[known]
    size = top.size(len(ranked))
    if size == 0:
        return kept
    ranked.partition(len(ranked) - size)
    threshold = ranked[len(ranked) - size]
    del ranked
    kept[values > threshold] = 1
    tied = np.flatnonzero(values == threshold)
    places = size - int((kept == 1).sum())
    if places < len(tied):
        tied = tied[_first(tied, places, starts, tables)]
    kept[tied] = 1
    return kept


def _first(
    tied: NDArray[np.int64], places: int, starts: NDArray[np.int64], tables: SourceTables
) -> NDArray[np.int64]:
    """Choose among rows with the same value; gives which of ``tied``."""
    hashes = [
        (tie_hash(rows["uid"]), tie_hash(rows.select(pl.concat_str("shard", "key"))["shard"]))
        for rows in _rows(tied, starts, tables)
    ]
    by_uid, by_key = (np.concatenate(parts) for parts in zip(*hashes, strict=True))
    return np.lexsort((by_key, by_uid))[:places]


def _rows(
    tied: NDArray[np.int64], starts: NDArray[np.int64], tables: SourceTables
) -> Iterator[pl.DataFrame]:
    """Yield the rows with these numbers, reading only the pieces that hold any."""
    piece_of = np.searchsorted(starts, tied, side="right") - 1
    numbers = np.unique(piece_of)
    pieces = tables.pieces({}, {int(number) for number in numbers})
    for number, piece in zip(numbers, pieces, strict=True):
        inside = tied[piece_of == number] - starts[number]
        yield piece.select(pl.all().gather(inside))
