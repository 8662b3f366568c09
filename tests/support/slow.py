"""A callback that gives a test the time to disturb a run of tiny steps."""

import time
from typing import Any

import lightning.pytorch as pl


class Slow(pl.Callback):
    """Waits after every micro-batch."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        time.sleep(self.seconds)
