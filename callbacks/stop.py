"""SIGTERM or Ctrl-C: finish the global batch, save, leave with a state to resume from."""

import signal
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from .boundary import ends_step


class StopOnSignal(pl.Callback):
    """Turns a signal to any rank into a common stop of all ranks.

    Lightning's own handler starts a collective inside the signal handler, which hangs when only
    some ranks got the signal. Here the handler sets a flag, and the ranks compare flags when a
    global batch ends; `Checkpoints` sees ``trainer.should_stop`` and saves. A second Ctrl-C ends
    the process at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._old: dict[int, Any] = {}

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the handlers, after Lightning has put in its own."""
        for number in (signal.SIGTERM, signal.SIGINT):
            self._old[number] = signal.signal(number, self._ask)
        # Lightning would otherwise broadcast and wait for a flag in every micro-batch.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._asked = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop all ranks when one was asked to."""
        if ends_step(trainer, batch_idx) and trainer.strategy.reduce_boolean_decision(
            self._asked, all=False
        ):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the handlers back."""
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
