"""How sure a difference between two arms is: over seeds, and over questions."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import t

LEVEL = 0.95
DRAWS = 10_000


def over_seeds(differences: Sequence[float]) -> dict[str, float | None]:
    """Give the mean of paired differences, one a seed, with Student's interval.

    It holds all that a new seed changes: corpus, scorer, first weights, order. Of one seed there
    is no interval.
    """
    values = np.asarray(differences, float)
    found: dict[str, float | None] = {"mean": float(values.mean()), "low": None, "high": None}
    if len(values) > 1:
        quantile = t.ppf((1 + LEVEL) / 2, len(values) - 1)
        half = float(quantile * values.std(ddof=1) / len(values) ** 0.5)
        found |= {"low": float(values.mean()) - half, "high": float(values.mean()) + half}
    return found


def over_questions(
    ours: Sequence[Sequence[bool]], theirs: Sequence[Sequence[bool]]
) -> dict[str, float]:
    """Give the mean difference in right answers with a bootstrap's percentile interval.

    Questions are drawn again, each with all its answers by every seed's models; the models stay.

    Args:
        ours: for each seed, whether each question was answered rightly.
        theirs: likewise, of the same seeds and questions.
    """
    gains = (np.asarray(ours, float) - np.asarray(theirs, float)).mean(axis=0)
    generator = np.random.default_rng(0)
    counts = generator.multinomial(len(gains), np.full(len(gains), 1 / len(gains)), DRAWS)
    low, high = np.quantile(counts @ gains / len(gains), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return {"mean": float(gains.mean()), "low": float(low), "high": float(high)}
