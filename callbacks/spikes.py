"""Steps whose loss or gradient leaps: told, or left out, before they reach the weights."""

import json
import logging
import math
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.packing.provenance import trace_step
from openqwen2vl.training.metrics import sum_over_ranks
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.stream import packed_data

log = logging.getLogger(__name__)

LEDGER = "spikes.jsonl"
# A normal sample's standard deviation over its median distance from the median.
_SPREAD = 1.4826
# Below this share of the median a spread counts as this: a flat stretch makes no spikes.
_LEAST_SPREAD = 0.01


class LossSpikes(pl.Callback):
    """Compares each global batch with those before it, on the device, before the update.

    How far a value lies above the median of the window, in robust standard deviations, is added to
    each row (``loss_z``, ``grad_norm_z``). A spike goes into ``spikes.jsonl`` with the documents of
    its global batch. Spikes do not enter the window, unless too many follow each other: then the
    level has changed. At another grid it is expected to: the window starts anew there.

    Args:
        action: ``log``, or ``skip``: the step also leaves the weights as they are.
        threshold: robust standard deviations above the median that make a spike.
        window: steps looked back on.
        least: steps seen before anything is judged.
        in_a_row: spikes in succession after which the next one counts as usual.

    Raises:
        ConfigError: another action, or bounds that leave nothing to judge by.
    """

    def __init__(
        self,
        action: str = "log",
        threshold: float = 10.0,
        window: int = 128,
        least: int = 32,
        in_a_row: int = 5,
    ) -> None:
        if action not in ("log", "skip"):
            raise ConfigError(f"callbacks.spikes.action is {action!r}; choose log or skip")
        if threshold <= 0 or not 3 <= least <= window or in_a_row < 1:
            raise ConfigError(
                f"callbacks.spikes: threshold {threshold}, least {least}, window {window}, in_a_row "
                f"{in_a_row}; expected a threshold above 0, 3 <= least <= window, in_a_row >= 1"
            )
        self.action, self.threshold = action, threshold
        self.window, self.least, self.in_a_row = window, least, in_a_row
        # Losses and norms of the window, as a ring; what was never filled is no number.
        self._history = torch.full((2, window), torch.nan, dtype=torch.float64)
        self._place = torch.zeros(1, dtype=torch.int64)
        self._row = torch.zeros((), dtype=torch.int64)
        self._grid: int | None = None

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Join the module: it asks before it updates, and tells of the rows it has written."""
        assert isinstance(pl_module, MLLMModule)
        device = pl_module.device
        self._history, self._place = self._history.to(device), self._place.to(device)
        self._row = self._row.to(device)

        def judge(grad_norm: Tensor) -> Tensor:
            return self._judge(pl_module, grad_norm)

        def record(step: int, row: dict[str, float]) -> None:
            self._record(trainer, step, row)

        pl_module.judges.append(judge)
        pl_module.readers.append(record)

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Drop events behind the checkpoint that the run goes on from: it tells them again."""
        path = Path(trainer.default_root_dir) / LEDGER
        if not trainer.is_global_zero or not path.is_file():
            return
        lines = path.read_bytes().splitlines(keepends=True)
        kept = [line for line in lines if _step_of(line) <= trainer.global_step]
        if kept != lines:
            with atomic_file(path) as file:
                file.writelines(kept)

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Forget the steps at another grid: images of more tokens have other losses."""
        if self._grid not in (None, batch["grid"]):
            self._history.fill_(torch.nan)
            self._row.zero_()
        self._grid = batch["grid"]

    def _judge(self, module: MLLMModule, grad_norm: Tensor) -> Tensor:
        """Whether the step that is about to be taken is one to skip: bool ()."""
        losses, targets = sum_over_ranks(module.source_loss.sums()).sum(1)
        now = torch.stack([losses / targets.clamp(min=1), grad_norm.to(torch.float64)])
        middle = self._history.nanmedian(dim=1, keepdim=True).values
        spread = _SPREAD * (self._history - middle).abs().nanmedian(dim=1).values
        middle = middle[:, 0]
        z = (now - middle) / torch.maximum(spread, _LEAST_SPREAD * middle.abs())
        enough = (~self._history.isnan()).sum(1) >= self.least
        spike = ((z > self.threshold) & enough).any() & (self._row < self.in_a_row)
        self._row = torch.where(spike, self._row + 1, torch.zeros_like(self._row))
        keep = ~spike & now.isfinite().all()
        kept = torch.where(keep, now, self._history.index_select(1, self._place)[:, 0])
        self._history.index_copy_(1, self._place, kept[:, None])
        self._place = (self._place + keep.to(torch.int64)) % self.window
        module.row |= {"loss_z": z[0], "grad_norm_z": z[1], "spike": spike.to(torch.float64)}
        return spike if self.action == "skip" else torch.zeros_like(spike)

    def _record(self, trainer: pl.Trainer, step: int, row: dict[str, float]) -> None:
        """Write the documents of a step that spiked, or that had no finite gradient."""
        if not trainer.is_global_zero or not (row.get("spike") or row["skipped"]):
            return
        data = packed_data(trainer)
        documents = [
            {"source": one.source, "pack": one.pack.pack, **one.record}
            for one in trace_step(data.mixture, data.order, step - 1)
        ]
        told = ("loss", "grad_norm", "loss_z", "grad_norm_z", "skipped")
        # JSON knows no NaN, which a step without a finite gradient has.
        figures = {key: row[key] if math.isfinite(row[key]) else None for key in told}
        event = {"step": step, **figures, "documents": documents}
        path = Path(trainer.default_root_dir) / LEDGER
        with path.open("a") as ledger:
            ledger.write(json.dumps(event) + "\n")
        log.warning(
            "step %d spiked: loss %.4g (z %.1f), gradient norm %.4g (z %.1f); its %d documents: %s",
            *(step, row["loss"], row["loss_z"], row["grad_norm"], row["grad_norm_z"]),
            *(len(documents), path),
        )

    def state_dict(self) -> dict[str, Any]:
        """Give the window: a resumed run judges as the unbroken one would."""
        rings = {"history": self._history.cpu(), "place": self._place.cpu(), "row": self._row.cpu()}
        return {**rings, "grid": self._grid}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the window over; one of another length starts anew.

        A sharded strategy calls this after `on_fit_start`, the others before: what is there says
        which device it is.
        """
        self._grid = state_dict.get("grid")
        if state_dict["history"].shape == self._history.shape:
            device = self._history.device
            self._history = state_dict["history"].to(device)
            self._place, self._row = (state_dict[key].to(device) for key in ("place", "row"))


def _step_of(line: bytes) -> float:
    """Give an event's step; one that a kill cut off is of no step."""
    try:
        return float(json.loads(line)["step"])
    except ValueError:
        return math.inf
