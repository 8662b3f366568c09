"""Compiling what repeats: each decoder layer and each tower block, not the model around them.

One small program serves all layers (a second one the last, which leaves rows out), so compiling
takes seconds, and what changes from batch to batch (pictures, targets, boundaries) either stays
outside or is a dimension left open from the start.
"""

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn
from torch._dynamo.utils import counters


def compile_blocks(blocks: Iterable[nn.Module], backend: str = "inductor") -> None:
    """Compile modules in place, one by one; their weights keep their names.

    Args:
        blocks: modules that are called alike.
        backend: of ``torch.compile``.
    """
    settings: Any = torch._dynamo.config
    # Else the program of a layer without hooks would serve the last one, which has some.
    settings.skip_nnmodule_hook_guards = False
    # It cuts programs at DDP's buckets; a layer is small enough as it is.
    settings.optimize_ddp = False
    for block in blocks:
        block.compile(backend=backend)


def leave_open(tensor: Tensor, dimension: int = 0) -> Tensor:
    """Tell the compiler that a dimension changes from batch to batch, before it has seen it change.

    Sizes 0 and 1 are programs of their own to it, whatever is said here.
    """
    torch._dynamo.maybe_mark_dynamic(tensor, dimension)
    return tensor


def uncompiled() -> AbstractContextManager[None]:
    """Run compiled modules as they were written.

    For answers, whose every length would be another program, and for held-out losses, since FSDP's
    weights cannot be traced anew once they have gradients.
    """
    stance: AbstractContextManager[None] = torch.compiler.set_stance("force_eager")
    return stance


def programs() -> int:
    """How many programs this process has compiled; one that grows in mid-run costs its time."""
    return int(counters["stats"]["unique_graphs"])
