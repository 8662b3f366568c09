import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.training.metrics import SourceLoss

TARGETS = st.lists(st.tuples(st.floats(0, 20, width=32), st.integers(0, 2)), max_size=40)


def measure(targets: list[tuple[float, int]], pieces: int) -> torch.Tensor:
    """Give the metric over targets that arrive in this many micro-batches."""
    metric = SourceLoss(3)
    for piece in range(pieces):
        part = targets[piece::pieces]
        losses = torch.tensor([loss for loss, _ in part], dtype=torch.float32)
        metric.update(losses, torch.tensor([source for _, source in part], dtype=torch.int64))
    return metric.compute()


@given(targets=TARGETS, pieces=st.integers(1, 5))
def test_sums_and_counts_are_per_source_however_the_batch_is_cut(
    targets: list[tuple[float, int]], pieces: int
) -> None:
    found = measure(targets, pieces)
    assert found.dtype == torch.float64
    for source in range(3):
        own = [loss for loss, s in targets if s == source]
        assert found[0, source].item() == pytest.approx(sum(own), rel=1e-9)
        assert found[1, source].item() == len(own)


def test_reset_forgets_everything() -> None:
    metric = SourceLoss(2)
    metric.update(torch.ones(3), torch.tensor([0, 1, 1]))
    metric.reset()
    metric.update(torch.ones(1), torch.tensor([0]))
    assert metric.compute().tolist() == [[1, 0], [1, 0]]


def test_no_gradient_flows_into_the_log() -> None:
    metric = SourceLoss(1)
    metric.update(torch.ones(2, requires_grad=True), torch.zeros(2, dtype=torch.int64))
    assert not metric.compute().requires_grad


def test_millions_of_small_losses_are_summed_without_loss_of_digits() -> None:
    # In float32 a running sum of 2^24 stops growing by 1.
    metric = SourceLoss(1)
    metric.update(torch.tensor([2.0**24]), torch.zeros(1, dtype=torch.int64))
    for _ in range(8):
        metric.update(torch.ones(1), torch.zeros(1, dtype=torch.int64))
    assert metric.compute()[0, 0].item() == 2**24 + 8
