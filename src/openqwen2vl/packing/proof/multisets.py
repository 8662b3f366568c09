"""Where numbers of one array stand in another, and which of them it has too many of."""

import numpy as np
from numpy.typing import NDArray


def lookup(many: NDArray[np.uint64], wanted: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Give where each of the wanted is among many, the first of equal ones; -1 where it is not."""
    if not len(many):
        return np.full(len(wanted), -1)
    order = np.argsort(many, kind="stable")
    place = order[np.minimum(np.searchsorted(many[order], wanted), len(many) - 1)]
    return np.where(many[place] == wanted, place, -1)


def surplus(many: NDArray[np.uint64], few: NDArray[np.uint64]) -> NDArray[np.int64]:
    """Give the places of ``many``'s elements that ``few`` does not have as often; the later ones."""
    order = np.argsort(many, kind="stable")
    ordered, others = many[order], np.sort(few)
    rank = np.arange(len(many)) - np.searchsorted(ordered, ordered, side="left")
    allowed = np.searchsorted(others, ordered, side="right") - np.searchsorted(others, ordered)
    places: NDArray[np.int64] = np.sort(order[rank >= allowed])
    return places
