"""Where one optimizer step ends and the next begins, and what all ranks decide there."""

from collections.abc import Callable

import lightning.pytorch as pl
import torch

from openqwen2vl.training.metrics import sum_over_ranks


def ends_step(trainer: pl.Trainer, batch_index: int) -> bool:
    """Tell whether this micro-batch was the last of its global batch.

    Micro-batches are counted from the run's step 0 (`Resumable` sees to it after a restart), so
    the index alone decides.
    """
    return (batch_index + 1) % trainer.accumulate_grad_batches == 0


class AnyRank:
    """Whether any rank says yes, asked by all of them at the end of every step.

    A GPU works behind the host, and to read an answer is to wait for it. So there the answer is
    that of the step before, which has come by then; on a CPU it is that of this step.
    """

    def __init__(self) -> None:
        self._sent: Callable[[], bool] | None = None

    def __call__(self, trainer: pl.Trainer, mine: bool) -> bool:
        """Say what this rank says, and give what any of them said.

        Args:
            trainer: of the run.
            mine: this rank's yes or no.
        """
        if trainer.world_size == 1:
            return mine
        device = trainer.strategy.root_device
        if device.type != "cuda":
            return bool(trainer.strategy.reduce_boolean_decision(mine, all=False))
        before, self._sent = self._sent, _send(mine, device)
        return before is not None and before()


def _send(mine: bool, device: torch.device) -> Callable[[], bool]:
    """Put a question to all ranks behind the work of the GPU; gives what waits for the answer."""
    votes = sum_over_ranks(torch.tensor([float(mine)]).to(device, non_blocking=True))
    told = torch.empty(1, pin_memory=True)
    told.copy_(votes, non_blocking=True)
    come = torch.cuda.Event()  # type: ignore[no-untyped-call]
    come.record(torch.cuda.current_stream(device))

    def answer() -> bool:
        come.synchronize()
        return bool(told.item() > 0)

    return answer
