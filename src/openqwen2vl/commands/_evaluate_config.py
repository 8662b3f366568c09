"""Keys of an evaluation: what may be given, what each step needs, and what they stand for."""

from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from openqwen2vl.config import Schema, nearest
from openqwen2vl.curation.scorers.weights import DTYPES
from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.evaluation.generate import Effort
from openqwen2vl.evaluation.protocols import EvaluationProtocol, protocol
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.templates import template
from openqwen2vl.model.decoding import Sampling

GENERATE, SCORE = "generate", "score"
# What each step cannot do without; fetch=true needs none of it.
_NEEDED = {GENERATE: ("model", "data_root", "out"), SCORE: ("out",)}
_KEYS = (
    "benchmark model data_root out protocol only fetch overwrite tokenizer template temperature "
    "top_p seed dtype batch_size batch_tokens data trainer json"
)


@dataclass(frozen=True)
class Model:
    """Whom to ask."""

    path: str | None


@dataclass(frozen=True)
class Loading:
    """How pictures are read."""

    num_workers: int


def steps(config: DictConfig) -> tuple[str, ...]:
    """Give the steps to take, in order."""
    return (GENERATE, SCORE) if config.only is None else (str(config.only),)


def chosen(config: DictConfig) -> list[Benchmark]:
    """Give the benchmarks that are named, each once.

    Raises:
        ConfigError: there is none of such a name, or none is named.
    """
    given = config.benchmark
    names = given if isinstance(given, ListConfig) else str(given).split(",")
    names = list(dict.fromkeys(str(name).strip() for name in names))
    unknown = [name for name in names if name not in BENCHMARKS]
    if unknown or not names:
        told = ", ".join(f"{name!r}{nearest(name, BENCHMARKS)}" for name in unknown) or "empty"
        raise ConfigError(f"benchmark is {told}; there are {', '.join(BENCHMARKS)}")
    return [BENCHMARKS[name] for name in names]


def folder(value: object) -> Path:
    """Give a key's value as a path; a name of digits comes as a number."""
    return Path(str(value)).expanduser()


def sampling(config: DictConfig) -> Sampling:
    """Give how the next token is drawn.

    Raises:
        ConfigError: numbers out of range.
    """
    return Sampling(temperature=config.temperature, top_p=config.top_p, seed=config.seed)


def effort(config: DictConfig) -> Effort:
    """Give how many questions are asked at once.

    Raises:
        ConfigError: a number that cannot be.
    """
    return Effort(
        batch_size=config.batch_size,
        batch_tokens=config.batch_tokens,
        num_workers=config.data.num_workers,
    )


def _possible_steps(config: DictConfig) -> None:
    if config.only not in (None, GENERATE, SCORE):
        raise ConfigError(f"only is '{config.only}'; there are null, {GENERATE}, {SCORE}")


def _asked_as_defined(config: DictConfig) -> None:
    words: EvaluationProtocol = protocol(config.protocol)
    for benchmark in chosen(config):
        benchmark.check(words)


def _given(config: DictConfig) -> None:
    if config.fetch or config.only not in (None, GENERATE, SCORE):
        return
    needed = dict.fromkeys(key for step in steps(config) for key in _NEEDED[step])
    values = {**config, "model": config.model.path}
    missing = [key for key in needed if values[key] is None]
    if missing:
        raise ConfigError(f"{', '.join(missing)}: must be given")


def _known_template(config: DictConfig) -> None:
    if config.template is not None:
        template(config.template)


def _possible_numbers(config: DictConfig) -> None:
    effort(config)
    sampling(config)
    if config.dtype is not None and config.dtype not in DTYPES:
        raise ConfigError(f"dtype is '{config.dtype}'; there are null, {', '.join(DTYPES)}")


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    groups={"model": Model, "data": Loading},
    types={
        **dict.fromkeys(("fetch", "overwrite", "json"), bool),
        **dict.fromkeys(("temperature", "top_p"), float),
        "seed": int,
    },
    parts=("model", "data", "trainer"),
    rules=(_possible_steps, _asked_as_defined, _given, _known_template, _possible_numbers),
)
