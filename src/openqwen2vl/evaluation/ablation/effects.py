"""Differences between mixtures on each benchmark: paired by question, corrected for all of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module

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
from openqwen2vl.evaluation.statistics import holm
from openqwen2vl.formats.errors import UserError

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
        of_models: whether it is shown of the models that were trained; see `effects`.
        p_over_seeds: corrected; None with one seed.
        of_mixtures: whether it is shown of the mixtures, whatever the seed.
    """

    mixture: str
    baseline: str
    seeds: Sequence[int]
    comparison: Comparison
    by_seed: Sequence[float]
    of_models: bool = False
    p_over_seeds: float | None = None
    of_mixtures: bool = False

    @property
    def benchmark(self) -> str:
        """Give the benchmark's name."""
        return self.comparison.name


def effects(scores: Scores, baseline: str, settings: Settings) -> list[Effect]:
    """Compare every mixture with the baseline on every benchmark.

    With several seeds the answers of all of them to one question are one cluster: questions are
    drawn, and exchanged, with their answers under every seed. An effect is shown of the trained
    models when its p-value, corrected by Holm's method over all effects, is below alpha, and the
    difference has the same sign under each seed. That test knows nothing of how far another seed
    would have moved the scores, so an effect is shown of the mixtures only when the differences
    under each seed, as a sample of seeds, also leave no room for chance: Student's t, corrected
    likewise. One seed shows nothing of mixtures, and two seldom do.

    Args:
        scores: of the baseline, too; mixtures without a seed in common with it are left out.
        baseline: which mixture the others are compared with.
        settings: of the tests.

    Raises:
        UserError: scores that are not alike, or about other questions.
    """
    _check_seeds(scores.get(baseline, {}), baseline)
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
            found.append(Effect(mixture, baseline, common, compared, differences))
    corrected = correct_for_several([one.comparison for one in found])
    return _decided(found, corrected, settings)


def _decided(
    found: Sequence[Effect], corrected: Sequence[Comparison], settings: Settings
) -> list[Effect]:
    several = [one for one in found if len(one.by_seed) > 1]
    over_seeds = holm([seeds_p(one.by_seed, _step(one)) for one in several])
    p_of = {id(one): p for one, p in zip(several, over_seeds, strict=True)}
    decided = []
    for one, compared in zip(found, corrected, strict=True):
        shown = is_real(compared, settings) and agree(one.by_seed)
        p = p_of.get(id(one))
        decided.append(
            replace(
                one,
                comparison=compared,
                of_models=shown,
                p_over_seeds=p,
                of_mixtures=shown and p is not None and p < settings.alpha,
            )
        )
    return decided


def _step(one: Effect) -> float:
    return 100 * len(one.by_seed) / one.comparison.rows


def seeds_p(by_seed: Sequence[float], step: float = 0.0) -> float:
    """Two-sided p of Student's t for a mean difference of 0 over seeds.

    Differences of few questions are coarse, and two seeds then often give the same one; that they
    do not scatter at all cannot be seen from that, so they scatter by rounding at least.

    Args:
        by_seed: differences under two seeds or more.
        step: what one row more or less makes of a difference.
    """
    values = np.asarray(by_seed, np.float64)
    spread = max(values.std(ddof=1), step / np.sqrt(12))
    error = spread / np.sqrt(len(values))
    if error == 0:
        return 0.0 if values[0] else 1.0
    # With the extra `report`, like all tests.
    students_t = import_module("scipy.stats").t
    return float(2 * students_t.sf(abs(values.mean()) / error, len(values) - 1))


def least_over_seeds(seeds: int, comparisons: int, alpha: float) -> float:
    """How many times its scatter over seeds the first difference must be that `seeds_p` shows.

    Args:
        seeds: two or more.
        comparisons: over which p is corrected.
        alpha: level of the test.
    """
    reached = import_module("scipy.stats").t.isf(alpha / 2 / comparisons, seeds - 1)
    return float(reached / np.sqrt(seeds))


def _check_seeds(by_seed: Mapping[int, Sequence[Scored]], mixture: str) -> None:
    """Refuse to join seeds that were not asked alike: their questions would be others."""
    seeds = list(by_seed)
    for seed in seeds[1:]:
        try:
            pair_scores(by_seed[seeds[0]], by_seed[seed])
        except UserError as error:
            raise UserError(
                f"{mixture}: seed {seeds[0]} (a) and seed {seed} (b) cannot be joined: {error}"
            ) from error


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
