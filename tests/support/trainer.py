"""A stand-in for Lightning's Trainer, and the module that callbacks are tried on."""

from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning.pytorch as pl
import torch

from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.optim import adamw
from openqwen2vl.training.schedule import Schedule
from support.models import tiny_mllm

ACCUMULATION = 3


def tiny_module() -> MLLMModule:
    """The tiny model as a run trains it at grid 3, two sources in the mixture."""
    return MLLMModule(
        tiny_mllm(grid=3),
        optim=partial(adamw, lr=1e-3),
        schedule=Schedule(),
        steps=10,
        sources=["red", "blue"],
    )


class FakeTrainer(SimpleNamespace):
    """What the callbacks read of a Trainer; saves are empty files."""

    def __init__(self, root: Path, **changes: Any) -> None:
        settings: dict[str, Any] = {
            "default_root_dir": str(root),
            "accumulate_grad_batches": ACCUMULATION,
            "is_global_zero": True,
            "global_rank": 0,
            "world_size": 1,
            "global_step": 0,
            "max_steps": 10,
            "should_stop": False,
            "loggers": [],
        }
        super().__init__(**(settings | changes))
        self.strategy = SimpleNamespace(
            reduce_boolean_decision=lambda decision, all: decision,
            root_device=torch.device("cpu"),
            reduce=lambda tensor, reduce_op: tensor,
        )
        self.saved: list[int] = []

    def save_checkpoint(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        self.saved.append(self.global_step)

    def steps(self, callback: pl.Callback, module: Any, count: int, **batch: Any) -> None:
        """Run a callback's hook over whole global batches."""
        turns = self.accumulate_grad_batches
        for _ in range(count):
            first = self.global_step * turns
            for turn in range(turns):
                # Lightning counts the step before it calls the hook of its last micro-batch.
                self.global_step += turn == turns - 1
                callback.on_train_batch_end(self, module, None, batch, first + turn)
