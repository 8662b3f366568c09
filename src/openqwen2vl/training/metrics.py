"""Loss per source over a global batch, summed over ranks."""

import torch
from torch import Tensor
from torchmetrics import Metric


class SourceLoss(Metric):  # type: ignore[misc]  # torchmetrics is read without its types
    """Sums of cross-entropy and of target tokens, per source of the mixture.

    The loss of a source is its sum over its targets; the loss of all is the sum of sums over the
    sum of targets, so that ranks and micro-batches need no weights.

    Args:
        num_sources: sources of the mixture.
    """

    full_state_update = False
    loss_sums: Tensor
    targets: Tensor

    def __init__(self, num_sources: int) -> None:
        super().__init__()
        zeros = torch.zeros(num_sources, dtype=torch.float64)
        self.add_state("loss_sums", zeros.clone(), dist_reduce_fx="sum")
        self.add_state("targets", zeros.clone(), dist_reduce_fx="sum")

    def update(self, losses: Tensor, sources: Tensor) -> None:
        """Add the losses of some targets.

        Args:
            losses: float (N,), cross-entropy of each target token.
            sources: int64 (N,), the source of each.
        """
        wide = losses.detach().to(torch.float64)
        self.loss_sums.index_add_(0, sources, wide)
        self.targets.index_add_(0, sources, torch.ones_like(wide))

    def compute(self) -> Tensor:
        """Give float64 (2, num_sources): sums of losses, numbers of targets, over all ranks."""
        return self.sums()

    def sums(self) -> Tensor:
        """Give what this rank alone has added up: float64 (2, num_sources)."""
        return torch.stack([self.loss_sums, self.targets])


def sum_over_ranks(values: Tensor) -> Tensor:
    """Add up over the ranks, in place, without making the host wait for the device.

    torchmetrics and Lightning both put a barrier before their sums.

    Args:
        values: of any shape, the same on all ranks.
    """
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values
