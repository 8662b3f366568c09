"""Micro-batches of like load, so that no rank waits long for another's images.

Packs are equally long, but a pack of captions holds twenty images and one of conversations four:
the vision tower's work is what differs. The packs of a global batch stay what they are; only who
reads which is chosen.
"""

import heapq
from collections.abc import Sequence


def balanced(loads: Sequence[int], size: int) -> list[tuple[int, ...]]:
    """Cut numbers into groups of ``size`` with loads as even as a greedy rule makes them.

    The largest load left goes to the lightest group that has room. The groups come in falling
    order of load, so that groups next to each other, which ranks work on at the same time, are
    alike. It depends on nothing but its arguments, hence not on how many ranks there are.

    Args:
        loads: images of each pack of a global batch.
        size: packs in a micro-batch; divides the number of packs.

    Returns:
        The packs' numbers, group by group, rising within a group.

    Raises:
        ValueError: ``size`` does not divide the number of packs.
    """
    if size < 1 or len(loads) % size:
        raise ValueError(f"{len(loads)} packs cannot be cut into micro-batches of {size}")
    groups: list[list[int]] = [[] for _ in range(len(loads) // size)]
    # Load first, then number: ties fall the same way on every machine.
    lightest = [(0, number) for number in range(len(groups))]
    for pack in sorted(range(len(loads)), key=lambda pack: (-loads[pack], pack)):
        load, number = heapq.heappop(lightest)
        groups[number].append(pack)
        if len(groups[number]) < size:
            heapq.heappush(lightest, (load + loads[pack], number))
    totals = [sum(loads[pack] for pack in group) for group in groups]
    order = sorted(range(len(groups)), key=lambda number: (-totals[number], number))
    return [tuple(sorted(groups[number])) for number in order]


def place(turn: int, rank: int, ranks: int) -> int:
    """Which group of a global batch a rank reads in a turn of accumulation.

    Every other turn is dealt in reverse: in the order of falling loads the same rank would
    otherwise always get the heaviest.
    """
    return turn * ranks + (rank if turn % 2 == 0 else ranks - 1 - rank)


def spread(loads: Sequence[int], size: int, ranks: int) -> float:
    """Say how unevenly a global batch's images lie on the ranks.

    In each turn all ranks wait for the one with the most images. These waits, added up over the
    turns, are set against a fair share of all images.

    Args:
        loads: images of each pack of a global batch, in its order.
        size: packs in a micro-batch.
        ranks: that work at the same time.

    Returns:
        1 where ranks have equally many in each turn, and where there are no images; 1.1 where the
        slowest ones encode a tenth more than a fair share.
    """
    if not (whole := sum(loads)):
        return 1.0
    totals = [sum(loads[pack] for pack in group) for group in balanced(loads, size)]
    waits = 0
    for turn in range(len(totals) // ranks):
        waits += max(totals[place(turn, rank, ranks)] for rank in range(ranks))
    return waits * ranks / whole
