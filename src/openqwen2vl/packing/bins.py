"""Bin packing: which lengths share a pack."""

from collections.abc import Sequence

from openqwen2vl.formats.errors import PackError


def first_fit_decreasing(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Fill bins longest first, each length into the first bin with room [official packer].

    A tree of maxima over the bins' free room finds that bin in log n steps, where the official
    code sums every bin anew for every item.

    Args:
        lengths: each from 1 to ``capacity``; ties are taken in the order given.
        capacity: what a bin holds.

    Returns:
        For each bin the indices into ``lengths`` in the order in which they were put in.

    Raises:
        PackError: a length that no bin can hold.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if order and not (lengths[order[-1]] >= 1 and lengths[order[0]] <= capacity):
        raise PackError(
            f"lengths run from {lengths[order[-1]]} to {lengths[order[0]]}; "
            f"a pack takes 1 to {capacity}"
        )
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    # Node i has the children 2i and 2i + 1; the leaves are bins, empty ones included, so that
    # opening a bin is no special case.
    room = [capacity] * (2 * leaves)
    bins: list[list[int]] = []
    for index in order:
        length = lengths[index]
        node = 1
        while node < leaves:
            node *= 2
            if room[node] < length:
                node += 1
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(index)
        free = room[node] - length
        room[node] = free
        while node > 1:
            sibling = room[node ^ 1]
            node //= 2
            free = max(free, sibling)
            if room[node] == free:
                break
            room[node] = free
    return bins
