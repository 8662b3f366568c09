"""Finds 128-bit numbers in a sorted table of them, many at a time."""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray

_BITS = 24  # of a number that lead to where it stands; 64 MiB of places at most
_MARKED = 29  # of a number that are marked when there is one; 64 MiB at most
_CHUNK = 1 << 20  # numbers marked at a time
_STEPS = 64  # in a row from there; more, and numbers are not spread as hashes are


def rising_order(high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Give the order in which 128-bit numbers rise; equal ones stay in theirs.

    The first bits and the row are sorted as one number, which is several times as fast as to sort
    the rows by two; then those few rows are put right whose first bits are the same.

    Args:
        high: uint64 (n,), their high halves.
        low: uint64 (n,), their low halves.

    Returns:
        int64 (n,).
    """
    bits = np.uint64(len(high).bit_length())
    row = (np.uint64(1) << bits) - np.uint64(1)
    packed = high & ~row
    packed |= np.arange(len(high), dtype=np.uint64)
    packed.sort()
    order = (packed & row).view(np.int64)
    packed >>= bits
    same = packed[1:] == packed[:-1]
    shares = np.zeros(len(high), np.bool_)
    shares[1:] = same
    shares[:-1] |= same
    places = np.flatnonzero(shares)
    rows = order[places]
    order[places] = rows[np.lexsort((low[rows], high[rows]))]
    return order


class UidIndex:
    """A sorted table of 128-bit numbers.

    Uids are hashes, so their first bits tell about where they stand: two reads from memory find
    one, where halving a table of 20M takes 25. A table that is not spread so is halved all the same.

    Attributes:
        high: uint64 (n,), the high halves, rising.
        low: uint64 (n,), the low halves, rising where the high ones are equal.
    """

    def __init__(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> None:
        self.high, self.low = high, low
        bits = min(_BITS, max(1, len(high).bit_length()))
        self._shift = np.uint64(64 - bits)
        places = np.arange(1 << bits, dtype=np.uint64) << self._shift
        starts = np.append(np.searchsorted(high, places), len(high))
        self._spread = bool(np.diff(starts).max() <= _STEPS)
        self._starts = starts.astype(np.uint32 if len(high) < 1 << 32 else np.int64)

    def __len__(self) -> int:
        """Give how many numbers there are."""
        return len(self.high)

    def find(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Find numbers.

        Args:
            high: uint64 (m,), their high halves.
            low: uint64 (m,), their low halves.

        Returns:
            int64 (m,): where the first equal one stands in the table, -1 when there is none.
        """
        if not len(self):
            return np.full(len(high), -1, np.int64)
        place = self._walk(high, low) if self._spread else self._halve(high, low)
        inside = np.minimum(place, len(self) - 1)
        # Most are absent, and their high halves differ.
        place[self.high[inside] != high] = -1
        rest = np.nonzero(place >= 0)[0]
        there = place[rest] < len(self)
        there[there] = self.low[place[rest[there]]] == low[rest[there]]
        place[rest[~there]] = -1
        return place

    def may_have(self, high: NDArray[np.uint64]) -> NDArray[np.bool_]:
        """Tell where there may be a number with this high half; of those absent, one in 16 passes.

        Args:
            high: uint64 (m,).

        Returns:
            bool (m,); where it is False there is none.
        """
        shift, marks = self._marks
        first = high >> shift
        bits = marks[(first >> np.uint64(3)).view(np.int64)]
        bits >>= first.astype(np.uint8) & np.uint8(7)
        return (bits & 1).view(np.bool_)

    @cached_property
    def _marks(self) -> tuple[np.uint64, NDArray[np.uint8]]:
        """Mark the first bits of the high halves, 16 marks or more a number and 64 MiB at most."""
        bits = min(_MARKED, max(10, (16 * len(self)).bit_length()))
        shift = np.uint64(64 - bits)
        marks = np.zeros(1 << (bits - 3), np.uint8)
        for start in range(0, len(self), _CHUNK):
            first = self.high[start : start + _CHUNK] >> shift
            place, bit = (
                first >> np.uint64(3),
                np.uint8(1) << (first & np.uint64(7)).astype(np.uint8),
            )
            starts = np.flatnonzero(np.concatenate([[True], place[1:] != place[:-1]]))
            marks[place[starts]] |= np.bitwise_or.reduceat(bit, starts)
        return shift, marks

    def _walk(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Step from where numbers with the same first bits begin to the first not below."""
        bucket = (high >> self._shift).astype(np.int64)
        place = self._starts[bucket].astype(np.int64)
        end = self._starts[bucket + 1].astype(np.int64)
        active = np.nonzero(place < end)[0]
        while len(active):
            at = place[active]
            found, wanted = self.high[at], high[active]
            below = found < wanted
            same = np.nonzero(found == wanted)[0]
            below[same] = self.low[at[same]] < low[active[same]]
            active = active[below]
            place[active] += 1
            active = active[place[active] < end[active]]
        return place

    def _halve(self, high: NDArray[np.uint64], low: NDArray[np.uint64]) -> NDArray[np.int64]:
        left = np.zeros(len(high), np.int64)
        right = np.full(len(high), len(self), np.int64)
        while (left < right).any():
            middle = (left + right) >> 1
            at = np.minimum(middle, len(self) - 1)
            found = self.high[at]
            below = (found < high) | ((found == high) & (self.low[at] < low))
            open_ = left < right
            left = np.where(open_ & below, middle + 1, left)
            right = np.where(open_ & ~below, middle, right)
        return left
