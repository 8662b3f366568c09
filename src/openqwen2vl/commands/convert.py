"""Turn a model of others (prismatic .pt, LLaVA folders) into a checkpoint of ours."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from openqwen2vl.commands._convert_source import open_source
from openqwen2vl.config import Schema
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.templates import TEMPLATES, template
from openqwen2vl.release.converted import at_grid, refuse_existing, write_checkpoint

_KEYS = (
    "source out template tokenizer grid tower vision llm projector attention trainable "
    "checkpointing resolution json"
)


def _known_template(config: DictConfig) -> None:
    if config.template is not None:
        template(config.template)


def _possible_grid(config: DictConfig) -> None:
    if config.grid is not None and config.grid < 1:
        raise ConfigError(f"grid is {config.grid}; expected visual tokens along a side, at least 1")


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    types={
        "template": str | None,
        "tokenizer": str | None,
        "grid": int | None,
        "tower": str | None,
        "json": bool,
    },
    parts=("vision", "llm", "projector", "attention"),
    rules=(_known_template, _possible_grid),
)


def run(config: DictConfig) -> dict[str, object]:
    """Read a model, make it one of ours, and write its checkpoint.

    Returns:
        What was recognised, the model's size, grid and template, and where it lies.
    """
    source, out = Path(str(config.source)).expanduser(), Path(str(config.out)).expanduser()
    refuse_existing(out)
    opened = at_grid(open_source(config, source), config.grid, source)
    write_checkpoint(opened, source, out)
    facts, weights = opened.facts, opened.weights
    layouts = {layout.hash: layout.name for layout in TEMPLATES.values()}
    with_tower = any(name.startswith("vision.") for name in weights)
    figures: dict[str, object] = {
        "found": opened.layout,
        "parameters": sum({id(v): v.numel() for v in weights.values()}.values()),
        "numbers": sorted({str(v.dtype).removeprefix("torch.") for v in weights.values()}),
        "vision_tower": "in the checkpoint" if with_tower else facts["tower"]["name"],
        "grid": facts["phases"][-1]["grid"],
        "template": layouts.get(facts["text"]["template"]),
        "tokenizer": facts["tokenizer"],
        "notes": opened.notes,
        "out": str(out),
        "bytes": out.stat().st_size,
    }
    table = Table(title=str(source), title_justify="left", show_header=False, box=None)
    for name, value in figures.items():
        table.add_row(name.replace("_", " "), _short(value))
    Console().print(table)
    return {"source": str(source), **figures}


def _short(value: object) -> str:
    if isinstance(value, list):
        return "; ".join(value) or "none"
    return f"{value:,}" if isinstance(value, int) else str(value)
