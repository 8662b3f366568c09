"""The census of a corpus: which documents it holds and where each belongs, as arrays."""

import gc
from array import array
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.corpora import Shard, shard_path
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules
from openqwen2vl.packing.plan import SPLITS, WHOLE, Selection, uid_fraction
from openqwen2vl.packing.proof.entries import Listed, list_shard

OUTSIDE = -1
"""The split of a document of another part; the others are places in ``SPLITS``."""

_TRAIN = SPLITS.index("train")


def identity(shard: str, key: str, uid: str) -> bytes:
    """Give 8 bytes that tell documents apart by shard, key and uid.

    Among 29 million documents two share them with a chance of 2 in 100,000.
    """
    return blake2b(f"{shard}\0{key}\0{uid}".encode(errors="surrogatepass"), digest_size=8).digest()


def identities(names: Iterator[tuple[str, str, str]]) -> NDArray[np.uint64]:
    """Give the identities of many documents, uint64 (n,)."""
    return np.frombuffer(b"".join([identity(*name) for name in names]), np.uint64)


def sizes_marks(counts: NDArray[np.int64], sizes: NDArray[np.int64]) -> NDArray[np.uint64]:
    """Give each document a number that depends on the sizes of its images, in order.

    Args:
        counts: int64 (n,), images of each document.
        sizes: int64 (images,), bytes of each image.

    Returns:
        uint64 (n,); 0 for a document without images.
    """
    ends = np.cumsum(counts)
    within = (np.arange(len(sizes)) - np.repeat(ends - counts, counts)).astype(np.uint64)
    # Sums of well mixed numbers, each of a size and its place [finaliser of SplitMix64].
    mixed = sizes.astype(np.uint64) + (within + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    before = np.zeros(len(sizes) + 1, np.uint64)
    np.cumsum(mixed ^ (mixed >> np.uint64(31)), out=before[1:])
    marks: NDArray[np.uint64] = before[ends] - before[ends - counts]
    return marks


def text_marks(
    texts: Iterable[tuple[Sequence[int], Iterable[Sequence[int]]]],
) -> NDArray[np.uint64]:
    """Give each document a number that depends on its ids and on what it asks for.

    Args:
        texts: of each document its compact ids and its target spans, ``start`` and ``stop``
            counted from its first id.

    Returns:
        uint64 (n,); two documents share one by chance once in 2**64.

    Raises:
        TypeError: an id or an edge that is no whole number.
        OverflowError: one of more than 32 bits.
    """
    digests = []
    for ids, targets in texts:
        edges = array("i", chain.from_iterable(targets))
        told = array("i", [len(ids)]) + array("i", ids) + edges
        digests.append(blake2b(told, digest_size=8).digest())
    return np.frombuffer(b"".join(digests), np.uint64)


@dataclass(frozen=True)
class CensusJob:
    """One raw shard to count.

    Attributes:
        shard: from ``corpora.open_corpus``.
        selections: tell the documents' splits.
        rules: which interleaved documents were taken.
        places: whether to keep where the images lie.
    """

    shard: Shard
    selections: tuple[Selection, ...]
    rules: InterleavedRules = DEFAULT_RULES
    places: bool = False

    def __str__(self) -> str:
        return str(shard_path(self.shard))


@dataclass(frozen=True)
class Places:
    """Where the images of a raw shard lie in its file.

    Attributes:
        starts: int64 (n + 1,), bounds of each entry's images in the columns below.
        offsets: int64 (images,).
        sizes: int64 (images,).
    """

    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


@dataclass(frozen=True)
class Census:
    """The n documents of a raw shard, or of a corpus when several are joined.

    Attributes:
        identities: uint64 (n,), see ``identity``.
        sizes: uint64 (n,), see ``sizes_marks``.
        turns: int32 (n,), see ``entries.num_turns``.
        splits: int8 (selections, n), places in ``SPLITS`` or ``OUTSIDE``.
        places: of each raw shard; None where they were not asked for or an image lies elsewhere.
    """

    identities: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    turns: NDArray[np.int32]
    splits: NDArray[np.int8]
    places: tuple[Places | None, ...]

    def __len__(self) -> int:
        return len(self.identities)


def take_census(job: CensusJob) -> Census:
    """Count the documents of one raw shard.

    Raises:
        ShardError: the shard went away.
    """
    with without_collector():
        listed = list_shard(job.shard, job.rules)
        shard = shard_path(job.shard).stem
        named = ((shard, key, uid) for key, uid in zip(listed.keys, listed.uids, strict=True))
        places = None
        if job.places and listed.offsets is not None:
            starts = np.concatenate([[0], np.cumsum(listed.counts)])
            places = Places(starts, listed.offsets, listed.sizes)
        return Census(
            identities(named),
            sizes_marks(listed.counts, listed.sizes),
            listed.turns,
            _splits(listed, job.selections),
            (places,),
        )


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


def _splits(listed: Listed, selections: Sequence[Selection]) -> NDArray[np.int8]:
    """Give the splits of a shard's entries, int8 (selections, n), as ``Selection.split_of``."""
    # What is lost of a shard without a key is told in every part.
    keyed = np.array([bool(key) for key in listed.keys], bool)
    salts = [
        *(["part"] if any(s.part != WHOLE.part for s in selections) else []),
        *(["validation"] if any(s.validation for s in selections) else []),
    ]
    fractions = {s: np.array([uid_fraction(uid, s) for uid in listed.uids]) for s in salts}
    splits = np.full((len(selections), len(keyed)), _TRAIN, np.int8)
    for row, selection in zip(splits, selections, strict=True):
        if selection.part != WHOLE.part:
            low, high = selection.part
            row[(fractions["part"] < low) | (fractions["part"] >= high)] = OUTSIDE
        if selection.validation:
            row[fractions["validation"] < selection.validation] = SPLITS.index("validation")
        row[~keyed] = _TRAIN
    return splits


def join_censuses(parts: Sequence[Census]) -> Census:
    """Lay the censuses of a corpus' shards end to end."""
    return Census(
        np.concatenate([part.identities for part in parts]),
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.turns for part in parts]),
        np.concatenate([part.splits for part in parts], axis=1),
        tuple(places for part in parts for places in part.places),
    )
