"""A callback for real runs that keeps what each rank was given."""

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.packing.fingerprint import GlobalBatch


class Recorder(pl.Callback):
    """Writes every micro-batch that the training step gets, rank by rank.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Keep the batch; the step is the Trainer's, not the one that the batch says."""
        self.folder.mkdir(parents=True, exist_ok=True)
        name = f"{trainer.global_step}-{trainer.global_rank}-{batch_idx}.pt"
        torch.save(dict(batch), self.folder / name)


def recorded(folder: Path) -> dict[int, GlobalBatch]:
    """Put what all ranks were given together, step by step."""
    batches: dict[int, GlobalBatch] = {}
    for path in sorted(folder.glob("*.pt")):
        step = int(path.name.partition("-")[0])
        batches.setdefault(step, GlobalBatch(step)).add(torch.load(path, weights_only=True))
    return batches
