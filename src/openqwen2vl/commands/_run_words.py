"""What a training run says on the terminal: how it begins and how it ended."""

from collections.abc import Mapping
from pathlib import Path

import lightning.pytorch as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from openqwen2vl.model.mllm import MLLM
from openqwen2vl.training.checkpoint import checkpoint_step
from openqwen2vl.training.csv_log import last_step
from openqwen2vl.training.run_folder import RunFolder
from openqwen2vl.training.stream import PackedData


def announce(
    stage: str,
    folder: RunFolder,
    data: PackedData,
    model: MLLM,
    trainer: pl.Trainer,
    checkpoint: Path | None,
) -> None:
    """Say what will happen, or that nothing is left to do.

    Args:
        stage: of training.
        folder: of the run.
        data: in their order.
        model: that trains.
        trainer: knows ranks and accumulation.
        checkpoint: where the run goes on; ``None`` is its start.
    """
    steps = data.order.steps
    if checkpoint is not None and checkpoint_step(checkpoint) == steps:
        _say(f"{folder.path} was at step {steps} of {steps} already: nothing was left to train")
        return
    # As texts: a folder's name may hold brackets, which are markup otherwise.
    table = Table(title=Text(f"{stage} -> {folder.path}"), title_justify="left", box=None)
    parts = model.trainable_summary()
    grids = [f"{p.grid} ({p.grid**2} tokens) until step {p.stop}" for p in data.order.phases]
    per_step = data.global_batch * data.mixture.documents_per_pack(data.plan[0].grid)
    ranks = "1 rank" if trainer.world_size == 1 else f"{trainer.world_size} ranks"
    rows = {
        "sources": ", ".join(data.mixture.names),
        "steps": f"{steps}, from {_begin(folder) if checkpoint is None else checkpoint}",
        "global batch": f"{data.global_batch} packs (about {per_step:.0f} documents) = "
        f"{ranks} x {data.micro_batch} x {trainer.accumulate_grad_batches}",
        "grid": ", then ".join(grids),
        "pictures": str(data.pictures),
        **{name: f"{p.trainable:,} of {p.total:,} train" for name, p in parts.items()},
    }
    for key, value in rows.items():
        table.add_row(key, Text(value))
    Console().print(table)


def _begin(folder: RunFolder) -> str:
    """Say that a run begins, and what of an earlier start is done again."""
    lost = last_step(folder.path / "metrics.csv")
    again = f"; the {lost} steps before left no checkpoint (callbacks.checkpoints.every_n_steps)"
    return f"the start{again if lost else ''}"


def tell_end(folder: RunFolder, figures: Mapping[str, object]) -> None:
    """Say how a run ended, and which pictures it could not read.

    Args:
        folder: of the run.
        figures: what the run recorded of itself, and its newest checkpoint.
    """
    loss = figures["loss"]
    short = f"{loss:.5g}" if isinstance(loss, float) else str(loss)
    _say(
        f"{figures['state']} at step {figures['step']} of {figures['steps']}, loss {short}: "
        f"{figures['checkpoint']}"
    )
    ledgers = sorted(folder.path.glob("corrupt-rank*.jsonl"))
    # As a set: steps that a restart did again met the same pictures.
    count = len({line for ledger in ledgers for line in ledger.read_text().splitlines()})
    if count:
        what = "1 picture" if count == 1 else f"{count:,} pictures"
        _say(
            f"{what} could not be read; nothing was learnt from the documents concerned, which "
            f"stayed in place, masked. Names and reasons: {', '.join(map(str, ledgers))}"
        )


def _say(sentence: str) -> None:
    Console().print(sentence, markup=False, highlight=False, soft_wrap=True)
