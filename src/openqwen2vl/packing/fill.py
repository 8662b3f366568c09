"""Seed, fill, close: a packer that keeps the short items spread out and closes bins exactly.

First fit decreasing runs out of what could fill its gaps, since the short items go last and all
items have an image. Here a bin is opened with a long item as long as there are any, filled with
items at random, and closed with the few items whose sum comes nearest to the room that remains.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.packing.bins import Bins, Limits
from openqwen2vl.packing.order import permutation

CLOSERS = 3  # items that close a bin, at most
_ENOUGH = 1.005  # times the lower bound: with so few bins no other style is tried
_SEED = 0  # of the random order
_TRIES = 8  # splits that are looked at for one sum, and sums that fail in one closing


@dataclass(frozen=True)
class Style:
    """How bins are opened and closed; which style fills best depends on the lengths.

    Attributes:
        seeds: an item opens a bin when it is longer than so many average ones. With no such item
            left, bins are opened at random: seeds alone would leave only short items for the end.
        many: whether a bin is closed by as many items as can be rather than by as few.
    """

    seeds: float
    many: bool


STYLES = (Style(seeds=2.0, many=True), Style(seeds=1.0, many=False))
"""The first is best for captions and conversations, the second for documents of many lengths."""


def seed_fill_close(
    lengths: Sequence[int],
    images: Sequence[int],
    limits: Limits,
    styles: Sequence[Style] = STYLES,
) -> Bins:
    """Fill bins one by one; the same arguments always give the same bins.

    A bin takes random items while there is room for more than ``CLOSERS`` average ones. With a
    limit on images it may be closed with fewer tokens than could be had.

    Args:
        lengths: tokens of each item.
        images: images of each item.
        limits: what a bin holds.
        styles: are tried in order until one needs hardly more bins than the lower bound; the one
            with the fewest counts.

    Raises:
        PackError: an item that no bin can hold.
    """
    limits.check(lengths, images)
    enough = _ENOUGH * limits.lower_bound(lengths, images)
    best: Bins | None = None
    for style in styles:
        bins = _filled(lengths, images, limits, style)
        best = bins if best is None or len(bins) < len(best) else best
        if len(best) <= enough:
            break
    return best or []


def _filled(lengths: Sequence[int], images: Sequence[int], limits: Limits, style: Style) -> Bins:
    if not lengths:
        return []
    order = permutation(len(lengths), _SEED)
    tokens, pictures = np.array(lengths)[order], np.array(images)[order]
    stock = _Stock(tokens, pictures)
    mean = float(tokens.mean())
    reserve = int(CLOSERS * mean)
    closer = _Closer(stock, max(reserve, stock.longest()), int(pictures.min()), style.many)
    most = int(pictures.sum()) if limits.images is None else limits.images
    bins: Bins = []
    while longest := stock.longest():
        members: list[int] = []
        room, places = limits.tokens, most
        if longest <= style.seeds * mean:
            room, places = stock.draw(members, room, places, reserve)
        if not members:
            seed = stock.take(longest)
            members.append(seed)
            room, places = room - longest, places - stock.images[seed]
            room, places = stock.draw(members, room, places, reserve)
        closer.close(members, room, places)
        bins.append(members)
    names = order.tolist()
    return [[names[i] for i in members] for members in bins]


class _Stock:
    """The items that are left: drawn from the front of a row, or taken by length from its end.

    An item is left while it is at or behind ``front`` and not marked as taken. Of each length the
    takes use up the last items first, so that those left of a length are a run of its places.
    """

    def __init__(self, lengths: NDArray[np.int64], images: NDArray[np.int64]) -> None:
        self.lengths: list[int] = lengths.tolist()
        self.images: list[int] = images.tolist()
        self.front = 0
        self._taken = bytearray(len(lengths) + 1)  # the item beyond the last is never taken
        self._tokens_before = [0, *accumulate(self.lengths)]
        self._images_before = [0, *accumulate(self.images)]
        counts = np.bincount(lengths)
        self.distinct: list[int] = np.flatnonzero(counts).tolist()
        # Small integers are sorted by radix.
        small = lengths.astype(np.min_scalar_type(len(counts)))
        self._places: list[int] = np.argsort(small, kind="stable").tolist()
        self._ends: list[int] = np.cumsum(counts).tolist()
        self._starts = [0, *self._ends[:-1]]
        self._longest = len(counts) - 1

    def has(self, length: int, count: int = 1) -> bool:
        """Say whether so many items of this length are left."""
        at = self._ends[length] - count
        return at >= self._starts[length] and self._places[at] >= self.front

    def take(self, length: int) -> int:
        """Take an item of this length; there must be one."""
        self._ends[length] -= 1
        item = self._places[self._ends[length]]
        self._taken[item] = 1
        return item

    def give_back(self, item: int) -> None:
        """Undo the latest take of an item of this length."""
        self._ends[self.lengths[item]] += 1
        self._taken[item] = 0

    def longest(self) -> int:
        """Give the length of the longest item left; 0 when there is none."""
        while self._longest and not self.has(self._longest):
            self._longest -= 1
        return self._longest

    def draw(self, members: list[int], room: int, places: int, reserve: int) -> tuple[int, int]:
        """Add drawn items until no more than ``reserve`` is free, or the next one does not fit.

        Args:
            members: of the bin, to be added to.
            room: tokens that are free in it.
            places: images that fit.
            reserve: tokens to leave free.

        Returns:
            The tokens and images that still fit.
        """
        tokens, pictures, last = self._tokens_before, self._images_before, len(self.lengths)
        while room > reserve and self.front < last:
            start = self.front
            if self._taken[start]:
                self.front += 1
                continue
            held = tokens[start]
            stop = bisect_left(tokens, held + room - reserve, start, last)
            stop -= tokens[stop] - held > room
            stop = min(stop, bisect_right(pictures, pictures[start] + places, start) - 1)
            gap = self._taken.find(1, start, stop)
            if gap >= 0:
                stop = gap
            members += range(start, stop)
            self.front = stop
            room -= tokens[stop] - held
            places -= pictures[stop] - pictures[start]
            if gap < 0:
                break
        return room, places


class _Closer:
    """Finds the items that fill a room best, by sets of reachable sums as bits of integers.

    Bit ``s`` of ``sums[k]`` is set where at most k items have s tokens in sum. The sets are not
    kept up to date as lengths run out: a sum that turns out to be gone has them made anew.
    """

    def __init__(self, stock: _Stock, limit: int, fewest_images: int, many: bool) -> None:
        self._stock = stock
        self._limit = limit
        self._fewest = fewest_images
        self._many = many
        self._lengths = [length for length in reversed(stock.distinct) if length <= limit]
        self._rebuild()

    def _rebuild(self) -> None:
        """Make the sums of one, two and three items that are left, none used twice."""
        stock, limit = self._stock, self._limit
        self._lengths = [length for length in self._lengths if stock.has(length)]
        self._stale = False
        self._refused = 0  # splits of the sum at hand that hold too many images
        inside = (2 << limit) - 1
        single = pair = triple = mirror = 0
        # From the longest down, so that each length is the shortest of the sums that it joins.
        for length in self._lengths:
            alone = 1 << length
            mirror |= 1 << (limit - length)
            if 3 * length <= limit:
                triple |= pair << length
                if stock.has(length, 2):
                    triple |= (single | alone if stock.has(length, 3) else single) << 2 * length
            if 2 * length <= limit:
                pair |= (single | alone if stock.has(length, 2) else single) << length
                pair &= inside
            single |= alone
        # The mirror is the set of lengths from the other end: shifted, it has the rests of a sum.
        self._single, self._pair, self._mirror = single, pair, mirror
        self._sums = (0, single, single | pair, single | pair | triple & inside)

    def _forget(self, length: int) -> None:
        self._single &= ~(1 << length)
        self._mirror &= ~(1 << (self._limit - length))

    def close(self, members: list[int], room: int, places: int) -> None:
        """Add the items that fill ``room`` best."""
        top, most, tries = room, CLOSERS, _TRIES
        while tries:
            count = min(most, places // self._fewest) if self._fewest else most
            self._refused = 0
            below = self._sums[count] & ((2 << top) - 1)
            if not below:
                break
            total = below.bit_length() - 1
            if found := self._find(total, count, places):
                members += found
                room -= total
                top = room
                places -= sum(self._stock.images[i] for i in found)
                continue
            tries -= 1
            if self._refused:
                most -= 1
            elif self._stale:
                self._rebuild()
            else:
                top = total - 1

    def _find(self, total: int, count: int, places: int) -> list[int]:
        """Take at most ``count`` items with this sum; an empty list when there are none."""
        counts = range(1, count + 1)
        for number in reversed(counts) if self._many else counts:
            if found := self._split(total, number, (), places):
                return found
        return []

    def _split(self, total: int, count: int, others: tuple[int, ...], places: int) -> list[int]:
        """Take items of the lengths ``others`` and ``count`` more with the sum ``total``.

        The items are as alike as can be: such lengths are plentiful, the odd ones are kept for
        the sums that need them.
        """
        if count == 1:
            return self._taken((*others, total), places) if self._single >> total & 1 else []
        # The shortest item has at most its share of the sum, so that the others have the rest.
        least = total * (count - 1) // count
        rests = self._mirror >> (self._limit - total) & (self._single, self._pair)[count - 2]
        rests >>= least
        for _ in range(_TRIES):
            if not rests or self._refused >= _TRIES:
                break
            nearest = rests & -rests
            rests ^= nearest
            rest = least + nearest.bit_length() - 1
            if found := self._split(rest, count - 1, (*others, total - rest), places):
                return found
        return []

    def _taken(self, lengths: tuple[int, ...], places: int) -> list[int]:
        """Take an item of each length, or none at all."""
        items: list[int] = []
        for length in lengths:
            if not self._stock.has(length):
                self._stale = True
                if length not in lengths[: len(items)]:
                    self._forget(length)
                break
            items.append(self._stock.take(length))
        if len(items) == len(lengths):
            if sum(self._stock.images[i] for i in items) <= places:
                return items
            self._refused += 1
        for item in reversed(items):
            self._stock.give_back(item)
        return []
