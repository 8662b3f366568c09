"""Bins: what a pack may hold, and first fit decreasing, the official way to share it out."""

from collections.abc import Sequence
from dataclasses import dataclass

from openqwen2vl.formats.errors import PackError

Bins = list[list[int]]
"""For each bin the indices of its items in the order in which they were put in."""


@dataclass(frozen=True)
class Limits:
    """What a pack may hold.

    Attributes:
        tokens: its capacity.
        images: the most images; None means any number.

    Raises:
        PackError: a limit below 1.
    """

    tokens: int
    images: int | None = None

    def __post_init__(self) -> None:
        if self.tokens < 1 or (self.images is not None and self.images < 1):
            raise PackError(
                f"a pack of {self.tokens} tokens and {self.images} images; both start at 1"
            )

    def check(self, lengths: Sequence[int], images: Sequence[int]) -> None:
        """Make sure that each item fits into an empty bin.

        Raises:
            PackError: an item that no bin can hold, or lists of unlike lengths.
        """
        if len(lengths) != len(images):
            raise PackError(f"{len(lengths)} lengths and {len(images)} counts of images")
        if lengths and not (min(lengths) >= 1 and max(lengths) <= self.tokens):
            raise PackError(
                f"lengths run from {min(lengths)} to {max(lengths)}; a pack takes 1 to {self.tokens}"
            )
        if images and not (min(images) >= 0 and max(images) <= (self.images or max(images))):
            raise PackError(
                f"images run from {min(images)} to {max(images)}; a pack takes 0 to {self.images}"
            )

    def lower_bound(self, lengths: Sequence[int], images: Sequence[int]) -> int:
        """Give the fewest bins that could hold the tokens and the images."""
        by_images = 0 if self.images is None else -(-sum(images) // self.images)
        return max(-(-sum(lengths) // self.tokens), by_images)


def first_fit_decreasing(lengths: Sequence[int], images: Sequence[int], limits: Limits) -> Bins:
    """Fill bins longest first, each item into the first bin with room [official packer].

    Trees of maxima over the bins' free room find that bin in log n steps, where the official
    code sums every bin anew for every item. With a limit on images a subtree may have room for
    the tokens in one bin and for the images in another, so that the search turns back at times.

    Args:
        lengths: tokens of each item; ties are taken in the order given.
        images: images of each item.
        limits: what a bin holds.

    Raises:
        PackError: an item that no bin can hold.
    """
    limits.check(lengths, images)
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)
    if limits.images is None:
        return _by_tokens(order, lengths, limits.tokens)
    return _by_both(order, lengths, images, limits.tokens, limits.images)


def _by_tokens(order: Sequence[int], lengths: Sequence[int], capacity: int) -> Bins:
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    # Node i has the children 2i and 2i + 1; the leaves are bins, empty ones included, so that
    # opening a bin is no special case.
    room = [capacity] * (2 * leaves)
    bins: Bins = []
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


def _by_both(
    order: Sequence[int],
    lengths: Sequence[int],
    images: Sequence[int],
    capacity: int,
    max_images: int,
) -> Bins:
    leaves = 1 << max(0, len(lengths) - 1).bit_length()
    room = [capacity] * (2 * leaves)
    places = [max_images] * (2 * leaves)
    fewest = min(images, default=0)
    bins: Bins = []
    for index in order:
        length, count = lengths[index], images[index]
        node = 1
        while room[node] < length or places[node] < count or node < leaves:
            if room[node] >= length and places[node] >= count:
                node *= 2
            else:
                # The next subtree to the right: up while this one is a right child.
                while node & 1:
                    node //= 2
                node += 1
        if node - leaves == len(bins):
            bins.append([])
        bins[node - leaves].append(index)
        places[node] -= count
        # A bin that no item's images fit into has no room to look for either.
        room[node] = room[node] - length if places[node] >= fewest else 0
        while node > 1:
            node //= 2
            room[node] = max(room[2 * node], room[2 * node + 1])
            places[node] = max(places[2 * node], places[2 * node + 1])
    return bins
