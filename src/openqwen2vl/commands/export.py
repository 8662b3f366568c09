"""Export a checkpoint to a folder that transformers loads, checked before it is let out."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from openqwen2vl.commands._export_card import make_card
from openqwen2vl.commands._export_config import SCHEMA, paths
from openqwen2vl.release.card import gpu_hours
from openqwen2vl.release.export import Export, export
from openqwen2vl.release.prepared import prepare
from openqwen2vl.release.provenance import stages

__all__ = ["SCHEMA", "run"]


def run(config: DictConfig) -> Mapping[str, object]:
    """Write the folder, check it and print what it holds.

    Returns:
        Its class, size and files, seconds of each part, and how far the reloaded model was off.
    """
    out = Path(str(config.out)).expanduser()
    prepared = prepare(Path(str(config.checkpoint)).expanduser(), config.tokenizer, config.grid)
    chain = stages(prepared.path)
    card = make_card(
        prepared,
        chain,
        name=config.name or out.name,
        licence=str(config.licence),
        scores=paths(config.scores),
        curation=paths(config.curation),
    )
    known = {key: value for key, value in asdict(card).items() if key in ("scores", "curation")}
    request = Export(
        build=prepared.build,
        weights=prepared.weights,
        texts=prepared.texts,
        llm_config=prepared.facts["llm_config"],
        about={"facts": prepared.kept_facts(), "provenance": {"stages": chain, **known}},
        card=card.text,
        dtype=config.dtype,
        shard_bytes=int(config.shard_gb * 1e9),
    )
    figures = export(request, out, overwrite=config.overwrite)
    _show(out, figures)
    return {"out": str(out), **figures, "device_hours": gpu_hours(chain)}


def _show(out: Path, figures: Mapping[str, object]) -> None:
    check = figures["check"]
    assert isinstance(check, dict)
    table = Table(title=str(out), title_justify="left", show_header=False, box=None)
    for key in ("class", "grid", "dtype"):
        table.add_row(key, str(figures[key]))
    table.add_row("weights", f"{figures['parameters']:,} numbers, {figures['bytes']:,} bytes")
    table.add_row(
        f"opened by transformers {check['transformers']}",
        f"the same tokens; logits at most {check['logits']:.2g} apart, of {check['largest_logit']:.3g}",
    )
    Console().print(table)
