"""Images that could not be read: masked where they stood, written down, counted, limited."""

import json
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from openqwen2vl.formats.errors import ShardError
from openqwen2vl.training.module import MLLMModule

from .boundary import ends_step


class CorruptLedger(pl.Callback):
    """Writes every corrupt image to ``corrupt-rank<r>.jsonl`` and stops a run that meets too many.

    Args:
        limit: corrupt images on one rank since its start that the run puts up with.
    """

    def __init__(self, limit: int = 1000) -> None:
        self.limit = limit
        self._count = 0
        self._in_step = 0

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Write down this micro-batch's corrupt images.

        Raises:
            ShardError: more than ``limit``; names the last one.
        """
        found = batch["corrupt"]
        self._in_step += len(found)
        if ends_step(trainer, batch_idx):
            assert isinstance(pl_module, MLLMModule)
            pl_module.row["corrupt"] = self._in_step
            self._in_step = 0
        if not found:
            return
        path = Path(trainer.default_root_dir) / f"corrupt-rank{trainer.global_rank}.jsonl"
        with path.open("a") as ledger:
            for uid, reason in found:
                ledger.write(json.dumps({"step": batch["step"], "uid": uid, "reason": reason}))
                ledger.write("\n")
        self._count += len(found)
        if self._count > self.limit:
            uid, reason = found[-1]
            raise ShardError(
                f"{self._count} images could not be read, callbacks.corrupt.limit is "
                f"{self.limit}; the last: document {uid}: {reason}. All are in {path}"
            )
