"""Differences between mixtures on each benchmark: paired by question, corrected for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from openqwen2vl.evaluation.comparison import (
    Comparison,
    Settings,
    compare_pair,
    correct_for_several,
)
from openqwen2vl.evaluation.conclusion import is_real
from openqwen2vl.evaluation.pairing import Pair, pair_scores
from openqwen2vl.evaluation.score_files import Scored

Scores = Mapping[str, Mapping[int, Sequence[Scored]]]
"""Scored answers by mixture and seed."""


@dataclass(frozen=True)
class Effect:
    """A mixture (b) against the baseline (a) on one benchmark.

    Attributes:
        mixture: which.
        baseline: the other one.
        seeds: that both have.
        comparison: over all these seeds; p-values corrected over all effects.
        by_seed: the difference under each seed, in points.
        real: see `effects`.
    """

    mixture: str
    baseline: str
    seeds: Sequence[int]
    comparison: Comparison
    by_seed: Sequence[float]
    real: bool

    @property
    def benchmark(self) -> str:
        """Give the benchmark's name."""
        return self.comparison.name


def effects(scores: Scores, baseline: str, settings: Settings) -> list[Effect]:
    """Compare every mixture with the baseline on every benchmark.

    With several seeds the answers of all of them to one question are one cluster: questions are
    drawn, and exchanged, with their answers under every seed. An effect is real when its
    p-value, corrected by Holm's method over all effects, is below alpha, and the difference has
    the same sign under each seed.

    Args:
        scores: of the baseline, too; mixtures without a seed in common with it are left out.
        baseline: which mixture the others are compared with.
        settings: of the tests.

    Raises:
        UserError: scores that are not alike, or about other questions.
    """
    found: list[Effect] = []
    for mixture, by_seed in scores.items():
        common = [seed for seed in by_seed if seed in scores.get(baseline, {})]
        if mixture == baseline or not common:
            continue
        pairs = [pair_scores(scores[baseline][seed], by_seed[seed]).pairs for seed in common]
        names = [pair.benchmark for pair in pairs[0]]
        for name in names:
            alike = [pair for several in pairs for pair in several if pair.benchmark == name]
            compared = compare_pair(over_seeds(alike), settings)
            differences = [100 * float((pair.b - pair.a).mean()) for pair in alike]
            found.append(Effect(mixture, baseline, common, compared, differences, False))
    corrected = correct_for_several([one.comparison for one in found])
    return [
        replace(one, comparison=compared, real=_is_real(compared, one.by_seed, settings))
        for one, compared in zip(found, corrected, strict=True)
    ]


def over_seeds(pairs: Sequence[Pair]) -> Pair:
    """Join the answers under several seeds to the same questions, clustered by question."""
    first = pairs[0]
    return replace(
        first,
        a=np.concatenate([pair.a for pair in pairs]),
        b=np.concatenate([pair.b for pair in pairs]),
        clusters=np.concatenate([pair.clusters for pair in pairs]),
    )


def agree(by_seed: Sequence[float]) -> bool:
    """Tell whether the difference has the same sign, not 0, under each seed."""
    signs = {float(np.sign(value)) for value in by_seed}
    return len(signs) == 1 and 0.0 not in signs


def _is_real(found: Comparison, by_seed: Sequence[float], settings: Settings) -> bool:
    return is_real(found, settings) and agree(by_seed)
