"""What a run has consumed and cost, in files beside its checkpoints."""

import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.run_folder import RunFolder
from openqwen2vl.training.stream import packed_data

from .boundary import ends_step

PACKAGES = ("torch", "lightning", "transformers", "timm")


class RunRecord(pl.Callback):
    """Keeps ``run.json`` (state, hardware, device-hours over all restarts) and ``consumed.json``.

    The hours of a killed run are those up to its last record; a resumed one goes on counting.

    Args:
        every_minutes: how often both files are brought up to date.
    """

    def __init__(self, every_minutes: float = 1.0) -> None:
        self.every_minutes = every_minutes
        self._hours_before = 0.0
        self._started = self._written = time.monotonic()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the hours of earlier starts."""
        self._started = time.monotonic()
        if trainer.is_global_zero and trainer.global_step:
            self._hours_before = float(
                self._folder(trainer).read_json("run.json").get("device_hours", 0.0)
            )
        self._write(trainer, pl_module, "running")

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Bring the files up to date now and then."""
        late = time.monotonic() - self._written >= 60 * self.every_minutes
        if ends_step(trainer, batch_idx) and late:
            self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the run ended."""
        done = trainer.global_step >= trainer.max_steps
        self._write(trainer, pl_module, "finished" if done else "stopped")

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, state: str) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        assert isinstance(module, MLLMModule)
        folder = self._folder(trainer)
        hours = (self._written - self._started) / 3600 * trainer.world_size
        cuda = module.device.type == "cuda"
        folder.write_json(
            "run.json",
            {
                "state": state,
                "step": trainer.global_step,
                "steps": trainer.max_steps,
                "device": torch.cuda.get_device_name() if cuda else "cpu",
                "devices": trainer.world_size,
                "device_hours": self._hours_before + hours,
                "versions": {name: version(name) for name in PACKAGES},
                "loss": module.last_row.get("loss"),
            },
        )
        folder.write_json("consumed.json", dict(packed_data(trainer).consumed(trainer.global_step)))

    @staticmethod
    def _folder(trainer: pl.Trainer) -> RunFolder:
        return RunFolder(Path(trainer.default_root_dir))
