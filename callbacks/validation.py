"""Held-out loss during training, per source."""

from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.model.compiled import uncompiled
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.stream import packed_data

from .boundary import ends_step


class Validation(pl.Callback):
    """Measures the loss on the packs that were held out at pack time, at the current grid.

    Done in a callback because Lightning's validation loop runs after the step's checkpoint: a
    kill in between would lose the figure.

    Args:
        every_n_steps: optimizer steps between two measurements; None: only at the end.
    """

    def __init__(self, every_n_steps: int | None = 500) -> None:
        self.every_n_steps = every_n_steps

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Add ``val_loss`` to the row of a step that is due."""
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        due = self.every_n_steps is not None and step % self.every_n_steps == 0
        if due or step == trainer.max_steps:
            assert isinstance(pl_module, MLLMModule)
            self._measure(trainer, pl_module, batch["grid"])

    def _measure(self, trainer: pl.Trainer, module: MLLMModule, grid: int) -> None:
        data = packed_data(trainer)
        loader = data.validation_loader(grid)
        if loader is None:
            return
        module.eval()
        # Compiled layers would be compiled again for passes without gradients.
        with torch.no_grad(), uncompiled():
            for index, batch in enumerate(loader):
                moved = trainer.strategy.batch_to_device(batch)
                # Through the strategy, so that a sharded model gathers its weights.
                trainer.strategy.validation_step(moved, index)
        module.train()
        sums, targets = module.validation_loss.compute().tolist()
        module.validation_loss.reset()
        module.row["val_loss"] = sum(sums) / max(1.0, sum(targets))
        names = data.validation_names()
        if len(module.sources) > 1:
            for name, loss, count in zip(names, sums[: len(names)], targets, strict=False):
                module.row[f"val_loss/{name}"] = loss / max(1.0, count)
