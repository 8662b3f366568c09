"""The losses' implementations on a GPU, where Liger's kernels run; deselected without one."""

from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.loss_choices import choose_losses

pytestmark = pytest.mark.gpu


def results(losses: Any, rows: int, dtype: torch.dtype) -> list[Any]:
    """Losses and gradients where every target has a weight of its own."""
    draw = torch.Generator("cuda").manual_seed(0)
    hidden = torch.randn(rows, 256, device="cuda", generator=draw).to(dtype).requires_grad_()
    head = torch.randn(30_000, 256, device="cuda", generator=draw).mul_(0.1).to(dtype)
    head.requires_grad_()
    ids = torch.randint(0, 30_000, (rows,), device="cuda", generator=draw)
    found = losses(hidden, ids, head).float()
    (found * torch.linspace(0.5, 2, rows, device="cuda")).sum().backward()
    return [found.detach(), hidden.grad, head.grad]


def chosen(name: str) -> Any:
    try:
        return choose_losses(name, "cuda")
    except ConfigError as error:
        # An older torch or no Liger is a machine without that choice; ours is on every machine.
        assert name != "chunked"
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["chunked", "linear_cross_entropy", "liger"])
@pytest.mark.parametrize("rows", [0, 1, 1500])
@pytest.mark.parametrize(("dtype", "near"), [(torch.float32, 2e-3), (torch.bfloat16, 3e-2)])
def test_values_and_gradients_are_those_of_full_logits(
    name: str, rows: int, dtype: torch.dtype, near: float
) -> None:
    ours = results(chosen(name), rows, dtype)
    theirs = results(
        lambda h, i, w: cross_entropy(h.float() @ w.float().T, i, reduction="none"), rows, dtype
    )
    for one, other in zip(ours, theirs, strict=True):
        assert (one.float() - other.float()).norm() <= near * other.float().norm() + 1e-6


@pytest.mark.parametrize("name", ["chunked", "linear_cross_entropy"])
def test_nothing_waits_for_the_device(name: str) -> None:
    losses = chosen(name)
    results(losses, 100, torch.bfloat16)
    torch.cuda.set_sync_debug_mode("error")
    try:
        results(losses, 100, torch.bfloat16)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_liger_waits_twice() -> None:
    """What its docstring says: when it no longer does, the documentation should say so."""
    losses = chosen("liger")
    results(losses, 100, torch.bfloat16)
    with torch.profiler.profile() as profile:
        results(losses, 100, torch.bfloat16)
    waits = [event for event in profile.events() if event.name == "aten::_local_scalar_dense"]
    assert len(waits) == 2
