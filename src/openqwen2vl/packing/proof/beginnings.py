"""Documents that were shortened: whether each is the beginning of the corpus' one."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.corpora import Shard, read_shard, shard_path
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.proof.census import sizes_marks
from openqwen2vl.packing.proof.entries import num_turns
from openqwen2vl.packing.proof.faults import Faults


@dataclass(frozen=True)
class Packed:
    """Shortened documents as they are in packs; n of them.

    Attributes:
        entries: int64 (n,), number of each one's entry: in the corpus, or in one raw shard.
        turns: int32 (n,), see ``entries.num_turns``.
        images: int64 (n,), how many.
        sizes: uint64 (n,), see ``census.sizes_marks``.
    """

    entries: NDArray[np.int64]
    turns: NDArray[np.int32]
    images: NDArray[np.int64]
    sizes: NDArray[np.uint64]


@dataclass(frozen=True)
class BeginningsJob:
    """The shortened documents of one raw shard, by rising entries, and how the shard is read."""

    shard: Shard
    rules: InterleavedRules
    packed: Packed

    def __str__(self) -> str:
        return str(shard_path(self.shard))


def check_shard(job: BeginningsJob) -> Faults:
    """Compare the shortened documents of one raw shard with the whole ones.

    Raises:
        ShardError: the shard went away.
    """
    faults, before = Faults(), 0
    items = read_shard(job.shard, "", job.rules)
    columns = (job.packed.entries, job.packed.turns, job.packed.images, job.packed.sizes)
    for entry, turns, images, size in zip(*(c.tolist() for c in columns), strict=True):
        item = next(islice(items, entry - before, None), None)
        before = entry + 1
        why = _difference(item, turns, images, size)
        if why and item is not None:
            faults.add("shortened", f"{shard_path(job.shard).stem}/{item.key} {why}")
    return faults


def _difference(item: Document | Reject | None, turns: int, images: int, size: int) -> str | None:
    if not isinstance(item, Document):
        return "is told to be shortened and cannot be used"
    whole = num_turns(item)
    if not turns < whole:
        return f"is told to be shortened and has {turns} turns of {whole}"
    kept = item.turns[: len(item.turns) - (whole - turns)]
    if not kept or kept[-1].role != "assistant":
        return f"was cut to {turns} turns of {whole}, which do not end with an answer"
    there = item.images[: sum(turn.num_images for turn in kept)]
    sizes = np.array([image.size for image in there], np.int64)
    if len(there) != images or sizes_marks(np.array([images]), sizes)[0] != size:
        return f"was cut to {turns} turns of {whole}, whose images are others than in its pack"
    return None


def check_beginnings(
    shards: Sequence[Shard],
    rules: InterleavedRules,
    starts: NDArray[np.int64],
    packed: Packed,
    mapper: Mapper,
) -> Faults:
    """Compare shortened documents with the corpus, turns and sizes of images.

    Args:
        shards: of the corpus.
        rules: which interleaved documents were taken.
        starts: int64 (shards + 1,), bounds of the shards' entries in the corpus.
        packed: the documents, by their entries in the corpus.
        mapper: runs a function over shards, results in order.
    """
    order = np.argsort(packed.entries, kind="stable")
    bounds = np.searchsorted(packed.entries[order], starts).tolist()
    jobs = []
    for number, shard in enumerate(shards):
        mine = order[bounds[number] : bounds[number + 1]]
        if len(mine):
            columns = (packed.turns[mine], packed.images[mine], packed.sizes[mine])
            found = Packed(packed.entries[mine] - starts[number], *columns)
            jobs.append(BeginningsJob(shard, rules, found))
    faults = Faults()
    for part in mapper(check_shard, jobs):
        faults.merge(part)
    return faults
