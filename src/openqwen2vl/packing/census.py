"""The census of a corpus: which documents it holds and where each belongs, as arrays."""

import gc
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.corpora import Shard, shard_path
from openqwen2vl.packing.entries import shard_entries
from openqwen2vl.packing.plan import SPLITS, Selection

OUTSIDE = -1
"""The split of a document of another part; the others are places in ``SPLITS``."""


def identity(shard: str, key: str, uid: str) -> bytes:
    """Give 8 bytes that tell documents apart by shard, key and uid.

    Among 29 million documents two share them with a chance of 2 in 100,000.
    """
    text = f"{shard}\0{key}\0{uid}".encode(errors="surrogatepass")
    return hashlib.blake2b(text, digest_size=8).digest()


def sizes_mark(sizes: Sequence[int]) -> int:
    """Give a number below 2**63 that depends on the sizes of a document's images, in order."""
    return hash(tuple(sizes)) & (2**63 - 1)


@dataclass(frozen=True)
class CensusJob:
    """One raw shard to count, and the selections to tell its documents' splits by."""

    shard: Shard
    selections: tuple[Selection, ...]

    def __str__(self) -> str:
        return str(shard_path(self.shard))


@dataclass(frozen=True)
class Census:
    """The n documents of a raw shard, or of a corpus when several are joined.

    Attributes:
        identities: uint64 (n,), see ``identity``.
        sizes: int64 (n,), see ``sizes_mark``.
        keyed: bool (n,), False where an entry stands for the lost rest of a shard.
        splits: int8 (selections, n), places in ``SPLITS`` or ``OUTSIDE``.
        image_bytes: bytes of all images.
    """

    identities: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    keyed: NDArray[np.bool_]
    splits: NDArray[np.int8]
    image_bytes: int

    def __len__(self) -> int:
        return len(self.identities)


def take_census(job: CensusJob) -> Census:
    """Count the documents of one raw shard.

    Raises:
        ShardError: the shard went away.
    """
    with without_collector():
        return _count(job)


@contextmanager
def without_collector() -> Iterator[None]:
    """Keep Python from searching a shard's many small objects for cycles: they have none."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


def _count(job: CensusJob) -> Census:
    shard = shard_path(job.shard).stem
    digests: list[bytes] = []
    sizes: list[int] = []
    keyed: list[bool] = []
    splits: list[list[int]] = [[] for _ in job.selections]
    total = 0
    for key, uid, images in shard_entries(job.shard):
        digests.append(identity(shard, key, uid))
        lengths = [size for _, _, size in images]
        total += sum(lengths)
        sizes.append(sizes_mark(lengths))
        keyed.append(bool(key))
        for column, selection in zip(splits, job.selections, strict=True):
            # What is lost of a shard without a key is told in every part, as in `split_of`.
            split = selection.split(uid) if key else "train"
            column.append(OUTSIDE if split is None else SPLITS.index(split))
    return Census(
        np.frombuffer(b"".join(digests), np.uint64),
        np.array(sizes, np.int64),
        np.array(keyed, np.bool_),
        np.array(splits, np.int8).reshape(len(splits), len(digests)),
        total,
    )


def join_censuses(parts: Sequence[Census]) -> Census:
    """Lay the censuses of a corpus' shards end to end."""
    return Census(
        np.concatenate([part.identities for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.keyed for part in parts]),
        np.concatenate([part.splits for part in parts], axis=1),
        sum(part.image_bytes for part in parts),
    )
