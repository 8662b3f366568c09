"""Show which documents made up a step of a run, and how hard each was."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openqwen2vl.commands._trace_page import build_page
from openqwen2vl.commands._trace_run import Found, TracedRun, open_run
from openqwen2vl.config import Schema
from openqwen2vl.formats.errors import ConfigError

_SHOWN = 20  # rows in the terminal


def _sound_numbers(config: DictConfig) -> None:
    if config.step < 1 or config.count < 1:
        raise ConfigError(f"step is {config.step} and count {config.count}; both start at 1")


SCHEMA = Schema(
    keys=frozenset(["run", "step", "out", "loss", "tokenizer", "count", "json"]),
    types={"step": int, "count": int, "loss": bool, "json": bool},
    rules=(_sound_numbers,),
)


def run(config: DictConfig) -> dict[str, object]:
    """Write the page, print the documents.

    Returns:
        The documents with their provenance, the step's row of metrics.csv, and the page's place.
    """
    traced = open_run(Path(config.run).expanduser(), config.tokenizer)
    documents = traced.documents(config.step)
    judge = traced.judge(documents, config.step) if config.loss else None
    if judge is not None:
        documents.sort(key=lambda one: (one.loss is None, -(one.loss or 0.0)))
    default = traced.path / f"trace-step-{config.step}.html"
    out = Path(config.out).expanduser() if config.out else default
    build_page(traced, config.step, documents[: config.count], len(documents), judge).save(out)
    _show(documents, traced, config.step)
    told = f"{len(documents):,} documents{_left_out(len(documents), config.count)}: {out}"
    Console().print(told, soft_wrap=True, highlight=False, markup=False)
    return {
        "step": config.step,
        "row": traced.row(config.step),
        "judged_by": None if judge is None else str(judge),
        "documents": [one.record() for one in documents],
        "page": str(out),
    }


def _show(documents: list[Found], traced: TracedRun, step: int) -> None:
    table = Table("source", "shard", "key", "images", "tokens", "loss", "text", box=None)
    for one in documents[:_SHOWN]:
        loss = "-" if one.loss is None else f"{one.loss:.3f}"
        record = one.traced.record
        table.add_row(
            one.traced.source,
            str(record["shard"]),
            str(record["key"]),
            str(record["images"]),
            str(one.tokens),
            loss,
            escape(one.said.replace("\n", " ")[:60]),
        )
    Console().print(table)
    row = traced.row(step)
    told = (f"{key} {float(row[key]):.5g}" for key in ("loss", "grad_norm", "grid") if row.get(key))
    Console().print(f"step {step}: {', '.join(told) or 'not in metrics.csv'}", highlight=False)


def _left_out(count: int, on_page: int) -> str:
    """Say how many are not shown, in the terminal and on the page."""
    above = f", {count - _SHOWN:,} of them not shown above" if count > _SHOWN else ""
    page = f", the first {on_page:,} on the page (count=)" if count > on_page else ""
    return above + page
