"""One row of figures per optimizer step, to every logger, before the step's checkpoint."""

from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.stream import packed_data

from .boundary import ends_step


class StepMetrics(pl.Callback):
    """Writes loss, learning rate, gradient norm and what the global batch held.

    Other callbacks add their figures to `MLLMModule.row` in the same hook; they must be listed
    before this one. `self.log` would write after the checkpoint, so a kill in between would lose
    the row for ever.
    """

    def __init__(self) -> None:
        self._lr = 0.0

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Read the rate here: at the batch's end it is the next step's already."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Sum the loss over ranks and write the row."""
        if not ends_step(trainer, batch_idx):
            return
        assert isinstance(pl_module, MLLMModule)
        data = packed_data(trainer)
        sums, targets = pl_module.source_loss.compute().tolist()
        pl_module.source_loss.reset()
        step = trainer.global_step
        assert pl_module.grad_norm is not None
        row: dict[str, float] = {
            "loss": sum(sums) / max(1.0, sum(targets)),
            "lr": self._lr,
            "grad_norm": float(pl_module.grad_norm),
            **data.contents(step - 1),
            "target_tokens": int(sum(targets)),
            "grid": batch["grid"],
            "packs_consumed": step * data.global_batch,
        }
        for name, loss, count in zip(pl_module.sources, sums, targets, strict=True):
            if len(pl_module.sources) > 1:
                row[f"loss/{name}"] = loss / count if count else float("nan")
                row[f"target_tokens/{name}"] = int(count)
        row.update(pl_module.row)
        pl_module.row.clear()
        pl_module.last_row = row
        for logger in trainer.loggers:
            logger.log_metrics(row, step=step)
