"""Makes any factorisation resume any other: ranks x micro-batch x accumulation may change."""

from typing import Any

import lightning.pytorch as pl


class Resumable(pl.Callback):
    """Rewrites Lightning's loop counters from the optimizer step when a checkpoint is loaded.

    Lightning counts micro-batches, so a checkpoint of 4 micro-batches a step read by a run of 1
    would start at the wrong place. The hook gets the very dictionary that the loops are restored
    from.
    """

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Set the counters to what Lightning stores at the end of a step."""
        steps = checkpoint["global_step"]
        if steps == 0:
            return
        seen = steps * trainer.accumulate_grad_batches
        # A batch counts as completed only after its callbacks, one of which wrote the checkpoint.
        batches = {"ready": seen, "started": seen, "processed": seen, "completed": seen - 1}
        epochs = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
        loop = checkpoint["loops"]["fit_loop"]
        loop["epoch_loop.batch_progress"] = {
            "total": batches,
            "current": dict(batches),
            "is_last_batch": False,
        }
        loop["epoch_loop.state_dict"] = {"_batches_that_stepped": steps - 1}
        loop["epoch_progress"] = {"total": epochs, "current": dict(epochs)}
