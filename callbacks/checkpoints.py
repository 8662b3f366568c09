"""When a run saves, and which of its checkpoints it keeps."""

import logging
import os
import shutil
import time
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.callbacks import Checkpoint

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.checkpoint import checkpoint_path, checkpoints

from .boundary import AnyRank, ends_step

log = logging.getLogger(__name__)

_ASIDE = ".dropped"
_PATIENCE = 60.0  # seconds in which a network file system shows what another node has made


class Checkpoints(Checkpoint):
    """Saves at ends of global batches only, where a run can go on exactly.

    Being a `Checkpoint`, Lightning runs it after every other callback of the step. A run that went
    back to an older checkpoint puts the later ones aside: they are of another course, and the
    newest is what a restart goes on from.

    Args:
        every_n_steps: optimizer steps between two checkpoints; None: by time only.
        every_minutes: minutes between two checkpoints; None: by steps only.
        keep: the newest ones that stay.

    Raises:
        ConfigError: a bound below 1, or nothing to keep.
    """

    def __init__(
        self,
        every_n_steps: int | None = 500,
        every_minutes: float | None = 30,
        keep: int = 2,
    ) -> None:
        if keep < 1 or (every_n_steps or 1) < 1 or (every_minutes or 1) <= 0:
            raise ConfigError(
                f"callbacks.checkpoints: every_n_steps {every_n_steps}, every_minutes "
                f"{every_minutes}, keep {keep}; expected numbers above 0 (or null for the first two)"
            )
        self.every_n_steps, self.every_minutes, self.keep = every_n_steps, every_minutes, keep
        self._saved_at = time.monotonic()
        self._any_rank = AnyRank()

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Start the clock, and leave only what the run goes on from.

        Raises:
            ConfigError: ranks that write a checkpoint together do not see the same folder.
        """
        if trainer.world_size > 1 and hasattr(trainer.strategy, "sharding_strategy"):
            _require_shared(trainer, _folder(trainer))
        if trainer.is_global_zero:
            _tidy(_folder(trainer), trainer.global_step)
        self._saved_at = time.monotonic()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Save when it is time, when the run stops, and at its end."""
        if not ends_step(trainer, batch_idx):
            return
        step = trainer.global_step
        by_steps = self.every_n_steps is not None and step % self.every_n_steps == 0
        last = trainer.should_stop or step == trainer.max_steps
        if by_steps or last or self._time_is_up(trainer):
            self._save(trainer, step)

    def _time_is_up(self, trainer: pl.Trainer) -> bool:
        if self.every_minutes is None:
            return False
        late = time.monotonic() - self._saved_at >= 60 * self.every_minutes
        # Clocks differ between ranks, and saving takes all of them.
        return self._any_rank(trainer, late)

    def _save(self, trainer: pl.Trainer, step: int) -> None:
        folder = _folder(trainer)
        trainer.save_checkpoint(checkpoint_path(folder, step))
        # With the clock, a question on its way: its answer would save again.
        self._saved_at, self._any_rank = time.monotonic(), AnyRank()
        if trainer.is_global_zero:
            for old in checkpoints(folder)[: -self.keep]:
                _remove(old)


def _folder(trainer: pl.Trainer) -> Path:
    return Path(trainer.default_root_dir) / "checkpoints"


def _require_shared(trainer: pl.Trainer, folder: Path) -> None:
    """Look on all ranks for a file that rank 0 makes: shards on several disks are no checkpoint.

    Raises:
        ConfigError: some rank does not see it; all ranks say so.
    """
    # No name of an earlier start, which may have left its file on another disk.
    mark = folder / trainer.strategy.broadcast(f".shared-{time.time_ns()}")
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    trainer.strategy.barrier()
    end = time.monotonic() + _PATIENCE
    while not (seen := mark.exists()) and time.monotonic() < end:
        os.listdir(folder.parent)  # has network file systems look again
        time.sleep(0.2)
    everywhere = trainer.strategy.reduce_boolean_decision(seen, all=True)
    if trainer.is_global_zero:
        mark.unlink()
    if not everywhere:
        raise ConfigError(
            f"{folder} is not the same folder on all ranks, so no checkpoint would be whole: its "
            "shards would lie on several disks; choose a run_dir= on a file system that all nodes "
            "share, or strategy=ddp"
        )


def _tidy(folder: Path, step: int) -> None:
    """Delete what a kill left half written or half deleted; put later checkpoints aside."""
    for half in [*folder.glob(".step_*.ckpt.tmp"), *folder.glob(".step_*.ckpt.old")]:
        _delete(half)
    last = checkpoint_path(folder, step).name
    for path in checkpoints(folder):
        if path.name > last:
            aside = path.with_name(f"{path.name}{_ASIDE}")
            _delete(aside)
            path.rename(aside)
            log.warning("the run goes back to step %d; %s is now %s", step, path, aside.name)


def _remove(path: Path) -> None:
    """Delete a checkpoint under another name, so that a kill leaves no half of one."""
    _delete(path.rename(path.with_name(f".{path.name}.old")))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
