"""Low-to-high resolution: the projector's grid follows the batches [paper 3.1]."""

import logging
from typing import Any

import lightning.pytorch as pl

from openqwen2vl.training.module import MLLMModule

log = logging.getLogger(__name__)


class ResolutionSwitch(pl.Callback):
    """The only writer of the projector's grid.

    The plan lives in the order of the packs: every batch carries the grid that its packs were
    made for. So this callback keeps no state, and a resumed run has the right grid from its first
    batch. The projector pools to the grid before its weights, so they are the same at any grid.
    """

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Set the grid when it changes, which only a new global batch may do.

        Raises:
            RuntimeError: two grids within one global batch; the order is broken.
        """
        assert isinstance(pl_module, MLLMModule)
        projector = pl_module.model.projector
        old, new = projector.grid, batch["grid"]
        if old == new:
            return
        if batch_idx % trainer.accumulate_grad_batches:
            raise RuntimeError(
                f"global batch {batch['step']} mixes grids {old} and {new}; a grid may change "
                "between global batches only"
            )
        projector.grid = new
        if trainer.is_global_zero:
            log.info(
                "step %d: %d visual tokens an image, before %d", batch["step"], new * new, old * old
            )
