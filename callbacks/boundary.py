"""Where one optimizer step ends and the next begins."""

import lightning.pytorch as pl


def ends_step(trainer: pl.Trainer, batch_index: int) -> bool:
    """Tell whether this micro-batch was the last of its global batch.

    Micro-batches are counted from the run's step 0 (`Resumable` sees to it after a restart), so
    the index alone decides.
    """
    return (batch_index + 1) % trainer.accumulate_grad_batches == 0
