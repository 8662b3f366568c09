"""Progress in optimizer steps: loss, tokens per second, time left."""

import logging
import time
from typing import Any

import lightning.pytorch as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openqwen2vl.training.module import MLLMModule

from .boundary import ends_step

log = logging.getLogger(__name__)


class ProgressBar(pl.Callback):
    """A rich bar on a terminal; elsewhere one log line every ``every_seconds``.

    Args:
        every_seconds: between two log lines when the output is no terminal.
    """

    def __init__(self, every_seconds: float = 30.0) -> None:
        self.every_seconds = every_seconds
        self._bar: Progress | None = None
        self._logged = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Open the bar at the step where the run goes on."""
        console = Console(stderr=True)
        if trainer.is_global_zero and console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.description}"),
                console=console,
            )
            self._bar.add_task("", total=trainer.max_steps, completed=trainer.global_step)
            self._bar.start()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show the row that `StepMetrics` has finished."""
        if not trainer.is_global_zero or not ends_step(trainer, batch_idx):
            return
        assert isinstance(pl_module, MLLMModule)
        row = pl_module.last_row
        parts = [f"loss {row.get('loss', float('nan')):.4f}"]
        if "tokens_per_second" in row:
            parts.append(f"{row['tokens_per_second']:,.0f} tokens/s")
        text = ", ".join(parts)
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=trainer.global_step, description=text)
        elif time.monotonic() - self._logged >= self.every_seconds:
            self._logged = time.monotonic()
            log.info("step %d of %d: %s", trainer.global_step, trainer.max_steps, text)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.stop()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Leave the terminal as it was."""
        self.on_train_end(trainer, pl_module)
