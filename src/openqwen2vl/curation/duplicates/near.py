"""Perceptual hashes within a Hamming distance of each other, found without comparing all pairs.

Of 64 bits cut into ``d + k`` bands, two hashes that differ in at most ``d`` bits agree on at least
``k`` bands (the pigeonhole principle; Manku, Jain, Das Sarma, WWW 2007). So for every choice of
``k`` bands only hashes that agree on them are compared. Which ``k`` is taken changes the time, never
the result.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from math import comb

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import ConfigError

MAX_DISTANCE = 16
"""Half of what two unrelated pictures differ by; beyond it bands no longer tell them apart."""

Hashes = NDArray[np.uint64]
Places = NDArray[np.int64]

_BITS = 64
_TABLE_BITS = 24  # a table of bucket starts takes 2**24 int64: 128 MiB
_SAMPLE = 1 << 16  # hashes that the choice of bands is made by
_CHUNK = 1 << 20  # queries that are compared in lockstep
_WINDOW = 1 << 12  # comparisons of a step, once few queries are left
_TARGET_NS, _QUERY_NS, _COMPARE_NS, _CHOICE_NS = 120.0, 30.0, 12.0, 100_000.0
_MOST_CHOICES = 2000


def check_distance(distance: int) -> None:
    """Refuse distances that no search is made for.

    Raises:
        ConfigError: not a whole number from 0 to ``MAX_DISTANCE``.
    """
    if not isinstance(distance, int) or isinstance(distance, bool):
        raise ConfigError(f"distance is {distance!r}; give the bits that may differ, such as 4")
    if not 0 <= distance <= MAX_DISTANCE:
        raise ConfigError(
            f"distance is {distance} of {_BITS} bits; give 0 to {MAX_DISTANCE}, such as 4"
        )


def first_within(queries: Hashes, targets: Hashes, distance: int) -> Places:
    """Find for each query the first target within a distance.

    Args:
        queries: uint64 (q,).
        targets: uint64 (t,), fewer than 2**32.
        distance: bits that may differ.

    Returns:
        int64 (q,), the lowest place in ``targets`` of a hash within the distance, or -1.

    Raises:
        ConfigError: see ``check_distance``.
    """
    check_distance(distance)
    found = np.full(len(queries), -1, np.int64)
    if not len(queries) or not len(targets):
        return found
    for choice in _choices(queries, targets, distance):
        keys = choice.keys(queries)
        buckets = _Buckets.make(targets, choice, keys)
        for first in range(0, len(queries), _CHUNK):
            part = slice(first, first + _CHUNK)
            hit = buckets.scan(queries[part], *buckets.bounds(keys[part]), distance)
            there = np.flatnonzero(hit >= 0) + first
            place = buckets.rows[hit[there - first]]
            lower = (found[there] < 0) | (place < found[there])
            found[there[lower]] = place[lower]
    return found


def has_earlier(hashes: Hashes, distance: int, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Tell which hashes have an earlier one within a distance.

    Args:
        hashes: uint64 (n,), fewer than 2**32.
        distance: bits that may differ.
        known: (n,), those for which the answer is yes already and which only others look at.

    Returns:
        (n,), ``known`` and those found.

    Raises:
        ConfigError: see ``check_distance``.
    """
    check_distance(distance)
    known = known.copy()
    if len(hashes) < 2:
        return known
    for choice in _choices(hashes, hashes, distance):
        buckets = _Buckets.make(hashes, choice, None)
        # In the order of the buckets, so that neighbours in memory are compared.
        for first in range(0, len(hashes), _CHUNK):
            place = np.arange(first, min(first + _CHUNK, len(hashes)))
            place = place[~known[buckets.rows[place]]]
            begin, _ = buckets.bounds(choice.keys(buckets.hashes[place]))
            hit = buckets.scan(buckets.hashes[place], begin, place, distance)
            known[buckets.rows[place[hit >= 0]]] = True
    return known


@dataclass(frozen=True)
class _Choice:
    """Some of the bands: ``(shift, width)`` of each, and how many bits of them make the key."""

    bands: tuple[tuple[int, int], ...]
    bits: int

    def keys(self, hashes: Hashes) -> NDArray[np.uint64]:
        """Give the bits of the bands, side by side, the last ones cut off: uint64 (n,)."""
        keys = np.zeros(len(hashes), np.uint64)
        width = 0
        for shift, wide in self.bands:
            if width >= self.bits:
                break
            wide_mask = np.uint64((1 << wide) - 1)
            keys = (keys << np.uint64(wide)) | ((hashes >> np.uint64(shift)) & wide_mask)
            width += wide
        return keys >> np.uint64(max(0, width - self.bits))


