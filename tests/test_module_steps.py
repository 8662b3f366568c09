"""What a training step leaves behind, and what it spares: gradients, notes of seeds."""

from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.batches import lay_out, random_document, random_images
from support.trainer import tiny_module

from openqwen2vl.packing.order import mix_seed
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.optim import adamw


def batch(step: int) -> dict[str, Any]:
    """A micro-batch as the loader makes it, of one pack."""
    made = lay_out([[random_document(30, 0, 1)]], random_images(1), 64, grid=3)
    rows = torch.arange(5, 10)
    return {
        **made,
        "target_positions": rows,
        "target_ids": rows % 7,
        "target_rows": torch.zeros(5, dtype=torch.int64),
        "sources": torch.zeros(1, dtype=torch.int64),
        "global_targets": 5,
        "step": step,
        "slot": 0,
    }


class Watch(pl.Callback):
    """Notes at each step's start what the one before has left."""

    def __init__(self) -> None:
        self.gradients: list[int] = []
        self.drawn: list[float] = []

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.gradients.append(sum(p.grad is not None for p in pl_module.parameters()))

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: torch.Tensor
    ) -> None:
        state = torch.get_rng_state()
        self.drawn.append(torch.rand(()).item())
        torch.set_rng_state(state)


@pytest.fixture
def notes(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """Calls for a device that is not in use, each of which writes the stack down."""
    made: list[object] = []
    for device in (torch.cuda, torch.xpu, torch.mtia):
        monkeypatch.setattr(device, "_lazy_call", lambda call, **_: made.append(call))
    return made


@pytest.fixture
def watched(tmp_path: Path, notes: list[object]) -> Watch:
    watch = Watch()
    fit(tiny_module(), tmp_path, 3, callbacks=[watch])
    return watch


def fit(
    module: MLLMModule, root: Path, steps: int, resume: Path | None = None, **options: Any
) -> pl.Trainer:
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        default_root_dir=root,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    loader = torch.utils.data.DataLoader([batch(n) for n in range(steps)], batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader, ckpt_path=resume, weights_only=True)
    return trainer


def test_a_resumed_run_trains_at_the_rate_of_its_config(tmp_path: Path) -> None:
    saved = tmp_path / "two.ckpt"
    fit(tiny_module(), tmp_path, 2).save_checkpoint(saved)
    slower = tiny_module()
    slower._optim = partial(adamw, lr=1e-5)
    trainer = fit(slower, tmp_path, 3, saved)
    rate = 1e-5 * slower._schedule.factor(3, slower._steps)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [rate, rate]


def test_a_step_lets_its_gradients_go(watched: Watch) -> None:
    assert watched.gradients == [0, 0, 0]


def test_a_step_writes_no_stack_down(watched: Watch, notes: list[object]) -> None:
    assert notes == []
    torch.manual_seed(0)
    assert notes


def test_a_micro_batch_draws_by_its_place_alone(watched: Watch) -> None:
    expected = []
    for step in range(3):
        torch.manual_seed(mix_seed(7, step, 0))
        expected.append(torch.rand(()).item())
    assert watched.drawn == expected
