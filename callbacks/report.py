"""A page of the run beside its figures: at checkpoints, at the end, and when it breaks off."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning.pytorch as pl

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.shares import planned_shares
from openqwen2vl.training.report.files import PLAN
from openqwen2vl.training.report.page import write_report
from openqwen2vl.training.run_folder import RunFolder
from openqwen2vl.training.stream import packed_data

log = logging.getLogger(__name__)


class RunReport(pl.Callback):
    """Writes ``report.html``, and ``plan.json`` with what the mixture is meant to take.

    Stands after the callbacks whose files the page is made of. The page is for the eye: where it
    cannot be written, the run goes on, with a warning.

    Args:
        share: of the run's time that pages at checkpoints may take; 0: only when the run ends.

    Raises:
        ConfigError: a share that is none.
    """

    def __init__(self, share: float = 0.01) -> None:
        if not 0 <= share < 1:
            raise ConfigError(f"callbacks.report.share is {share}; expected 0 or more, below 1")
        self.share = share
        self._due = 0.0
        self._running = False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write down the mixture's plan while the packs are open."""
        self._running = True
        if not trainer.is_global_zero:
            return
        with _no_end_of_the_run(f"{PLAN} was not written"):
            data = packed_data(trainer)
            phases = planned_shares(data.mixture, data.order.phases, data.global_batch)
            plan = {"steps": data.order.steps, "phases": phases}
            RunFolder(Path(trainer.default_root_dir)).write_json(PLAN, plan)

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Bring the page up to date, unless pages have had their share of the time."""
        if self.share and time.monotonic() >= self._due:
            self._write(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write the page of the whole run."""
        self._write(trainer)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write the page of what there is."""
        if self._running:
            self._write(trainer)

    def _write(self, trainer: pl.Trainer) -> None:
        if not trainer.is_global_zero:
            return
        began = time.monotonic()
        with _no_end_of_the_run("no report of the run was written"):
            write_report(Path(trainer.default_root_dir))
        now = time.monotonic()
        if self.share:
            self._due = now + (now - began) / self.share


@contextmanager
def _no_end_of_the_run(warning: str) -> Iterator[None]:
    """Give a warning, with the traceback, for whatever goes wrong.

    A page is for the eye and can be written by hand later: neither a full disk nor a fault of ours
    in drawing it is worth a run of days. So any error is caught, but no request to stop.
    """
    try:
        yield
    except Exception:
        log.warning(warning, exc_info=True)
