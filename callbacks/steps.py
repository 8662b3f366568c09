"""One row of figures per optimizer step, to every logger, before the step's checkpoint."""

import logging
import math
from dataclasses import dataclass
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.training.metrics import sum_over_ranks
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.stream import packed_data

from .boundary import ends_step

log = logging.getLogger(__name__)


@dataclass
class _Step:
    """A finished step whose figures may still lie on the device."""

    number: int
    sums: Tensor
    lr: float
    contents: dict[str, float]
    others: dict[str, float | Tensor]


class StepMetrics(pl.Callback):
    """Writes loss, learning rate, gradient norm and what the global batch held.

    Other callbacks add their figures to `MLLMModule.row` in the same hook; they must be listed
    before this one. `self.log` would write after the checkpoint, so a kill in between would lose
    the row for ever.

    A GPU works behind the host; to read a figure is to wait for it. So figures stay where they are
    and rows are written a few at a time, all of them before a checkpoint: what a kill takes with
    it are rows that the resumed run writes anyway.

    Args:
        every_n_steps: rows written at a time on a GPU; on a CPU, where nothing waits, it is 1.
        most_lost: steps in a row without a finite gradient that the run puts up with. They change
            no weight, so nothing would ever end them.

    Raises:
        ConfigError: a number below 1.
    """

    def __init__(self, every_n_steps: int = 10, most_lost: int = 50) -> None:
        if every_n_steps < 1 or most_lost < 1:
            raise ConfigError(
                f"callbacks.metrics.every_n_steps is {every_n_steps} and most_lost {most_lost}; "
                "expected 1 or more"
            )
        self.every_n_steps, self.most_lost = every_n_steps, most_lost
        self._lost = 0
        self._lr = 0.0
        self._steps: list[_Step] = []

    def on_before_optimizer_step(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        optimizer: torch.optim.Optimizer,
    ) -> None:
        """Read the rate here: at the batch's end it is the next step's already."""
        self._lr = float(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Sum the loss over ranks and keep the row, or write those that wait.

        Raises:
            UserError: too many steps in a row had no finite gradient.
        """
        if not ends_step(trainer, batch_idx):
            return
        assert isinstance(pl_module, MLLMModule)
        assert pl_module.grad_norm is not None
        data = packed_data(trainer)
        number = trainer.global_step
        sums = sum_over_ranks(pl_module.source_loss.sums())
        pl_module.source_loss.reset()
        contents = {
            **data.contents(number - 1),
            "grid": batch["grid"],
            "packs_consumed": number * data.global_batch,
        }
        others = {"grad_norm": pl_module.grad_norm, "skipped": pl_module.skipped, **pl_module.row}
        self._steps.append(_Step(number, sums, self._lr, contents, others))
        pl_module.row.clear()
        at_a_time = self.every_n_steps if _runs_behind(sums.device) else 1
        if number % at_a_time == 0 or number == trainer.max_steps:
            self._write(trainer, pl_module)
            # The norm is that of all ranks, so all leave together, and before a checkpoint.
            if self._lost > self.most_lost:
                raise UserError(
                    f"{self._lost} steps in a row up to step {number} had no finite gradient and "
                    f"changed no weight, callbacks.metrics.most_lost is {self.most_lost}; resume "
                    "from a checkpoint before them, on other GPUs or with a lower optim.lr"
                )

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Write what waits: no row may be older than a checkpoint and not on disk."""
        self._write(trainer, pl_module)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write what waits."""
        self._write(trainer, pl_module)

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Write what waits: the rows before a crash are those one wants to see."""
        self._write(trainer, pl_module)

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        assert isinstance(module, MLLMModule)
        steps, self._steps = self._steps, []
        for step, (sums, figures) in zip(steps, _fetch(steps), strict=True):
            row = _row(step, sums, figures, module.sources)
            module.last_row = row
            self._lost = 0 if math.isfinite(row["grad_norm"]) else self._lost + 1
            if row["skipped"]:
                log.warning(
                    "step %d changed no weight: its gradient's norm is %s",
                    step.number,
                    row["grad_norm"],
                )
            for logger in trainer.loggers:
                logger.log_metrics(row, step=step.number)
            for reader in module.readers:
                reader(step.number, row)


def _runs_behind(device: torch.device) -> bool:
    return device.type != "cpu"


def _row(
    step: _Step, sums: list[list[float]], figures: dict[str, float], sources: list[str]
) -> dict[str, float]:
    losses, targets = sums
    row: dict[str, float] = {
        "loss": sum(losses) / max(1.0, sum(targets)),
        "lr": step.lr,
        "grad_norm": figures.pop("grad_norm"),
        "skipped": int(figures.pop("skipped")),
        **step.contents,
        "target_tokens": int(sum(targets)),
    }
    for name, loss, count in zip(sources, losses, targets, strict=True):
        if len(sources) > 1:
            row[f"loss/{name}"] = loss / count if count else float("nan")
            row[f"target_tokens/{name}"] = int(count)
    return row | figures


def _fetch(steps: list[_Step]) -> list[tuple[list[list[float]], dict[str, float]]]:
    """Bring all figures of some steps to the host in one transfer."""
    if not steps:
        return []
    waiting = [
        [step.sums.flatten(), *(v for v in step.others.values() if isinstance(v, Tensor))]
        for step in steps
    ]
    flat = torch.cat([v.reshape(-1).to(torch.float64) for step in waiting for v in step])
    values = iter(flat.tolist())
    fetched = []
    for step in steps:
        sums = [[next(values) for _ in range(step.sums.shape[1])] for _ in range(2)]
        figures = {
            key: next(values) if isinstance(value, Tensor) else value
            for key, value in step.others.items()
        }
        fetched.append((sums, figures))
    return fetched
