"""What a config of `curate` says, as the library wants it."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from openqwen2vl.config import Schema
from openqwen2vl.curation.duplicates import DuplicateRules
from openqwen2vl.curation.request import Curation, Evaluations
from openqwen2vl.curation.select import Rule, Selection
from openqwen2vl.curation.steps import STEPS
from openqwen2vl.engine.chosen import ENGINES
from openqwen2vl.formats.errors import ConfigError

_KEYS = (
    "input tables out scorers selection duplicates contamination only seed samples_per_shard "
    "window blur write_uids report overwrite engine workers num_gpus json"
)


def _known_choices(config: DictConfig) -> None:
    for key, choices in {"engine": ENGINES, "only": (None, *STEPS)}.items():
        if config[key] not in choices:
            known = ", ".join("null" if choice is None else choice for choice in choices)
            raise ConfigError(f"{key} is '{config[key]}'; there are {known}")


def _rules_of_sources(config: DictConfig) -> None:
    for name, rule in config.selection.sources.items():
        if not isinstance(rule, DictConfig) or set(rule) != {"input", "keep"}:
            raise ConfigError(
                f"selection.sources.{name} is {rule}; write {{input: NAME, keep: EXPRESSION}}"
            )


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    groups={"selection": Selection, "duplicates": DuplicateRules, "contamination": Evaluations},
    parts=("selection", "contamination"),
    rules=(_known_choices, _rules_of_sources),
)


def read_request(config: DictConfig) -> Curation:
    """Give the curation that a checked config asks for; scorers are built, not loaded.

    Raises:
        ConfigError: settings that no part can have.
    """
    inputs = _inputs(config.input)
    tables = {
        str(name): [_path(path) for path in _listed(given)]
        for name, given in (config.tables or {}).items()
    }
    selection = OmegaConf.to_container(config.selection, resolve=True)
    assert isinstance(selection, dict)
    return Curation(
        inputs=inputs,
        tables=tables,
        out=_path(config.out),
        scorers=[instantiate(one) for one in (config.scorers or {}).values()],
        selection=Selection(
            sources={name: Rule(**rule) for name, rule in selection["sources"].items()},
            lists={name: str(_path(path)) for name, path in selection["lists"].items()},
        ),
        duplicates=_plain(DuplicateRules, config.duplicates),
        evaluations=Evaluations(
            against={
                str(name): _path(at) for name, at in (config.contamination.against or {}).items()
            },
            drop=config.contamination.drop,
        ),
        seed=config.seed,
        samples_per_shard=config.samples_per_shard,
        window=config.window,
        blur=config.blur,
        write_uids=config.write_uids,
        overwrite=config.overwrite,
    )


def _inputs(given: Any) -> dict[str, Path]:
    """Read one folder, which goes by its own name, or several by theirs."""
    if isinstance(given, DictConfig):
        return {str(name): _path(path) for name, path in given.items()}
    path = _path(given)
    return {path.resolve().name: path}


def _plain(kind: Any, node: DictConfig | None) -> Any:
    """Build a dataclass of settings; lists become tuples."""
    if node is None:
        return None
    fields = OmegaConf.to_container(node, resolve=True)
    assert isinstance(fields, dict)
    return kind(**{str(k): tuple(v) if isinstance(v, list) else v for k, v in fields.items()})


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, ListConfig) else [given]


def _path(given: Any) -> Path:
    return Path(str(given)).expanduser()
