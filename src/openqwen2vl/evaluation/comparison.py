"""What the scores of two models on the same rows say about the models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openqwen2vl.evaluation.clusters import (
    Clusters,
    bootstrap_interval,
    cluster_rows,
    sign_flip,
)
from openqwen2vl.evaluation.pairing import Pair
from openqwen2vl.evaluation.statistics import (
    Outcome,
    PairedTable,
    detectable,
    holm,
    mcnemar_tests,
    newcombe_interval,
)
from openqwen2vl.formats.errors import UserError

NEWCOMBE = "Newcombe, rows as independent"
BOOTSTRAP = "percentile bootstrap of questions"


@dataclass(frozen=True)
class Settings:
    """How sure one wants to be, and how much is drawn for it.

    Attributes:
        draws: resamples of the bootstrap, and random signs where they are not counted out.
        seed: of all draws.
        alpha: level of the tests; intervals have level one minus this.
        power: with which probability a detectable difference is found.

    Raises:
        UserError: a figure that is out of range.
    """

    draws: int = 10_000
    seed: int = 7
    alpha: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.draws < 100:
            raise UserError(f"draws is {self.draws}; an interval needs at least 100")
        if not 0 < self.alpha < 0.5:
            raise UserError(f"alpha is {self.alpha}; expected more than 0 and less than 0.5")
        if not 0.5 <= self.power < 1:
            raise UserError(f"power is {self.power}; expected at least 0.5 and less than 1")
        if self.seed < 0:
            raise UserError(f"seed is {self.seed}; expected 0 or more")


@dataclass(frozen=True)
class Comparison:
    """Two models on one benchmark; scores are in percent, differences (b minus a) in points.

    Attributes:
        name: the benchmark, or what else was compared.
        protocol: None where it is not known.
        rows: how many.
        questions: how many of them are independent.
        differing: questions on which the models are not equally right.
        a: score of the first model.
        b: score of the second.
        difference: b minus a.
        interval: of the difference.
        interval_method: how it was made.
        table: rows by who is right; None where rows may be partly right.
        tests: by name; those of McNemar count every row as independent.
        decided_by: name of the test that counts here.
        p: of that test.
        p_holm: corrected for all benchmarks of the comparison.
        detectable: the smallest difference that so many questions find; None: nothing differs, or
            they are too few to find any.
    """

    name: str
    protocol: str | None
    rows: int
    questions: int
    differing: int
    a: float
    b: float
    difference: float
    interval: tuple[float, float]
    interval_method: str
    table: PairedTable | None
    tests: Mapping[str, Outcome]
    decided_by: str
    p: float
    p_holm: float
    detectable: float | None


def compare_table(table: PairedTable, settings: Settings, name: str = "table") -> Comparison:
    """Compare by counts alone: each row is taken as a question of its own."""
    low, high = newcombe_interval(table, settings.alpha)
    tests = mcnemar_tests(table)
    p = tests["mcnemar_exact"].p
    share = table.discordant / table.rows
    return Comparison(
        name=name,
        protocol=None,
        rows=table.rows,
        questions=table.rows,
        differing=table.discordant,
        a=100 * (table.both + table.only_a) / table.rows,
        b=100 * (table.both + table.only_b) / table.rows,
        difference=100 * (table.only_b - table.only_a) / table.rows,
        interval=(100 * low, 100 * high),
        interval_method=NEWCOMBE,
        table=table,
        tests=tests,
        decided_by="mcnemar_exact",
        p=p,
        p_holm=p,
        detectable=_points(detectable(share, table.rows, settings.alpha, settings.power)),
    )


def compare_pair(pair: Pair, settings: Settings) -> Comparison:
    """Compare on one benchmark.

    Where each question is one row, right or wrong, McNemar's exact test decides and the interval is
    Newcombe's. Copies of a question are no further evidence, and McNemar knows no half-right
    answer: then questions are resampled for the interval and exchanged for the test.
    """
    binary = bool(np.isin([pair.a, pair.b], (0.0, 1.0)).all())
    table = PairedTable.of(pair.a, pair.b) if binary else None
    clusters = cluster_rows(pair.b - pair.a, pair.clusters)
    if table and len(clusters.sums) == table.rows:
        found = compare_table(table, settings, pair.benchmark)
        return replace(found, protocol=pair.protocol)
    return _clustered(pair, clusters, table, settings)


def correct_for_several(comparisons: Sequence[Comparison]) -> list[Comparison]:
    """Correct the p-values that decide by Holm's method, over all benchmarks given."""
    corrected = holm([one.p for one in comparisons])
    return [replace(one, p_holm=p) for one, p in zip(comparisons, corrected, strict=True)]


def _clustered(
    pair: Pair, clusters: Clusters, table: PairedTable | None, settings: Settings
) -> Comparison:
    low, high = bootstrap_interval(clusters, settings.draws, settings.seed, settings.alpha)
    flipped = sign_flip(clusters, settings.draws, settings.seed)
    num = len(clusters.sums)
    apart = clusters.discordance, num
    least = detectable(*apart, settings.alpha, settings.power, clusters.size)
    return Comparison(
        name=pair.benchmark,
        protocol=pair.protocol,
        rows=len(pair.a),
        questions=num,
        differing=clusters.differing,
        a=100 * float(pair.a.mean()),
        b=100 * float(pair.b.mean()),
        difference=100 * clusters.difference,
        interval=(100 * low, 100 * high),
        interval_method=BOOTSTRAP,
        table=table,
        tests={**(mcnemar_tests(table) if table else {}), "sign_flip": flipped},
        decided_by="sign_flip",
        p=flipped.p,
        p_holm=flipped.p,
        detectable=_points(least),
    )


def _points(share: float | None) -> float | None:
    return None if share is None else 100 * share
