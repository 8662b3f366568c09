"""How much data mixtures share: by documents, and by where their tokens came from."""

from collections.abc import Mapping
from itertools import combinations

import numpy as np
from numpy.typing import NDArray

Shares = dict[tuple[str, str], float]
"""By pair of names, from 0 to 1."""


def shared_documents(uids: Mapping[str, NDArray[np.uint64]]) -> Shares:
    """Give for each pair (a, b) the share of a's documents that b holds, too.

    Args:
        uids: by mixture, identities of its documents (n,); one that occurs twice counts once.

    Returns:
        Both orders of each pair, and 1 for each mixture with itself; 0 where a holds none.
    """
    sets = {name: np.unique(one) for name, one in uids.items()}
    found: Shares = {(name, name): 1.0 for name in sets}
    for one, other in combinations(sets, 2):
        both = len(np.intersect1d(sets[one], sets[other], assume_unique=True))
        found[one, other] = both / max(1, len(sets[one]))
        found[other, one] = both / max(1, len(sets[other]))
    return found


def shared_sources(tokens: Mapping[str, Mapping[str, float]]) -> Shares:
    """Give for each pair of mixtures the share of tokens that both took from the same sources.

    It is the sum over sources of the smaller of the two shares, so equal in both orders.

    Args:
        tokens: by mixture, then by source, how many were consumed.
    """
    shares = {name: _shares(one) for name, one in tokens.items()}
    return {
        (one, other): sum(min(share, shares[other].get(s, 0.0)) for s, share in own.items())
        for one, own in shares.items()
        for other in shares
    }


def _shares(tokens: Mapping[str, float]) -> dict[str, float]:
    total = sum(tokens.values())
    return {source: count / total if total else 0.0 for source, count in tokens.items()}
