"""Which of many alike rows stay: each, in order of priority, that is like none that stays.

In words of graphs: the lexicographically first maximal independent set, found by rounds in which
all rows with no undecided earlier likeness are taken at once (Blelloch, Fineman, Shun, SPAA 2012).
Edges are never listed: a thousand pictures that are all alike have half a million.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.curation.duplicates.groups import Ids
from openqwen2vl.curation.duplicates.near import Hashes, first_within, has_earlier

Mask = NDArray[np.bool_]
Rows = NDArray[np.int64]

_SLOW = 7 / 8  # a round that leaves more than this undecided is on a chain
_BLOCK = 2048


@dataclass(frozen=True)
class Nearness:
    """What is alike without being equal.

    Attributes:
        hashes: uint64 (n,).
        valid: (n,), False for rows whose hash is like no other.
        distance: bits that may differ.
        equal: int32 (n,), ``groups.equal_groups`` of the hashes.
    """

    hashes: Hashes
    valid: Mask
    distance: int
    equal: Ids


@dataclass(frozen=True)
class Verdict:
    """What stays, and for whom the others give way.

    Attributes:
        kept: (n,).
        keeper: int64 (n,); of a row that is not kept the first kept row that it is like, by the
            first criterion by which it is like an earlier one; of a kept row itself.
        criterion: int8 (n,), number of that criterion, -1 for a kept row.
    """

    kept: Mask
    keeper: Rows
    criterion: NDArray[np.int8]


def first_independent(
    groups: Sequence[Sequence[Ids]], near: Nearness | None, rows: int, block: int = _BLOCK
) -> Verdict:
    """Keep, in order, every row that is like no row kept before.

    Args:
        groups: for each criterion the ways in which it holds, int32 (rows,) each; rows of one
            number in any of them are alike, -1 is like none.
        near: rows whose hashes are within a distance are alike too; its criterion comes last.
        rows: how many there are.
        block: rows that are decided one by one where rounds get on slowly, as along a chain of
            which each link is like the next; the result does not depend on it.
    """
    by_name = [*groups, *([[near.equal]] if near else [])]
    criteria = [ids for ways in by_name for ids in ways]
    kept = np.ones(rows, np.bool_)
    concerned = near.valid.copy() if near else np.zeros(rows, np.bool_)
    for ids in criteria:
        concerned |= ids >= 0
    active = np.flatnonzero(concerned)
    scratch = [np.zeros(int(ids.max(initial=-1)) + 1, np.int64) for ids in criteria]
    before = 0
    while len(active):
        if len(active) <= block or len(active) > _SLOW * before > 0 < block:
            root = _one_by_one(active[:block], criteria, near)
            rest, roots = active[block:], active[:block][root]
            kept[active[:block][~root]] = False
        else:
            root = _roots(active, criteria, near, scratch)
            rest, roots = active[~root], active[root]
        before = len(active)
        out = _like_any(rest, roots, criteria, near)
        kept[rest[out]] = False
        active = rest[~out]
    return _attribute(kept, by_name, near)


def _roots(
    active: Rows, criteria: Sequence[Ids], near: Nearness | None, scratch: Sequence[Rows]
) -> Mask:
    """Tell which of the undecided rows have no undecided earlier row that they are like."""
    blocked = np.zeros(len(active), np.bool_)
    for ids, first in zip(criteria, scratch, strict=True):
        there = np.flatnonzero(ids[active] >= 0)
        numbers, rows = ids[active[there]], active[there]
        first[numbers[::-1]] = rows[::-1]  # the last one written stays, which is the earliest row
        later = first[numbers] < rows
        blocked[there[later]] = True
        if near and ids is near.equal:
            # Of equal hashes the earliest speaks for all.
            speaks = near.valid[active]
            speaks[there[later]] = False
            there = np.flatnonzero(speaks)
            hashes = near.hashes[active[there]]
            blocked[there] = has_earlier(hashes, near.distance, blocked[there])
    return ~blocked


def _one_by_one(rows: Rows, criteria: Sequence[Ids], near: Nearness | None) -> Mask:
    """Tell which of a few rows stay, by the definition."""
    columns = [ids[rows] for ids in criteria]
    kept = np.ones(len(rows), np.bool_)
    for i in range(len(rows)):
        if not kept[i]:
            continue
        for ids in columns:
            if ids[i] >= 0:
                kept[i + 1 :] &= ids[i + 1 :] != ids[i]
        if near and near.valid[rows[i]]:
            later = rows[i + 1 :]
            apart = np.bitwise_count(near.hashes[later] ^ near.hashes[rows[i]])
            kept[i + 1 :] &= (apart > near.distance) | ~near.valid[later]
    return kept


def _like_any(rows: Rows, kept: Rows, criteria: Sequence[Ids], near: Nearness | None) -> Mask:
    """Tell which rows are like one of those that were just kept."""
    out = np.zeros(len(rows), np.bool_)
    for ids in criteria:
        numbers = ids[kept]
        # One more at the end, for -1.
        taken = np.zeros(int(ids.max(initial=-1)) + 2, np.bool_)
        taken[numbers[numbers >= 0]] = True
        out |= taken[ids[rows]]
    if near:
        asked = np.flatnonzero(~out & near.valid[rows])
        targets = near.hashes[kept[near.valid[kept]]]
        out[asked] = first_within(near.hashes[rows[asked]], targets, near.distance) >= 0
    return out


def _attribute(kept: Mask, groups: Sequence[Sequence[Ids]], near: Nearness | None) -> Verdict:
    """Name for each dropped row the first kept one, by the first criterion that has one."""
    keeper = np.arange(len(kept))
    criterion = np.full(len(kept), -1, np.int8)
    open_rows = np.flatnonzero(~kept)
    for number, ways in enumerate(groups):
        found = open_rows.copy()
        for ids in ways:
            holder = np.full(int(ids.max(initial=-1)) + 2, len(kept), np.int64)
            holders = np.flatnonzero(kept & (ids >= 0))
            holder[ids[holders]] = holders
            found = np.minimum(found, holder[ids[open_rows]])
        named = found < open_rows
        keeper[open_rows[named]] = found[named]
        criterion[open_rows[named]] = number
        open_rows = open_rows[~named]
    if near and len(open_rows):
        targets = np.flatnonzero(kept & near.valid)
        place = first_within(near.hashes[open_rows], near.hashes[targets], near.distance)
        keeper[open_rows] = targets[place]
        criterion[open_rows] = len(groups) - 1
    return Verdict(kept, keeper, criterion)
