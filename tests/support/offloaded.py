"""FSDP's offload on a machine without a GPU: the host stands in for the device."""

import lightning.pytorch as pl
import torch

from openqwen2vl.training.strategy import ShardedStrategy


class HostAsDevice(pl.Callback):
    """Gives a CPU the two things that offloading asks of a GPU, both of which it has anyway.

    What is copied from the host to the device and back then stays where it is. The strategy, the
    step and the checkpoints are the real ones.
    """

    def __init__(self) -> None:
        # Host memory that a GPU can reach, and waiting for work that was queued.
        torch.Tensor.pin_memory = lambda self, *_, **__: self  # type: ignore[method-assign]
        torch.cpu.Stream.synchronize = lambda self: None  # type: ignore[attr-defined]
        ShardedStrategy._require_gpu = lambda self: None  # type: ignore[method-assign]
