"""Intervals and tests that take rows for what they are: copies of fewer questions.

C clusters (questions), R rows, D draws. All figures are shares; a difference is b minus a.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.evaluation.statistics import Outcome

# Draws times clusters that are held at once.
_CELLS = 1 << 22
# Up to this sum of absolute cluster sums the distribution is counted out, in about a second.
_COUNTABLE = 20_000


@dataclass(frozen=True)
class Clusters:
    """What a paired difference needs of each question.

    Attributes:
        sums: (C,) float64, the differences of its rows summed.
        sizes: (C,) int64, how many rows it has.
    """

    sums: NDArray[np.float64]
    sizes: NDArray[np.int64]

    @property
    def differing(self) -> int:
        """How many questions speak for one of the two."""
        return int(np.count_nonzero(self.sums))

    @property
    def difference(self) -> float:
        """The mean difference over all rows."""
        return float(self.sums.sum() / self.sizes.sum())

    @property
    def discordance(self) -> float:
        """Mean squared difference a question; for questions of one 0/1 row: the share that differ.

        Scaled so that divided by C it is the variance of the difference if there were none.
        """
        return float(len(self.sums) * (self.sums**2).sum() / self.sizes.sum() ** 2)

    @property
    def size(self) -> float:
        """How far questions that differ lie apart, scaled likewise; see `detectable`."""
        apart = float(np.abs(self.sums).sum())
        return self.discordance * float(self.sizes.sum()) / apart if apart else 1.0


def cluster_rows(differences: NDArray[np.float64], names: NDArray[np.str_]) -> Clusters:
    """Sum rows by question.

    Args:
        differences: (R,) b minus a.
        names: (R,) which question each row is a copy of.
    """
    _, places, sizes = np.unique(names, return_inverse=True, return_counts=True)
    # Rounded, so that sums that are equal but for the order of adding are equal.
    sums = np.bincount(places, weights=differences).astype(np.float64).round(9)
    return Clusters(sums, sizes.astype(np.int64))


def bootstrap_interval(
    clusters: Clusters, draws: int, seed: int, alpha: float
) -> tuple[float, float]:
    """Give the percentile interval of the mean difference, whole questions drawn with replacement.

    Percentile, not BCa: BCa's correction is read from the share of draws below the estimate, which
    jumps where few questions differ and many draws tie; a paired difference is nearly symmetric, so
    there is little to correct. When the difference is the same in every question, as where there is
    one question only or none differs, so is every draw, and drawing says nothing. Then the limits
    hold what could hide: of all questions the largest share of which C draws may show none [Clopper,
    Pearson 1934] might be right by one model alone.

    Args:
        clusters: the questions.
        draws: resamples.
        seed: of the draws.
        alpha: one minus the level.
    """
    each = clusters.sums / clusters.sizes
    if np.ptp(each) < 1e-9:
        unseen = 1 - (alpha / 2) ** (1 / len(each))
        seen = (1 - unseen) * float(each[0])
        return seen - unseen, seen + unseen
    generator = np.random.default_rng(seed)
    means = _resampled(clusters, draws, generator)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return float(low), float(high)


def sign_flip(clusters: Clusters, draws: int, seed: int) -> Outcome:
    """Test whether a and b are equally good by exchanging them question by question.

    If they are, each question's sum might as well have the other sign. Where sums are whole
    numbers (rows are right or wrong) and not too many, all signs are counted out and p is exact;
    for questions of one row it then equals the exact McNemar test. Otherwise signs are drawn, and
    p is not below ``1 / (draws + 1)`` [Phipson, Smyth 2010].

    Returns:
        p, and the sum of differences over all rows.
    """
    sums = clusters.sums[clusters.sums != 0]
    total = float(sums.sum())
    if not len(sums):
        return Outcome(1.0, 0.0)
    if np.array_equal(sums, sums.round()) and np.abs(sums).sum() <= _COUNTABLE:
        return Outcome(_counted_out(np.abs(sums).astype(np.int64), int(abs(total))), total)
    generator = np.random.default_rng(seed)
    reached = 0
    for count in _blocks(draws, len(sums)):
        signs = np.unpackbits(generator.integers(256, size=(count, -(-len(sums) // 8)), dtype="u1"))
        positive = signs.reshape(count, -1)[:, : len(sums)] @ sums
        # A tie with what was seen counts as reached, also when it was added in another order.
        reached += int(np.count_nonzero(np.abs(2 * positive - total) >= abs(total) - 1e-6))
    return Outcome((1 + reached) / (1 + draws), total)


def _resampled(
    clusters: Clusters, draws: int, generator: np.random.Generator
) -> NDArray[np.float64]:
    """Give the mean difference of each resample (D,)."""
    pairs = np.stack([clusters.sums, clusters.sizes], axis=1)
    kinds, counts = np.unique(pairs, axis=0, return_counts=True)
    num = len(pairs)
    if len(kinds) * 16 <= num:
        # Equal questions are drawn together: the same distribution from a few numbers a draw.
        drawn = generator.multinomial(num, counts / num, size=draws)
        return np.asarray((drawn @ kinds[:, 0]) / (drawn @ kinds[:, 1]))
    alike = bool((clusters.sizes == clusters.sizes[0]).all())
    means = []
    for count in _blocks(draws, num):
        chosen = generator.integers(num, size=(count, num), dtype=np.int32)
        rows = num * clusters.sizes[0] if alike else clusters.sizes.take(chosen).sum(axis=1)
        means.append(clusters.sums.take(chosen).sum(axis=1) / rows)
    return np.concatenate(means)


def _counted_out(weights: NDArray[np.int64], total: int) -> float:
    """Give the probability that random signs on ``weights`` sum to ``total`` or more, either way."""
    from scipy.stats import binom

    reach = (int(weights.sum()) - total) // 2
    # Entry x: the probability that the weights of one sign sum to x; more than `reach` is no matter.
    chance = np.ones(1)
    for weight, count in zip(*np.unique(weights, return_counts=True), strict=True):
        held = np.arange(min(count, reach // weight) + 1)
        spread = np.zeros(held[-1] * weight + 1)
        spread[held * weight] = binom.pmf(held, count, 0.5)
        chance = np.convolve(chance, spread)[: reach + 1]
    return min(1.0, 2 * float(chance.sum()))


def _blocks(draws: int, width: int) -> Iterator[int]:
    """Cut draws into parts whose tables fit into memory."""
    step = max(1, _CELLS // width)
    for first in range(0, draws, step):
        yield min(step, draws - first)
