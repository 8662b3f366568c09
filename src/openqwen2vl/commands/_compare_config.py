"""What `compare` was given: settings, a table of counts, or scores; each checked."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig

from openqwen2vl.config import Schema
from openqwen2vl.evaluation.comparison import Settings
from openqwen2vl.evaluation.score_files import Scored, find_scores, read_scores
from openqwen2vl.evaluation.statistics import PairedTable
from openqwen2vl.formats.errors import ConfigError

_COUNTS = "[both right, only a right, only b right, neither]"


def _two_scores_or_a_table(config: DictConfig) -> None:
    missing = [side for side in ("a", "b") if config[side] is None]
    if config.table is None and missing:
        wanted = f"a and b, or table={_COUNTS}" if len(missing) == 2 else missing[0]
        raise ConfigError(f"{wanted}: must be given")
    if config.table is not None and len(missing) < 2:
        raise ConfigError("table is given beside a or b; leave one of the two away")
    if config.table is not None and config.circular:
        raise ConfigError("circular=true needs a=SCORES and b=SCORES: a table has no copies")


def _sound_settings(config: DictConfig) -> None:
    for name in ("draws", "seed"):
        if type(config[name]) is not int:
            raise ConfigError(f"{name} is {config[name]!r}; expected a whole number")
    for name in ("alpha", "power"):
        if type(config[name]) not in (int, float):
            raise ConfigError(f"{name} is {config[name]!r}; expected a number")
    if type(config.circular) is not bool:
        raise ConfigError(f"circular is {config.circular!r}; expected true or false")
    settings_of(config)


SCHEMA = Schema(
    keys=frozenset(["a", "b", "table", "circular", "alpha", "power", "draws", "seed", "json"]),
    types={
        **dict.fromkeys(("circular", "json"), bool),
        **dict.fromkeys(("alpha", "power"), float),
        **dict.fromkeys(("draws", "seed"), int),
    },
    rules=(_sound_settings, _two_scores_or_a_table),
)


def settings_of(config: DictConfig) -> Settings:
    """Give how sure one wants to be, and how much is drawn."""
    return Settings(config.draws, config.seed, config.alpha, config.power)


def table_of(given: Any) -> PairedTable:
    """Give the counts of ``table=``.

    Raises:
        UserError: not four whole numbers, or impossible ones.
    """
    counts = list(given) if isinstance(given, ListConfig) else []
    if len(counts) != 4 or any(type(count) is not int for count in counts):
        raise ConfigError(f"table is {given}; expected four whole numbers: {_COUNTS}")
    return PairedTable(*counts)


def scores_of(given: Any) -> list[Scored]:
    """Read the scores of one model: of a path, or of a list of them.

    Raises:
        UserError: a path without scores, or scores that cannot be read.
    """
    paths = given if isinstance(given, ListConfig) else [given]
    files = [file for path in paths for file in find_scores(Path(str(path)).expanduser())]
    return [read_scores(file) for file in files]
