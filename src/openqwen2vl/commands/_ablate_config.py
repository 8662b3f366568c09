"""Keys of an ablation: what may be given, and how sure its tests are to be."""

from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from openqwen2vl.config import Schema
from openqwen2vl.evaluation.comparison import Settings
from openqwen2vl.formats.errors import ConfigError

REPORT, JOB = "report", "job"
_KEYS = (
    "mixture seeds out benchmarks data_root protocol pretrain sft evaluate baseline only job alpha "
    "power draws json"
)


@dataclass(frozen=True)
class Mixtures:
    """Which mixtures are compared: names, or what Hydra takes for a sweep."""

    names: Any


def tests_of(config: DictConfig) -> Settings:
    """Give how sure one wants to be, and how much is drawn."""
    return Settings(draws=config.draws, alpha=config.alpha, power=config.power)


def _possible_tests(config: DictConfig) -> None:
    tests_of(config)


def _possible_steps(config: DictConfig) -> None:
    if config.only not in (None, REPORT, JOB):
        raise ConfigError(f"only is '{config.only}'; there are null, {REPORT}, {JOB}")


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    groups={"mixture": Mixtures},
    parts=("mixture",),
    types={"json": bool, "draws": int, **dict.fromkeys(("alpha", "power"), float)},
    rules=(_possible_steps, _possible_tests),
)
