"""What a config of `curate` says, as the library wants it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from openqwen2vl.config import Schema
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules
from openqwen2vl.curation.request import Curation, Evaluations
from openqwen2vl.curation.selection.select import Rule, Selection
from openqwen2vl.curation.shards import is_listing
from openqwen2vl.curation.steps import STEPS
from openqwen2vl.engine.chosen import ENGINES
from openqwen2vl.formats.errors import ConfigError

_KEYS = (
    "input image_root tables out scorers scorer_inputs selection duplicates contamination only seed "
    "samples_per_shard window blur write_uids report overwrite engine workers num_gpus json"
)


def _known_choices(config: DictConfig) -> None:
    for key, choices in {"engine": ENGINES, "only": (None, *STEPS)}.items():
        if config[key] not in choices:
            known = ", ".join("null" if choice is None else choice for choice in choices)
            raise ConfigError(f"{key} is '{config[key]}'; there are {known}")


def _possible_numbers(config: DictConfig) -> None:
    if (config.num_gpus or 0) < 0 or (config.workers is not None and config.workers < 1):
        raise ConfigError(
            f"num_gpus is {config.num_gpus} and workers {config.workers}; expected at least 0 and 1"
        )
    if config.num_gpus and config.num_gpus > 1 and config.num_gpus % 1:
        raise ConfigError(
            f"num_gpus is {config.num_gpus}; expected a whole number, or a share of one GPU"
        )
    if config.num_gpus and config.engine == "local":
        raise ConfigError(
            f"num_gpus is {config.num_gpus}, which only Ray deals out; with engine=local say "
            "workers=N and scorers.NAME.device"
        )


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    types={
        "input": str | Mapping[str, str],
        "image_root": str | Mapping[str, str] | None,
        "tables": Mapping[str, str | Sequence[str]] | None,
        "out": str,
        "scorer_inputs": Mapping[str, Sequence[str]] | None,
        "only": str | None,
        **dict.fromkeys(("seed", "samples_per_shard", "window"), int),
        **dict.fromkeys(("blur", "write_uids", "report", "overwrite", "json"), bool),
        "engine": str,
        "workers": int | None,
        "num_gpus": float | None,
    },
    groups={
        "selection": Selection,
        "duplicates": DuplicateRules | None,
        "contamination": Evaluations,
    },
    parts=("selection", "contamination"),
    rules=(_known_choices, _possible_numbers),
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
        image_roots=_image_roots(config.image_root, inputs),
        tables=tables,
        out=_path(config.out),
        scorers=[instantiate(one) for one in (config.get("scorers") or {}).values()],
        scorer_inputs={
            str(name): tuple(inputs) for name, inputs in (config.scorer_inputs or {}).items()
        },
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
    if isinstance(given, ListConfig):
        raise ConfigError(f"input is {list(given)}; write input=DIR or input={{NAME: DIR, ...}}")
    if isinstance(given, DictConfig):
        return {str(name): _path(path) for name, path in given.items()}
    path = _path(given)
    return {path.stem if is_listing(path) else path.resolve().name: path}


def _image_roots(given: Any, inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Read folders of images by the input's name; one alone is that of every input."""
    if given is None:
        return {}
    if isinstance(given, DictConfig):
        return {str(name): _path(path) for name, path in given.items()}
    return dict.fromkeys(inputs, _path(given))


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
