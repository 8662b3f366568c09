"""Keys of an export: what may be given, and what they stand for."""

import re
from pathlib import Path

from omegaconf import DictConfig, ListConfig

from openqwen2vl.config import Schema
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.release.export import DTYPES

_KEYS = "checkpoint out dtype grid tokenizer name licence scores curation shard_gb overwrite json"

_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")


def _possible_values(config: DictConfig) -> None:
    if config.dtype not in DTYPES:
        raise ConfigError(f"dtype is '{config.dtype}'; there are {', '.join(DTYPES)}")
    if config.grid is not None and config.grid < 1:
        raise ConfigError(f"grid is {config.grid}; expected visual tokens along a side, at least 1")
    if not config.shard_gb > 0:
        raise ConfigError(f"shard_gb is {config.shard_gb}; expected gigabytes above 0")
    if not _WORD.fullmatch(str(config.licence)) or config.licence is None:
        raise ConfigError(
            f"licence is {config.licence!r}; expected one word of the hub's, such as apache-2.0, or "
            "other"
        )


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    types={
        "grid": int | None,
        "shard_gb": float,
        **dict.fromkeys(("tokenizer", "name"), str | None),
        **dict.fromkeys(("overwrite", "json"), bool),
    },
    rules=(_possible_values,),
)


def paths(value: object) -> list[Path]:
    """Give the paths of a key that takes one, several, or none."""
    listed = value if isinstance(value, ListConfig) else [] if value is None else [value]
    return [Path(str(one)).expanduser() for one in listed]
