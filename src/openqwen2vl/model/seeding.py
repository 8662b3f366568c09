"""Random numbers from a seed, with the caller's own random state left as it was."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int, device: torch.device | None = None) -> Iterator[None]:
    """Draw the block's random numbers from ``seed`` and restore the state afterwards.

    Only the CPU's generator and that of ``device`` are touched: ``torch.manual_seed`` would also
    reset every other one, which a run that builds a second model half-way must not notice.

    Args:
        seed: the same seed gives the same numbers in every process.
        device: a CUDA device that draws, too.
    """
    on_gpu = device is not None and device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if on_gpu else []):
        torch.default_generator.manual_seed(seed)
        if on_gpu:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
