"""Tell whether two models differ: effect and interval, paired tests, and a sentence of words."""

from omegaconf import DictConfig

from openqwen2vl.commands._compare_config import SCHEMA, scores_of, settings_of, table_of
from openqwen2vl.commands._compare_tables import figures_of, remarks, show
from openqwen2vl.evaluation.comparison import compare_pair, compare_table, correct_for_several
from openqwen2vl.evaluation.pairing import Paired, pair_scores

__all__ = ["SCHEMA", "run"]


def run(config: DictConfig) -> dict[str, object]:
    """Compare two models and print the effects, the tests and what they mean.

    Returns:
        The settings, one entry a benchmark, and what is to be known beside them.
    """
    settings = settings_of(config)
    given = {side: str(config[side]) for side in ("a", "b") if config[side] is not None}
    if config.table is not None:
        found, paired = [compare_table(table_of(config.table), settings)], Paired([], [], [])
    else:
        paired = pair_scores(scores_of(config.a), scores_of(config.b), config.circular)
        found = correct_for_several([compare_pair(pair, settings) for pair in paired.pairs])
    beside = remarks(found, paired)
    show(found, settings, given, beside)
    alone = {"a": list(paired.only_a), "b": list(paired.only_b)}
    figures = figures_of(found, settings)
    return {
        **given,
        **figures,
        "circular": config.circular,
        "not_compared": alone,
        "remarks": beside,
    }