def _choices(queries: Hashes, targets: Hashes, distance: int) -> Iterator[_Choice]:
    """Give every choice of k bands of distance + k, for the k that should take the least time."""
    bits = max(1, min(_TABLE_BITS, len(targets).bit_length() + 1))
    plans = []
    for k in range(1, 5):
        plan = _plan(distance, k, bits)
        if k > 1 and comb(distance + k, k) > _MOST_CHOICES:
            break
        plans.append((_cost(plan[0], len(plan), queries, targets), k, plan))
    yield from min(plans)[2]


def _plan(distance: int, k: int, bits: int) -> list[_Choice]:
    bounds = [round(_BITS * i / (distance + k)) for i in range(distance + k + 1)]
    bands = [(low, high - low) for low, high in pairwise(bounds)]
    return [
        _Choice(chosen, min(bits, sum(wide for _, wide in chosen)))
        for chosen in combinations(bands, k)
    ]


def _cost(choice: _Choice, times: int, queries: Hashes, targets: Hashes) -> float:
    """Foretell the nanoseconds of a plan, by how often hashes of a sample share their key."""
    sample = targets[:: -(-len(targets) // _SAMPLE)]
    _, sizes = np.unique(choice.keys(sample), return_counts=True)
    others = max(1, len(sample) * (len(sample) - 1))
    shared = max(float((sizes * (sizes - 1)).sum()) / others, 2.0**-choice.bits)
    compared = shared * len(queries) * len(targets)
    one = len(targets) * _TARGET_NS + len(queries) * _QUERY_NS + compared * _COMPARE_NS
    return times * (one + _CHOICE_NS)


@dataclass(frozen=True)
class _Buckets:
    """Targets in the order of their keys, and of their places within a key.

    Attributes:
        start: int64 (2**bits + 1,), where each key's bucket begins.
        rows: int64 (t,), the target's place among those given.
        hashes: uint64 (t,).
    """

    start: Places
    rows: Places
    hashes: Hashes

    @classmethod
    def make(
        cls, targets: Hashes, choice: _Choice, wanted: NDArray[np.uint64] | None
    ) -> "_Buckets":
        """Sort targets into buckets; with ``wanted`` keys, leave out what no query looks at."""
        keys = choice.keys(targets)
        rows = np.arange(len(targets), dtype=np.uint64)
        if wanted is not None and len(wanted) < len(targets):
            looked_at = np.zeros(1 << choice.bits, np.bool_)
            looked_at[wanted.view(np.int64)] = True
            rows = np.flatnonzero(looked_at[keys.view(np.int64)]).astype(np.uint64)
            keys = keys[rows.view(np.int64)]
        counts = np.bincount(keys.view(np.int64), minlength=1 << choice.bits)
        start = np.zeros(len(counts) + 1, np.int64)
        np.cumsum(counts, out=start[1:])
        # Sorting one number for key and place is several times faster than an argsort.
        keys <<= np.uint64(32)
        keys |= rows
        keys.sort()
        keys &= np.uint64(0xFFFFFFFF)
        order = keys.view(np.int64)
        return cls(start, order, targets[order])

    def bounds(self, keys: NDArray[np.uint64]) -> tuple[Places, Places]:
        """Give the first place and the end of each key's bucket."""
        places = keys.view(np.int64)
        return self.start[places], self.start[places + 1]

    def scan(self, queries: Hashes, begin: Places, end: Places, distance: int) -> Places:
        """Find the first place in ``[begin, end)`` of a hash within the distance, or -1."""
        found = np.full(len(queries), -1, np.int64)
        live = np.flatnonzero(begin < end)
        at, end = begin[live], end[live]
        while len(live):
            # One after the other while there are many, since most need few; more at once later.
            steps = np.arange(max(1, _WINDOW // len(live)))
            place = at[:, None] + steps
            inside = place < end[:, None]
            candidates = self.hashes[np.minimum(place, len(self.hashes) - 1)]
            apart = np.bitwise_count(candidates ^ queries[live][:, None])
            hits = (apart <= distance) & inside
            hit = hits.any(axis=1)
            found[live[hit]] = at[hit] + hits[hit].argmax(axis=1)
            at = at + len(steps)
            on = ~hit & (at < end)
            live, at, end = live[on], at[on], end[on]
        return found
