"""A signal: finish the global batch, save, leave with a state to resume from."""

import signal
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import lightning.pytorch as pl

from openqwen2vl.training.launch import WARNINGS

from .boundary import AnyRank, ends_step


class StopOnSignal(pl.Callback):
    """Turns a signal to any rank into a common stop of all ranks.

    Lightning's own handler starts a collective inside the signal handler, which hangs when only
    some ranks got the signal. Here the handler sets a flag, and the ranks compare flags when a
    global batch ends; `Checkpoints` sees ``trainer.should_stop`` and saves. A second Ctrl-C ends
    the process at once.

    SIGTERM and Ctrl-C are such signals, and a scheduler's warning is one (SIGUSR1, SIGUSR2). Whoever
    handled the warning before, such as submitit, which queues the job again, has its turn when all
    is saved. A warning that this process was told to ignore stays ignored.
    """

    def __init__(self) -> None:
        self._asked = False
        self._after: Callable[[], Any] | None = None
        self._old: dict[int, Any] = {}
        self._any_rank = AnyRank()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take the handlers, after Lightning has put in its own."""
        heard = [number for number in WARNINGS if signal.getsignal(number) != signal.SIG_IGN]
        for number in (signal.SIGTERM, signal.SIGINT, *heard):
            self._old[number] = signal.signal(number, self._ask)
        # Lightning would otherwise broadcast and wait for a flag in every micro-batch.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked and number == signal.SIGINT:
            raise KeyboardInterrupt
        owner = self._old.get(number)
        if number in WARNINGS and self._after is None and callable(owner):
            self._after = partial(owner, number, frame)
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
        if ends_step(trainer, batch_idx) and self._any_rank(trainer, self._asked):
            trainer.should_stop = True

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Give the handlers back, before Lightning does so with its own."""
        self._give_back()

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Give the handlers back: the next job of a sweep may run in this process."""
        self._give_back()

    def teardown(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Let whoever handles the warning have its turn: the other callbacks have written all."""
        after, self._after = self._after, None
        if after is not None:
            after()

    def _give_back(self) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old.clear()
