"""A whole training step makes no host wait for the GPU; deselected where there is none.

PyTorch itself raises where something would wait. The first step may: it makes the optimizer's state
and the kernels' plans.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.batches import lay_out, random_document, random_images
from support.trainer import FakeTrainer, tiny_module
from torch import Tensor

from openqwen2vl.callbacks.spikes import LossSpikes
from openqwen2vl.callbacks.steps import StepMetrics
from openqwen2vl.callbacks.throughput import Throughput

pytestmark = pytest.mark.gpu

DEVICE = "cuda"


def batch(step: int) -> dict[str, Any]:
    documents = [random_document(12, 0, 1), random_document(9, 1), random_document(7, 2, 2)]
    laid: dict[str, Any] = dict(lay_out([documents], random_images(3), 64))
    laid |= {
        "target_positions": torch.tensor([9, 10, 11, 24, 25]),
        "target_ids": torch.arange(5, 10),
        "target_rows": torch.zeros(5, dtype=torch.int64),
        "sources": torch.tensor([1]),
    }
    laid = {k: v.to(DEVICE) if isinstance(v, Tensor) else v for k, v in laid.items()}
    counts = {"global_targets": 5, "step": step, "slot": 0, "tokens": 30, "pairs": 300}
    return laid | counts


@contextmanager
def nothing_waits() -> Iterator[None]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("action", ["log", "skip"])
def test_a_step_waits_for_nothing(tmp_path: Path, action: str) -> None:
    module = tiny_module().to(DEVICE)
    data = SimpleNamespace(global_batch=1, contents=lambda step: {})
    trainer = FakeTrainer(tmp_path, datamodule=data, accumulate_grad_batches=1)
    trainer.strategy.root_device = module.device
    module._trainer = trainer  # type: ignore[assignment]
    metrics, rates, spikes = StepMetrics(every_n_steps=100), Throughput(), LossSpikes(action)
    rates.setup(trainer, module, "fit")
    rates.on_train_start(trainer, module)
    module.on_fit_start()
    spikes.on_fit_start(trainer, module)
    optimizer = module.configure_optimizers()["optimizer"]
    for step in range(4):
        inputs = batch(step)
        with nothing_waits() if step else nullcontext():
            rates.on_train_batch_start(trainer, module, inputs, step)
            with torch.autocast(DEVICE, torch.bfloat16):
                loss = module.training_step(inputs, step)
            loss.backward()
            metrics.on_before_optimizer_step(trainer, module, optimizer)
            module.configure_gradient_clipping(optimizer)
            optimizer.step()
            optimizer.zero_grad()
            trainer.global_step = step + 1
            rates.on_train_batch_end(trainer, module, None, inputs, step)
            metrics.on_train_batch_end(trainer, module, None, inputs, step)
    assert len(metrics._steps) == 4
