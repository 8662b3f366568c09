"""Lay raw shards into packs of one context length: packed shards, an index and a manifest."""

import time
from pathlib import Path

from omegaconf import DictConfig

from openqwen2vl.commands._pack_figures import pack_figures, show_figures
from openqwen2vl.commands._pack_progress import make_bar, with_progress
from openqwen2vl.config import Schema
from openqwen2vl.engine.chosen import ENGINES, open_engine
from openqwen2vl.formats.corpora import open_corpus
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.tokens import load_tokenizer
from openqwen2vl.packing.packers import PACKERS
from openqwen2vl.packing.plan import Selection, parse_part
from openqwen2vl.packing.request import OVERLONG, PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

_CHOICES = {"engine": ENGINES, "packer": PACKERS, "overlong": OVERLONG}
_KEYS = (
    "input out tokenizer image_root index source template context grid part validation interleaved "
    "overlong packer max_images window packs_per_shard overwrite engine workers json"
)


def _known_choices(config: DictConfig) -> None:
    for key, choices in _CHOICES.items():
        if config[key] not in choices:
            raise ConfigError(f"{key} is '{config[key]}'; there are {', '.join(choices)}")


def _possible_rules(config: DictConfig) -> None:
    InterleavedRules(**config.interleaved)


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    types={
        **dict.fromkeys(("context", "grid", "window", "packs_per_shard"), int),
        **dict.fromkeys(("max_images", "workers"), int | None),
        "validation": float,
        **dict.fromkeys(("overwrite", "json"), bool),
    },
    groups={"interleaved": InterleavedRules},
    parts=("interleaved",),
    rules=(_known_choices, _possible_rules),
)


def run(config: DictConfig) -> dict[str, object]:
    """Pack a corpus and print what came of it.

    Returns:
        What ``pack_figures`` gives, and the seconds that it took.
    """
    started = time.perf_counter()
    source = Path(config.input).expanduser()
    if not source.is_file():  # a look that costs nothing, before the tokenizer is fetched
        open_corpus(source)
    tokenizer = load_tokenizer(config.tokenizer)
    request = PackRequest(
        input=source,
        out=Path(config.out).expanduser(),
        source=config.source or source.resolve().name,
        spec=make_spec(tokenizer, config.context, config.grid, config.template),
        selection=Selection(parse_part(config.part), config.validation),
        image_root=Path(config.image_root).expanduser() if config.image_root else None,
        index=Path(config.index).expanduser() if config.index else None,
        rules=InterleavedRules(**config.interleaved),
        overlong=config.overlong,
        window=config.window,
        packs_per_shard=config.packs_per_shard,
        packer=config.packer,
        max_images=config.max_images,
        overwrite=config.overwrite,
    )
    with make_bar() as bar, open_engine(config.engine, config.workers) as engine:
        manifest = pack_folder(request, tokenizer, with_progress(bar, engine, config.context))
    held_out = Manifest.load(request.out / "validation") if request.selection.validation else None
    figures = pack_figures(manifest, held_out)
    show_figures(f"{source.name} -> {request.out}", figures)
    return {**figures, "seconds": time.perf_counter() - started}
