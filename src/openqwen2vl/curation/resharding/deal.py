"""Which kept sample goes into which new shard: a pure function of counts, seed and settings.

The raw shards are put in a random order and cut into windows of a few. The samples of a window are
shuffled together, and what all windows give, one after the other, is cut into new shards of equal
counts. So a new shard is written from the tars of a window or two, however many there are.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.packing.order import permutation

_SHARDS, _SAMPLES = 1, 2  # what is shuffled: each has seeds of its own


@dataclass(frozen=True)
class Window:
    """Raw shards whose samples are shuffled together.

    Attributes:
        number: of the window.
        shards: numbers of the raw shards, in a random order.
        samples: how many are kept of all of them.
    """

    number: int
    shards: tuple[int, ...]
    samples: int


@dataclass(frozen=True)
class Hand:
    """What one new shard takes of one window: places ``start <= place < stop`` once shuffled."""

    window: Window
    start: int
    stop: int

    def rows(self, seed: int) -> NDArray[np.int64]:
        """Give the samples, in the order in which they are written.

        Args:
            seed: as of ``deal``.

        Returns:
            int64 (stop - start,), numbers of rows of the window's raw shards laid end to end.
        """
        shuffled = permutation(self.window.samples, seed, _SAMPLES, self.window.number)
        return shuffled[self.start : self.stop]


def deal(
    counts: Sequence[int], seed: int, window: int, samples_per_shard: int
) -> list[tuple[Hand, ...]]:
    """Deal samples out to new shards, whose counts differ by at most one.

    Args:
        counts: kept samples of each raw shard.
        seed: of both shuffles.
        window: raw shards in a window.
        samples_per_shard: samples in a new shard, at most.

    Returns:
        For each new shard what it takes, window by window; no shards when nothing is kept.
    """
    order = permutation(len(counts), seed, _SHARDS).tolist()
    windows = []
    for number, start in enumerate(range(0, len(order), window)):
        members = tuple(order[start : start + window])
        windows.append(Window(number, members, sum(counts[shard] for shard in members)))
    total = sum(counts)
    shards = -(-total // samples_per_shard)
    cuts = [total * number // max(1, shards) for number in range(shards + 1)]
    starts = [0, *accumulate(window.samples for window in windows)]
    hands, first = [], 0
    for start, stop in pairwise(cuts):
        taken = []
        while starts[first + 1] <= start:
            first += 1
        place = first
        while place < len(windows) and starts[place] < stop:
            low = max(start, starts[place]) - starts[place]
            high = min(stop, starts[place + 1]) - starts[place]
            if high > low:
                taken.append(Hand(windows[place], low, high))
            place += 1
        hands.append(tuple(taken))
    return hands
