"""Paired statistics of two models on the same rows: McNemar's tests, an interval, power, Holm."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from math import sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import UserError


@dataclass(frozen=True)
class Outcome:
    """What a test found: its p-value, two-sided, and its statistic where it has one."""

    p: float
    statistic: float | None = None


@dataclass(frozen=True)
class PairedTable:
    """Rows by who is right: both, only a, only b, neither.

    Raises:
        UserError: a count below 0, or no row at all.
    """

    both: int
    only_a: int
    only_b: int
    neither: int

    def __post_init__(self) -> None:
        for name in ("both", "only_a", "only_b", "neither"):
            if getattr(self, name) < 0:
                raise UserError(
                    f"{name} is {getattr(self, name)} in the table; it counts rows, so 0 or more"
                )
        if self.rows == 0:
            raise UserError("the table counts no rows: nothing can be compared")

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return self.both + self.only_a + self.only_b + self.neither

    @property
    def discordant(self) -> int:
        """On how many rows one is right and the other wrong."""
        return self.only_a + self.only_b

    @classmethod
    def of(cls, a: NDArray[np.float64], b: NDArray[np.float64]) -> "PairedTable":
        """Count the rows of two models; ``a`` and ``b`` are (rows,) of 0 and 1."""
        both, right_a, right_b = (int(v) for v in ((a * b).sum(), a.sum(), b.sum()))
        neither = len(a) - right_a - right_b + both
        return cls(both, right_a - both, right_b - both, neither)


def mcnemar_tests(table: PairedTable) -> dict[str, Outcome]:
    """Test whether a and b are right equally often, each row counted as independent of the others.

    Returns:
        ``mcnemar_exact``: binomial, its statistic is the smaller discordant count, no chi-square;
        ``mcnemar_midp``: the same without its caution [Fagerland, Lydersen, Laake 2013, BMC Med.
        Res. Methodol. 13:91]; ``chi2`` and, with Edwards' continuity correction,
        ``chi2_corrected``. Without a discordant row every p is 1.
    """
    if not table.discordant:
        names = ("mcnemar_exact", "mcnemar_midp", "chi2", "chi2_corrected")
        return {name: Outcome(1.0, None if name == "mcnemar_midp" else 0.0) for name in names}
    library = statsmodels("contingency_tables")
    square = [[table.both, table.only_a], [table.only_b, table.neither]]
    exact = library.mcnemar(square, exact=True)
    found = {
        "mcnemar_exact": Outcome(float(exact.pvalue), float(exact.statistic)),
        "mcnemar_midp": Outcome(_mid_p(table)),
    }
    for name, wanted in (("chi2", False), ("chi2_corrected", True)):
        # The correction is half a step towards 0 and must not step past it.
        correction = wanted and table.only_a != table.only_b
        chi2 = library.mcnemar(square, exact=False, correction=correction)
        found[name] = Outcome(float(chi2.pvalue), float(chi2.statistic))
    return found


def newcombe_interval(table: PairedTable, alpha: float) -> tuple[float, float]:
    """Give the interval of b's share of right rows minus a's, rows counted as independent.

    Newcombe's square-and-add of two Wilson intervals [Newcombe 1998, Stat. Med. 17:2635, method
    10]: unlike Wald's it keeps its level where few rows differ.

    Returns:
        Lower and upper limit, as shares.
    """
    n, right_a, right_b = table.rows, table.both + table.only_a, table.both + table.only_b
    wilson = statsmodels("proportion").proportion_confint
    low_a, high_a = wilson(right_a, n, alpha, "wilson")
    low_b, high_b = wilson(right_b, n, alpha, "wilson")
    agreement = float(table.both * table.neither - table.only_a * table.only_b)
    if agreement > 0:
        agreement = max(agreement - n / 2, 0.0)
    margins = right_a * (n - right_a) * right_b * (n - right_b)
    phi = agreement / sqrt(margins) if margins else 0.0
    down_a, up_a = right_a / n - low_a, high_a - right_a / n
    down_b, up_b = right_b / n - low_b, high_b - right_b / n
    difference = (right_b - right_a) / n
    low = difference - sqrt(down_b**2 - 2 * phi * down_b * up_a + up_a**2)
    high = difference + sqrt(up_b**2 - 2 * phi * up_b * down_a + down_a**2)
    return float(low), float(high)


def detectable(
    discordance: float, units: int, alpha: float = 0.05, power: float = 0.8, size: float = 1.0
) -> float | None:
    """Give the smallest true difference that a two-sided paired test finds with this power.

    The d of ``d sqrt(n) = z_alpha sqrt(p) + z_power sqrt(p - d^2)`` [Connor 1987, Biometrics
    43:207, solved for d], n units and p the share on which the models differ. Models cannot lie
    further apart than they differ: where d would be above p, p is d, all units speaking for one.
    The normal approximation flatters the exact tests a little: at 20 units they find d in 75 % of
    cases instead of 80, at 200 and more in 76 to 79.

    Args:
        discordance: share of units that differ; for units with several rows or with fractions,
            their mean squared difference.
        units: independent questions.
        alpha: level of the test.
        power: with which probability the difference is found.
        size: how far units that differ lie apart: their mean squared difference by their mean
            absolute one, so 1 where rows are right or wrong.

    Returns:
        A difference of shares. None when nothing differs, so that nothing is known about p, or
        when with so few units no answers whatever would give a p below alpha.
    """
    if discordance <= 0 or 2 * 0.5**units >= alpha:
        return None
    z_alpha, z_power = NormalDist().inv_cdf(1 - alpha / 2), NormalDist().inv_cdf(power)
    square = units + z_power**2
    half = z_alpha * sqrt(discordance * units)
    found = (half + z_power * sqrt(discordance * (square - z_alpha**2))) / square
    if found * size > discordance:
        # The same equation with p = d size, a quadratic one in the root of 1 - d / size.
        root = sqrt(units * (square - z_alpha**2))
        found = size * (1 - ((root - z_alpha * z_power) / square) ** 2)
    return min(found, 1.0)


def holm(p_values: Sequence[float]) -> list[float]:
    """Correct p-values for being several, so that all hold together [Holm 1979]."""
    if not p_values:
        return []
    corrected = statsmodels("multitest").multipletests(p_values, method="holm")[1]
    return [float(p) for p in corrected]


def statsmodels(name: str) -> Any:
    """Give a module of ``statsmodels.stats``.

    Raises:
        UserError: it is not installed.
    """
    try:
        return import_module(f"statsmodels.stats.{name}")
    except ImportError as error:
        raise UserError(
            "comparing models needs statsmodels, which is not installed; "
            "run: pip install 'openqwen2vl[report]'"
        ) from error


def _mid_p(table: PairedTable) -> float:
    from scipy.stats import binom

    fewer = min(table.only_a, table.only_b)
    tail = 2 * binom.cdf(fewer, table.discordant, 0.5) - binom.pmf(fewer, table.discordant, 0.5)
    return float(min(tail, 1.0))
