"""Packers by name, and the choice between them."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from openqwen2vl.formats.errors import PackError
from openqwen2vl.packing.bins import Bins, Limits, first_fit_decreasing
from openqwen2vl.packing.fill import seed_fill_close
from openqwen2vl.packing.stock import check_cutting_stock, cutting_stock

Packer = Callable[[Sequence[int], Sequence[int], Limits], Bins]
"""Shares items out by their tokens and images; always the same bins for the same items."""

AUTO = "auto"
CUTTING_STOCK = "cutting_stock"
# Of two that need as many bins, auto takes the one named first: it mixes short and long items.
_FAST: dict[str, Packer] = {
    "seed_fill_close": seed_fill_close,
    "first_fit_decreasing": first_fit_decreasing,
}
_ALL: dict[str, Packer] = {**_FAST, CUTTING_STOCK: cutting_stock}
PACKERS = (AUTO, *_ALL)


class Packing(NamedTuple):
    """The bins of one window and the name of the packer that made them."""

    packer: str
    bins: Bins


def check_packer(name: str, max_images: int | None) -> None:
    """Make sure that a packer can do what is asked of it, before there is anything to pack.

    Raises:
        PackError: an unknown name, or a limit on images that is below 1 or not supported.
        UserError: what the packer needs is not installed.
    """
    if name not in PACKERS:
        raise PackError(f"packer is '{name}'; there are {', '.join(PACKERS)}")
    if max_images is not None and max_images < 1:
        raise PackError(f"max_images is {max_images}; expected 1 or more, or null for any number")
    if name == CUTTING_STOCK:
        check_cutting_stock(max_images)


def pack(name: str, lengths: Sequence[int], images: Sequence[int], limits: Limits) -> Packing:
    """Share items out by a packer's name; ``auto`` keeps the fuller bins of the fast ones.

    Args:
        name: one of ``PACKERS``.
        lengths: tokens of each item.
        images: images of each item.
        limits: what a bin holds.

    Raises:
        PackError: as of ``check_packer``, or an item that no bin can hold.
        UserError: as of ``check_packer``.
    """
    check_packer(name, limits.images)
    tried = _FAST if name == AUTO else {name: _ALL[name]}
    packings = [Packing(n, packer(lengths, images, limits)) for n, packer in tried.items()]
    return min(packings, key=lambda packing: len(packing.bins))
