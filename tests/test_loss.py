"""The chunked loss equals the one over full logits, in value and gradient."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import cross_entropy

from openqwen2vl.training.loss import target_losses


def problem(rows: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(rows, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    head = torch.randn(50, 8, generator=generator, dtype=torch.float64, requires_grad=True)
    return hidden, torch.randint(0, 50, (rows,), generator=generator), head


@given(rows=st.integers(1, 40), chunk=st.integers(1, 50), seed=st.integers(0, 5))
@settings(max_examples=40, deadline=None)
def test_values_and_gradients_are_those_of_full_logits(rows: int, chunk: int, seed: int) -> None:
    weights = torch.linspace(0.5, 2, rows, dtype=torch.float64)
    hidden, ids, head = problem(rows, seed)
    ours = target_losses(hidden, ids, head, chunk)
    (ours * weights).sum().backward()
    mine = (hidden.grad, head.grad)
    hidden, ids, head = problem(rows, seed)
    theirs = cross_entropy(hidden @ head.T, ids, reduction="none")
    (theirs * weights).sum().backward()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(mine, (hidden.grad, head.grad))


def test_no_target_still_leaves_a_graph() -> None:
    hidden, ids, head = problem(0)
    losses = target_losses(hidden, ids, head)
    losses.sum().backward()
    assert losses.shape == (0,)
    assert head.grad is not None
    assert not head.grad.any()


def test_narrow_inputs_give_float32_losses_near_the_wide_ones() -> None:
    hidden, ids, head = problem(20)
    narrow = target_losses(hidden.bfloat16(), ids, head.bfloat16())
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(
        narrow.double(), target_losses(hidden, ids, head), rtol=0.05, atol=0.05
    )


def test_frozen_heads_and_frozen_rows_are_left_alone() -> None:
    hidden, ids, head = problem(5)
    target_losses(hidden, ids, head.detach()).sum().backward()
    assert hidden.grad is not None
    hidden, ids, head = problem(5)
    target_losses(hidden.detach(), ids, head).sum().backward()
    assert head.grad is not None


def test_only_a_chunk_of_logits_is_ever_held() -> None:
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.ndim == 2 and result.shape[1] == 50:
                largest = max(largest, result.shape[0])
            return result

    hidden, ids, head = problem(64)
    with Watch():
        target_losses(hidden, ids, head, chunk=16).sum().backward()
    assert largest == 16


def test_rows_and_targets_must_be_as_many() -> None:
    hidden, ids, head = problem(5)
    with pytest.raises(ValueError, match="5 hidden rows meet 4 targets"):
        target_losses(hidden, ids[:4], head)
