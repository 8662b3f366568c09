"""`strategy.cpu_offload`: the step of a sharded run whose weights lie on the host."""

from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from lightning.pytorch.strategies import FSDPStrategy
from support.compose import composed
from support.ranks import train_in_ranks
from support.runs import PackedCorpora, rows
from torch import nn

from openqwen2vl.training.checkpoint import checkpoints, read_weights
from openqwen2vl.training.optim import adamw, skip_update
from openqwen2vl.training.strategy import ShardedStrategy, fsdp

COMMON: dict[str, object] = {
    "strategy": "fsdp",
    "strategy.param_dtype": "fp32",
    "resolution": "tiny",
    "budget.steps": 3,
    "data.micro_batch": 1,  # of four packs on two ranks: two turns a step
    "data.preflight": "false",
    "callbacks.validation": "null",
    "callbacks.checkpoints.every_n_steps": 1,
}
OFFLOADED: dict[str, object] = {
    "strategy.cpu_offload": "true",
    "+callbacks.host": "{_target_: support.offloaded.HostAsDevice}",
}
LAYOUTS: dict[str, dict[str, object]] = {
    "step": {},
    "each": {"strategy.sync": "micro_batch"},
    # Reduces each micro-batch whatever `sync` says.
    "whole": {"strategy.sharding": "NO_SHARD", "strategy.param_dtype": "bf16"},
}


@cache
def offloaded_runs(corpora: PackedCorpora) -> Path:
    """Train each layout with and without offload, and one again from its first step."""
    root = corpora.root / "offloaded"
    assert not root.exists(), "the runs failed; the first test that wanted them says how"
    runs: dict[Path, dict[str, object]] = {}
    for name, layout in LAYOUTS.items():
        runs[root / name] = {**COMMON, **layout}
        runs[root / f"{name}_offloaded"] = {**COMMON, **layout, **OFFLOADED}
    first = root / "step_offloaded" / "checkpoints" / "step_00000001.ckpt"
    runs[root / "again"] = {**COMMON, **OFFLOADED, "resume": first}
    runs[root / "back"] = {**COMMON, "resume": first}
    train_in_ranks(corpora, 2, runs)
    return root


def assert_same(ours: Path, theirs: Path, first: int = 1) -> None:
    """Equal in every digit of what is logged but times, and in the weights."""
    assert rows(ours) == rows(theirs)[first - 1 :]
    one, other = (read_weights(checkpoints(run / "checkpoints")[-1]) for run in (ours, theirs))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_weights_lie_changes_no_bit(corpora: PackedCorpora, layout: str) -> None:
    root = offloaded_runs(corpora)
    assert_same(root / f"{layout}_offloaded", root / layout)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["again", "back"])
def test_a_checkpoint_resumes_with_and_without(corpora: PackedCorpora, name: str) -> None:
    root = offloaded_runs(corpora)
    assert_same(root / name, root / "step", first=2)


@pytest.mark.parametrize("asked", [True, False])
def test_the_config_hands_it_on(asked: bool) -> None:
    config = composed(f"strategy.cpu_offload={str(asked).lower()}", "stage=pretrain")
    assert config.strategy.cpu_offload is asked
    strategy = cast(FSDPStrategy, fsdp(cpu_offload=asked))
    assert strategy.cpu_offload.offload_params is asked
    assert composed("stage=pretrain").strategy.cpu_offload is False


def test_gradients_that_are_overwritten_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    # On a GPU FSDP copies each micro-batch's gradient over the last one's, into the same memory.
    strategy = cast(ShardedStrategy, fsdp(cpu_offload=True, sync="micro_batch"))
    model = nn.Linear(1, 1, bias=False)
    strategy.model = model
    host = torch.zeros(1, 1)
    monkeypatch.setattr(FSDPStrategy, "post_backward", lambda self, loss: None)

    def backward(gradient: float) -> None:
        model.weight.grad = host.fill_(gradient)
        strategy.post_backward(torch.zeros(()))

    for step in (1.0, 5.0):
        for gradient in (step, 2 * step):
            with strategy.block_backward_sync():
                backward(gradient)
        backward(4 * step)
        assert model.weight.grad is not None
        assert model.weight.grad.item() == 7 * step


def test_a_step_is_skipped_where_the_weights_lie() -> None:
    model = nn.Linear(2, 1)
    optimizer = adamw(model.named_parameters(), frozenset(["weight"]), lr=0.1)
    moved: list[torch.device] = []

    def to(device: torch.device, dtype: torch.dtype) -> torch.Tensor:
        moved.append(device)
        return torch.ones((), dtype=dtype)

    before = model.weight.detach().clone()
    model(torch.ones(2)).sum().backward()
    skip_update(optimizer, SimpleNamespace(to=to))  # type: ignore[arg-type]
    optimizer.step()
    assert moved == [torch.device("cpu")]
    assert torch.equal(model.weight, before)
