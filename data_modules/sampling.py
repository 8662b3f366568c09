"""Which packs one rank reads next: global batches cut into micro-batches."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch.utils.data import Sampler

from openqwen2vl.packing.balance import balanced, place
from openqwen2vl.packing.budget import accumulation
from openqwen2vl.packing.mixture import Mixture
from openqwen2vl.packing.order import Order, PackKey


@dataclass(frozen=True, kw_only=True)
class MicroBatch:
    """What one loader call reads: all that a worker needs to know, so that it keeps no state.

    Attributes:
        step: the global batch it is part of.
        slot: number of packs in the global batch's micro-batches before this one.
        keys: its packs.
        global_targets: target tokens of the whole global batch, by the index: the loss's divisor.
        ghosts: how many of the last rows only keep ranks in step and count for nothing.
    """

    step: int
    slot: int
    keys: tuple[PackKey, ...]
    global_targets: int
    ghosts: int = 0


class StepBatches(Sampler[MicroBatch]):
    """This rank's micro-batches, global batch by global batch, from ``start``.

    Swapping ranks for accumulation gives the same micro-batches, so the loss does not move. They
    are balanced by images, the tower's load; see ``packing.balance``.
    """

    def __init__(
        self, order: Order, mixture: Mixture, start: int, micro_batch: int, world: tuple[int, int]
    ) -> None:
        self.order, self.mixture, self.start = order, mixture, start
        self.micro_batch = micro_batch
        self.rank, self.ranks = world
        self.accumulation = accumulation(order.global_batch, micro_batch, self.ranks)

    def __len__(self) -> int:
        """Count micro-batches from step 0: Lightning adds those already run when it resumes."""
        return self.order.steps * self.accumulation

    def __iter__(self) -> Iterator[MicroBatch]:
        for step in range(self.start, self.order.steps):
            keys = self.order.packs(step)
            folders = [self.mixture.folders[key.grid][key.source] for key in keys]
            pairs = list(zip(folders, keys, strict=True))
            targets = sum(int(folder.targets[key.pack]) for folder, key in pairs)
            images = [int(folder.images[key.pack]) for folder, key in pairs]
            groups = balanced(images, self.micro_batch)
            for turn in range(self.accumulation):
                number = place(turn, self.rank, self.ranks)
                yield MicroBatch(
                    step=step,
                    slot=number * self.micro_batch,
                    keys=tuple(keys[pack] for pack in groups[number]),
                    global_targets=targets,
                )


class ValidationBatches(Sampler[MicroBatch]):
    """This rank's share of the held-out packs; every rank has equally many micro-batches."""

    def __init__(
        self, mixture: Mixture, grid: int, micro_batch: int, world: tuple[int, int]
    ) -> None:
        self.rank, self.ranks = world
        self.micro_batch = micro_batch
        self.keys = [
            PackKey(grid, source, 0, pack)
            for source, folder in enumerate(mixture.folders[grid])
            for pack in range(len(folder))
        ]
        self.targets = sum(int(folder.targets.sum()) for folder in mixture.folders[grid])

    def __len__(self) -> int:
        return -(-len(self.keys) // (self.micro_batch * self.ranks))

    def __iter__(self) -> Iterator[MicroBatch]:
        for turn in range(len(self)):
            first = (turn * self.ranks + self.rank) * self.micro_batch
            keys = self.keys[first : first + self.micro_batch]
            ghosts = self.micro_batch - len(keys)
            keys = [*keys, *[self.keys[0]] * ghosts]
            yield MicroBatch(
                step=0, slot=first, keys=tuple(keys), global_targets=self.targets, ghosts=ghosts
            )
