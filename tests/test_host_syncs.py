"""Nothing in a training step makes the host wait for the device.

On a GPU every read of a tensor's value stops the host until the queue is empty. Here the operators
that read one are counted while a whole step runs on the CPU, with the CPU's own attention, which
does read, as the single operator that stands where CUDA's kernel would.
"""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.batches import lay_out, random_document, random_images
from support.trainer import FakeTrainer, tiny_module
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._python_dispatch import TorchDispatchMode

from openqwen2vl.callbacks import steps
from openqwen2vl.callbacks.spikes import LossSpikes
from openqwen2vl.callbacks.steps import StepMetrics
from openqwen2vl.callbacks.throughput import Throughput
from openqwen2vl.model import attention
from openqwen2vl.model.attention_op import by_document_op

needs_operator = pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no such operator"
)
READS = {
    "_local_scalar_dense",
    "nonzero",
    "masked_select",
    "unique_consecutive",
    "_unique2",
    "equal",
}


class Reads(TorchDispatchMode):
    """Names the operators whose result the host must wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in READS:
            self.found.append(name)
        return func(*args, **(kwargs or {}))


def batch() -> dict[str, Any]:
    documents = [random_document(12, 0, 1), random_document(9, 1), random_document(7, 2, 2)]
    laid: dict[str, Any] = dict(lay_out([documents], random_images(3), 64))
    positions = torch.tensor([9, 10, 11, 24, 25])
    return laid | {
        "target_positions": positions,
        "target_ids": torch.arange(5, 10),
        "target_rows": torch.zeros(5, dtype=torch.int64),
        "sources": torch.tensor([1]),
        "global_targets": 5,
        "step": 3,
        "slot": 0,
        "tokens": 30,
        "pairs": 300,
    }


def kernel(query: Tensor, key: Tensor, value: Tensor, mask: BlockMask, scaling: object) -> Tensor:
    """Stands where CUDA's flex kernel would: the mask is made, and is not read."""
    assert mask.shape == (1, 1, 64, 64)
    return (query + key.sum() + value.sum()).transpose(1, 2)


def run_step(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any, loss: str = "auto", attends: str = "auto"
) -> list[str]:
    monkeypatch.setattr(attention, "by_document", by_document_op)
    monkeypatch.setattr(attention, "flex", kernel)
    monkeypatch.setattr(attention, "refuse_flex", lambda device, trains: None)
    monkeypatch.setattr(steps, "_runs_behind", lambda device: True)
    module = tiny_module()
    module._loss, module.model.attention = loss, attends
    data = SimpleNamespace(global_batch=1, contents=lambda step: {})
    trainer = FakeTrainer(tmp_path, datamodule=data, accumulate_grad_batches=1)
    module._trainer = trainer
    metrics, rates, spikes = StepMetrics(every_n_steps=100), Throughput(), LossSpikes("skip")
    rates.setup(trainer, module, "fit")
    rates.on_train_start(trainer, module)
    module.on_fit_start()
    spikes.on_fit_start(trainer, module)
    optimizer = module.configure_optimizers()["optimizer"]
    inputs = batch()
    with Reads() as reads:
        rates.on_train_batch_start(trainer, module, inputs, 0)
        module.training_step(inputs, 0).backward()
        metrics.on_before_optimizer_step(trainer, module, optimizer)
        module.configure_gradient_clipping(optimizer)
        optimizer.step()
        optimizer.zero_grad()
        trainer.global_step = 1
        rates.on_train_batch_end(trainer, module, None, inputs, 0)
        metrics.on_train_batch_end(trainer, module, None, inputs, 0)
    assert len(metrics._steps) == 1
    return reads.found


def test_a_step_reads_no_value_back(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    assert run_step(monkeypatch, tmp_path) == []


@needs_operator
def test_a_step_with_torchs_loss_reads_no_value_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    """What the operator does inside is looked at in test_loss_choices."""
    assert run_step(monkeypatch, tmp_path, loss="linear_cross_entropy") == []


def test_a_step_with_flex_attention_reads_no_value_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    assert run_step(monkeypatch, tmp_path, attends="flex") == []


def test_a_read_would_be_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with Reads() as reads:
        float(torch.ones(1).sum())
        torch.ones(3).nonzero()
    assert reads.found == ["_local_scalar_dense", "nonzero"]
