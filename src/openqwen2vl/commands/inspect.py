"""Show packs as the model sees them: figures here, pictures and tokens on a page."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from openqwen2vl.commands._inspect_page import build_page
from openqwen2vl.config import Schema
from openqwen2vl.formats.errors import ConfigError, PackError, UserError
from openqwen2vl.formats.tokens import load_tokenizer, tokenizer_hash
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.summary import Bin, PackSummary, summarise

_KEYS = "packs out tokenizer count first image_side overwrite json"
_BAR = 40  # letters of the longest bar


def _sound_numbers(config: DictConfig) -> None:
    if config.count < 1 or config.first < 0 or config.image_side < 1:
        raise ConfigError(
            f"count is {config.count}, first {config.first} and image_side {config.image_side}; "
            "expected at least 1, 0 and 1"
        )


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    types={**dict.fromkeys(("count", "first", "image_side"), int), "overwrite": bool, "json": bool},
    rules=(_sound_numbers,),
)


def run(config: DictConfig) -> dict[str, object]:
    """Write the page and print the figures.

    Returns:
        The figures, and where the page lies.

    Raises:
        PackError: no such pack, or a tokenizer that did not make these packs.
        UserError: ``out`` is there already.
    """
    folder = PackFolder(Path(config.packs).expanduser())
    out = Path(config.out).expanduser()
    if out.exists() and not config.overwrite:
        raise UserError(f"{out} exists; set overwrite=true, or give another out=")
    if config.first >= len(folder):
        raise PackError(
            f"first is {config.first}, but {folder.path} holds {len(folder)} packs, from 0"
        )
    tokenizer = load_tokenizer(config.tokenizer) if config.tokenizer else None
    made_by = folder.manifest.spec.tokenizer_hash
    if tokenizer is not None and tokenizer_hash(tokenizer) != made_by:
        raise PackError(
            f"{folder.path} was packed with tokenizer {made_by}, {config.tokenizer} is "
            f"{tokenizer_hash(tokenizer)}; give the one that pack was given"
        )
    summary = summarise(folder)
    numbers = range(config.first, min(len(folder), config.first + config.count))
    build_page(folder, summary, numbers, tokenizer, config.image_side).save(out)
    _show(summary)
    Console().print(f"{len(numbers)} packs on {out}", soft_wrap=True, highlight=False)
    return {**_figures(summary), "page": str(out), "shown": len(numbers)}


def _figures(summary: PackSummary) -> dict[str, object]:
    counts = summary.manifest.counts
    return {
        "packs": counts.packs,
        "documents": counts.documents,
        "images": counts.images,
        "tokens": counts.tokens,
        "fill": summary.manifest.fill,
        "target_share": summary.target_share,
        "image_share": summary.image_share,
        "sources": summary.sources,
        "packers": summary.manifest.packers,
    }


def _show(summary: PackSummary) -> None:
    console = Console()
    table = Table(box=None, show_header=False)
    for name, value in _figures(summary).items():
        table.add_row(name.replace("_", " "), _short(value))
    console.print(table)
    for title, histogram in (
        ("tokens of a document", summary.lengths),
        ("images in a pack", summary.images),
    ):
        bars = Table(title, "", "", box=None)
        for one in histogram:
            bars.add_row(one.label, "\u2588" * _length(one, histogram), f"{one.count:,}")
        console.print(bars)


def _length(one: Bin, histogram: list[Bin]) -> int:
    return round(_BAR * one.count / max(1, *(other.count for other in histogram)))


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_short(share)}" for name, share in value.items()) or "-"
    return f"{value:.2%}" if isinstance(value, float) else f"{value:,}"
