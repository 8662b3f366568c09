"""A callback that writes down every collective of one optimizer step of a real run."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

# PyTorch's operators by what they do, and which of their arguments holds the whole tensor.
KINDS = {
    "_allgather_base_": ("all_gather", 0),
    "allgather_": ("all_gather", 0),
    "_reduce_scatter_base_": ("reduce_scatter", 1),
    "allreduce_": ("all_reduce", 0),
    "broadcast_": ("broadcast", 0),
}
# Sums for the log, the norm, flags: a few numbers each.
SMALL = 256


class _Counter(TorchDispatchMode):
    """Adds up calls and bytes by kind while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func.namespace == "c10d":
            name = func._schema.name.removeprefix("c10d::")
            kind, position = KINDS.get(name, (name, 0))
            whole = tree_leaves(args[position])
            size = sum(leaf.nbytes for leaf in whole if isinstance(leaf, torch.Tensor))
            kind = f"small_{kind}" if size <= SMALL else kind
            self.calls[kind] += 1
            self.bytes[kind] += size
        return func(*args, **(kwargs or {}))


class CountCollectives(pl.Callback):
    """Counts those of the second global batch and writes them when the run ends.

    The first one is left out: FSDP sets itself up in it.
    """

    def __init__(self, out: str) -> None:
        self.out = Path(out)
        self._counter = _Counter()
        self._open = False

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if batch_idx == trainer.accumulate_grad_batches:
            self._counter.__enter__()
            self._open = True

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self._open and batch_idx == 2 * trainer.accumulate_grad_batches - 1:
            self._counter.__exit__(None, None, None)
            self._open = False
            counted = {"calls": self._counter.calls, "bytes": self._counter.bytes}
            (self.out / f"rank{trainer.global_rank}.json").write_text(json.dumps(counted))
