"""Cutting stock: how often to use which pattern of lengths, by a linear programme.

The slowest packer and the fullest where few items share a bin, since it weighs all bins at once.
"""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import PackError, UserError
from openqwen2vl.packing.bins import Bins, Limits
from openqwen2vl.packing.fill import seed_fill_close

CLASSES = 512  # of lengths, in a bin: an item counts as the longest of its class
_GAP = 2e-4  # share of the bins that better patterns may still save when the search ends

Pattern = tuple[int, ...]
"""The classes of the items that share a bin, by number, ascending."""


def cutting_stock(
    lengths: Sequence[int], images: Sequence[int], limits: Limits, classes: int = CLASSES
) -> Bins:
    """Fill bins by the patterns that an optimal fractional solution uses most.

    Lengths are rounded up to classes. A linear programme finds how many bins of each pattern of
    classes hold them all; patterns that would save bins are added until hardly any would
    [Gilmore and Gomory 1961]. Whole bins of them are kept, the rest is packed item by item.

    Args:
        lengths: tokens of each item.
        images: images of each item, for which there is no limit here.
        limits: what a bin holds.
        classes: how finely a bin's tokens are divided; more of them fill better and take longer.

    Raises:
        PackError: an item that no bin can hold, or a limit on images.
        UserError: SciPy is not installed.
    """
    check_cutting_stock(limits.images)
    limits.check(lengths, images)
    if not lengths:
        return []
    width = max(1, limits.tokens // classes)
    capacity = limits.tokens // width
    # What is longer than all whole classes together has a bin for itself, as the last class has.
    rounded = np.minimum(-(-np.array(lengths) // width), capacity)
    sizes, owners, demand = np.unique(rounded, return_inverse=True, return_counts=True)
    shelves: list[list[int]] = [[] for _ in sizes]
    for item in np.argsort(np.array(lengths), kind="stable").tolist():
        shelves[owners[item]].append(item)
    bins: Bins = []
    for pattern, times in _solved(sizes, demand, capacity):
        for _ in range(times):
            # A pattern may hold more of a class than there are: the programme asks for enough.
            if members := [shelves[number].pop() for number in pattern if shelves[number]]:
                bins.append(members)
    rest = [item for shelf in shelves for item in shelf]
    found = seed_fill_close([lengths[i] for i in rest], [images[i] for i in rest], limits)
    return bins + [[rest[i] for i in members] for members in found]


def check_cutting_stock(max_images: int | None) -> None:
    """Make sure that this packer can run, before there is anything to pack.

    Raises:
        PackError: a limit on images.
        UserError: SciPy is not installed.
    """
    if max_images is not None:
        raise PackError(
            f"packer=cutting_stock has no limit on images, max_images is {max_images}; "
            "set max_images=null or packer=auto"
        )
    try:
        import scipy.optimize  # noqa: F401
    except ImportError as error:
        raise UserError(
            "packer=cutting_stock needs SciPy, which is not installed; "
            "run: pip install 'openqwen2vl[stock]'"
        ) from error


def _solved(
    sizes: NDArray[np.int64], demand: NDArray[np.int64], capacity: int
) -> Iterator[tuple[Pattern, int]]:
    """Give patterns and in how many whole bins to use each."""
    patterns = {(j,) * int(capacity // s): None for j, s in enumerate(sizes)}
    while True:
        used, prices = _programme(list(patterns), demand)
        worth, better = _priced(sizes, prices, capacity)
        new = [pattern for pattern in better if pattern not in patterns]
        # No solution is smaller than this one divided by the worth of the best pattern.
        if not new or worth < 1 + _GAP:
            break
        patterns.update(dict.fromkeys(new))
    for pattern, times in zip(patterns, used, strict=True):
        # What the solver gives for a whole number may lie a little below it.
        if whole := int(times + 1e-6):
            yield pattern, whole


def _programme(
    patterns: Sequence[Pattern], demand: NDArray[np.int64]
) -> tuple[list[float], NDArray[np.float64]]:
    """Give the fewest bins of each pattern, fractions allowed, and the price of each class."""
    from scipy.optimize import linprog
    from scipy.sparse import coo_array

    rows = [number for pattern in patterns for number in pattern]
    columns = np.repeat(np.arange(len(patterns)), [len(pattern) for pattern in patterns])
    shape = (len(demand), len(patterns))
    held = coo_array((np.ones(len(rows)), (rows, columns)), shape=shape).tocsc()
    found = linprog(np.ones(len(patterns)), A_ub=-held, b_ub=-demand, method="highs")
    if not found.success:
        raise PackError(
            f"packer=cutting_stock found no solution ({found.message}); try packer=auto"
        )
    return found.x.tolist(), -np.asarray(found.ineqlin.marginals)


def _priced(
    sizes: NDArray[np.int64], prices: NDArray[np.float64], capacity: int
) -> tuple[float, list[Pattern]]:
    """Give the worth of the best pattern and, for each class, the best one that holds it.

    Only patterns that are worth more than the bin that they cost are given.
    """
    best = np.zeros(capacity + 1)
    last = np.full(capacity + 1, -1)
    fitting = np.searchsorted(sizes, np.arange(capacity + 1), side="right").tolist()
    for room in range(1, capacity + 1):
        best[room], last[room] = best[room - 1], -1
        if fit := fitting[room]:
            values = prices[:fit] + best[room - sizes[:fit]]
            top = int(values.argmax())
            if values[top] > best[room]:
                best[room], last[room] = values[top], top
    worth = prices + best[capacity - sizes]
    found: list[Pattern] = []
    for number in np.flatnonzero(worth > 1 + _GAP / 2).tolist():
        pattern = [number]
        room = capacity - int(sizes[number])
        while room and best[room] > 0:
            if last[room] < 0:
                room -= 1
            else:
                pattern.append(int(last[room]))
                room -= int(sizes[last[room]])
        found.append(tuple(sorted(pattern)))
    return float(worth.max()), list(dict.fromkeys(found))
