"""Layouts: the plan of a corpus, a window at a time and in arrays, for the writers of shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.engine.local import Mapper
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.choose import Choice
from openqwen2vl.packing.plan import ShardPlan, Split, plan_packs


@dataclass(frozen=True)
class Layout:
    """What goes into one packed shard; d documents in p packs.

    Attributes:
        first: number of its first pack.
        files: int32 (d,), number of the index file that each document is in.
        rows: int32 (d,), its row there.
        starts: int32 (p + 1,), bounds of the packs' documents.
    """

    first: int
    files: NDArray[np.int32]
    rows: NDArray[np.int32]
    starts: NDArray[np.int32]


@dataclass(frozen=True)
class WindowJob:
    """One window to plan: index files that follow each other.

    Attributes:
        number: of the window.
        files: numbers of the index files.
        rows: per file, int32, the rows to pack.
        lengths: per file, int32, their tokens.
        images: per file, int32, their images.
        limits: what a pack holds.
        packs_per_shard: packs in a packed shard, at most.
        packer: one of ``packers.PACKERS``.
    """

    number: int
    files: range
    rows: list[NDArray[np.int32]]
    lengths: list[NDArray[np.int32]]
    images: list[NDArray[np.int32]]
    limits: Limits
    packs_per_shard: int
    packer: str

    def __str__(self) -> str:
        return f"window {self.number}"


@dataclass(frozen=True)
class Window:
    """A window's packed shards, their first packs counted from the window's own, and its packer."""

    layouts: list[Layout]
    packer: str

    @property
    def packs(self) -> int:
        """Packs in all of its shards."""
        return sum(len(layout.starts) - 1 for layout in self.layouts)

    @property
    def documents(self) -> int:
        """Documents in all of its packs."""
        return sum(len(layout.rows) for layout in self.layouts)


def plan_window(job: WindowJob) -> Window:
    """Lay one window into packs; depends on the job alone.

    Raises:
        PackError: a document that no pack can hold, or a packer that cannot do this.
        UserError: what the packer needs is not installed.
    """
    plan = plan_packs(
        job.lengths,
        job.images,
        [np.ones(len(rows), bool) for rows in job.rows],
        job.limits,
        window=sum(map(len, job.rows)),
        packs_per_shard=job.packs_per_shard,
        packer=job.packer,
    )
    (packer,) = plan.packers
    return Window([_layout(shard, job) for shard in plan.shards], packer)


def _layout(shard: ShardPlan, job: WindowJob) -> Layout:
    pairs = np.array(list(chain.from_iterable(shard.packs)), np.int32)
    sizes = [len(pack) for pack in shard.packs]
    bounds = np.cumsum([0, *map(len, job.rows)])
    rows = np.concatenate(job.rows)[bounds[pairs[:, 0]] + pairs[:, 1]]
    files = pairs[:, 0] + np.int32(job.files.start)
    return Layout(shard.first, files, rows, np.cumsum([0, *sizes]).astype(np.int32))


def plan_windows(
    choices: Sequence[Choice],
    split: Split,
    limits: Limits,
    mapper: Mapper,
    *,
    window: int,
    packs_per_shard: int,
    packer: str,
) -> list[Window]:
    """Lay the documents of a split into packs, the windows apart from each other.

    The result is that of ``plan_packs`` over the whole corpus, whatever the mapper.

    Args:
        choices: of the index files, in order.
        split: which documents to lay out.
        limits: what a pack holds.
        mapper: runs a function over windows, results in order.
        window: documents in a window, at least; whole index files only.
        packs_per_shard: packs in a packed shard, at most.
        packer: one of ``packers.PACKERS``.

    Returns:
        The windows, with packs counted through the whole split.

    Raises:
        PackError: as of ``plan_window``.
        UserError: as of ``plan_window``.
    """
    jobs = []
    for number, files in enumerate(_windows([int(c.kept(split).sum()) for c in choices], window)):
        kept = [np.flatnonzero(choices[f].kept(split)).astype(np.int32) for f in files]
        jobs.append(
            WindowJob(
                number,
                files,
                kept,
                [choices[f].lengths[rows] for f, rows in zip(files, kept, strict=True)],
                [choices[f].images[rows] for f, rows in zip(files, kept, strict=True)],
                limits,
                packs_per_shard,
                packer,
            )
        )
    windows, first = [], 0
    for found in mapper(plan_window, jobs):
        layouts = [Layout(first + x.first, x.files, x.rows, x.starts) for x in found.layouts]
        windows.append(Window(layouts, found.packer))
        first += found.packs
    return windows


def _windows(counts: Sequence[int], window: int) -> list[range]:
    """Cut the index files into runs with enough documents; the last may have fewer."""
    windows, first, documents = [], 0, 0
    for number, count in enumerate(counts):
        documents += count
        if documents >= window:
            windows.append(range(first, number + 1))
            first, documents = number + 1, 0
    return [*windows, range(first, len(counts))] if documents else windows
