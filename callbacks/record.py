"""What a run has consumed and cost, in files beside its checkpoints."""

import logging
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.csv_log import last_step
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.run_folder import RunFolder
from openqwen2vl.training.stream import packed_data

from .boundary import AnyRank, ends_step

log = logging.getLogger(__name__)

CPU = "cpu"
PACKAGES = ("torch", "lightning", "transformers", "timm")


class RunRecord(pl.Callback):
    """Keeps ``run.json`` (state, hardware, hours over all restarts) and ``consumed.json``.

    The hours of a killed run are those up to its last record; a resumed one goes on counting, and
    one that is resumed into another folder counts on from its checkpoint. Where the Trainer has
    ``max_gpu_hours``, the run ends at the first global batch that reaches them (of several GPUs the
    next one: see `AnyRank`), with a checkpoint.

    A run that breaks off says ``failed``; one that is killed says ``running`` for ever. ``starts``
    lists every start: the step that it went on from, how many steps it takes again because they
    came after its checkpoint, its devices, and its hours by the clock.

    Args:
        every_minutes: how often both files are brought up to date between checkpoints.
    """

    def __init__(self, every_minutes: float = 1.0) -> None:
        self.every_minutes = every_minutes
        self._before: dict[str, float] = {}
        self._starts: list[dict[str, Any]] = []
        self._started = self._written = time.monotonic()
        self._spent = self._running = False
        self._any_rank = AnyRank()

    def on_load_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Take over the hours that the checkpoint had cost."""
        cost = checkpoint.get("openqwen2vl", {}).get("cost", {})
        self._before = dict(cost.get("hours_by_device", {}))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Give both to the facts, which the module writes next, and bring the files along."""
        assert isinstance(pl_module, MLLMModule)
        pl_module.facts["cost"] = self._cost(trainer, pl_module)
        pl_module.facts["consumed"] = _consumed(trainer)
        if self._running:
            self._write(trainer, pl_module, "running")

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Take over the hours of earlier starts.

        Raises:
            ConfigError: they are as many as the run may take.
        """
        self._started = time.monotonic()
        folder, step = self._folder(trainer), trainer.global_step
        # Also at step 0: a run that was killed before its first checkpoint has cost hours, too.
        told = folder.read_json("run.json")
        hours = dict(told.get("hours_by_device", {}))
        # A folder knows of work that was lost with a kill; a checkpoint does not.
        if sum(hours.values()) > sum(self._before.values()):
            self._before = hours
        spent = self._reached(trainer, pl_module)
        # Nothing runs yet, so waiting for the answer costs nothing.
        if trainer.strategy.reduce_boolean_decision(spent, all=False):
            raise ConfigError(
                f"the run has taken {sum(self._before.values()):.4g} GPU-hours, "
                f"trainer.max_gpu_hours is {_limit(trainer)}; give it more to go on"
            )
        start = {
            "step": step,
            "again": max(0, last_step(folder.path / "metrics.csv") - step),
            "device": _device(pl_module),
            "devices": trainer.world_size,
            "hours": 0.0,
        }
        self._starts = [*told.get("starts", []), start]
        self._write(trainer, pl_module, "running")
        self._running = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Bring the files up to date now and then; stop when the hours are spent."""
        if not ends_step(trainer, batch_idx):
            return
        # Their clocks differ, so all ranks must decide alike.
        if _limit(trainer) is not None and self._any_rank(
            trainer, self._reached(trainer, pl_module)
        ):
            trainer.should_stop = self._spent = True
            if trainer.is_global_zero:
                log.info(
                    "step %d: trainer.max_gpu_hours=%g are spent; the run saves and ends, and "
                    "resume=last with more of them goes on",
                    trainer.global_step,
                    _limit(trainer),
                )
        if time.monotonic() - self._written >= 60 * self.every_minutes:
            self._write(trainer, pl_module, "running")

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Say how the run ended."""
        done = trainer.global_step >= trainer.max_steps
        self._running = False
        self._write(trainer, pl_module, "finished" if done else "stopped")

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        """Say that the run broke off, and what it took till then."""
        if self._running:
            self._write(trainer, pl_module, "failed")

    def _reached(self, trainer: pl.Trainer, module: pl.LightningModule) -> bool:
        """Tell whether the hours are spent, by this rank's clock."""
        limit = _limit(trainer)
        return limit is not None and sum(self._hours(trainer, module).values()) >= limit

    def _hours(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, float]:
        """Hours of devices by their name, of this start and those before."""
        name = _device(module)
        mine = (time.monotonic() - self._started) / 3600 * trainer.world_size
        return {**self._before, name: self._before.get(name, 0.0) + mine}

    def _cost(self, trainer: pl.Trainer, module: pl.LightningModule) -> dict[str, Any]:
        """What the run has taken so far; on a CPU an hour is that of one process."""
        hours = self._hours(trainer, module)
        return {
            "device": _device(module),
            "devices": trainer.world_size,
            "device_hours": sum(hours.values()),
            "gpu_hours": sum(value for name, value in hours.items() if name != CPU),
            "cpu_hours": hours.get(CPU, 0.0),
            "hours_by_device": hours,
        }

    def _write(self, trainer: pl.Trainer, module: pl.LightningModule, state: str) -> None:
        self._written = time.monotonic()
        if not trainer.is_global_zero:
            return
        assert isinstance(module, MLLMModule)
        folder = self._folder(trainer)
        self._starts[-1]["hours"] = (time.monotonic() - self._started) / 3600
        folder.write_json(
            "run.json",
            {
                "state": state,
                "stopped_by": "trainer.max_gpu_hours" if self._spent else None,
                "step": trainer.global_step,
                "steps": trainer.max_steps,
                **self._cost(trainer, module),
                "starts": self._starts,
                "versions": {name: version(name) for name in PACKAGES},
                "pictures": module.facts.get("pictures"),
                "loss": module.last_row.get("loss"),
            },
        )
        folder.write_json("consumed.json", _consumed(trainer))

    @staticmethod
    def _folder(trainer: pl.Trainer) -> RunFolder:
        return RunFolder(Path(trainer.default_root_dir))


def _consumed(trainer: pl.Trainer) -> dict[str, dict[str, float]]:
    """Count what each source has given so far, in plain values: checkpoints hold no others."""
    found = packed_data(trainer).consumed(trainer.global_step)
    return {name: dict(counts) for name, counts in found.items()}


def _limit(trainer: pl.Trainer) -> float | None:
    """Hours that the run may take; Lightning's own Trainer knows no such bound."""
    limit: float | None = getattr(trainer, "max_gpu_hours", None)
    return limit


def _device(module: pl.LightningModule) -> str:
    return torch.cuda.get_device_name() if module.device.type == "cuda" else CPU
