"""Plans: which documents go to which split, and which of them share a pack."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.packers import AUTO, pack

Split = Literal["train", "validation"]
SPLITS: tuple[Split, Split] = ("train", "validation")


def uid_fraction(uid: str, salt: str) -> float:
    """Give a number in ``[0, 1)`` that depends on the uid alone; salts give independent ones."""
    digest = hashlib.blake2b(
        uid.encode(errors="surrogatepass"), digest_size=8, person=salt.encode()
    ).digest()
    # 53 bits: all 64 could round up to 1.0.
    return (int.from_bytes(digest) >> 11) * 2.0**-53


def uid_hash(document: Document) -> int:
    """Give the 64-bit identity of a document, by which sources are told to be disjoint."""
    return name_hash(document.source, document.shard, document.key, document.uid)


def name_hash(source: str, shard: str, key: str, uid: str) -> int:
    """Give ``uid_hash`` of the document of these names.

    A ``uid`` that only repeats shard and key is common to many corpora (they all start at
    ``00000/000000000``), so the source's name goes in with it.
    """
    if uid == f"{shard}/{key}":
        uid = f"{source}/{uid}"
    digest = hashlib.blake2b(uid.encode(errors="surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest)


@dataclass(frozen=True)
class Selection:
    """Which documents a folder of packs covers.

    Validation documents are chosen first and from the whole corpus, so that they are the same
    whatever the part and the grid.

    Attributes:
        part: the range ``[lo, hi)`` of training documents.
        validation: the share of all documents that are kept for validation.

    Raises:
        PackError: an empty or impossible range or share.
    """

    part: tuple[float, float] = (0.0, 1.0)
    validation: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.part
        if not 0.0 <= low < high <= 1.0:
            raise PackError(f"part is {low}:{high}; expected 0 <= lo < hi <= 1, such as 0.0:0.9")
        if not 0.0 <= self.validation < 1.0:
            raise PackError(f"validation is {self.validation}; expected a share from 0 to below 1")

    def split(self, uid: str) -> Split | None:
        """Say where a document belongs; None means another part."""
        if self.validation and uid_fraction(uid, "validation") < self.validation:
            return "validation"
        low, high = self.part
        if (low, high) == (0.0, 1.0) or low <= uid_fraction(uid, "part") < high:
            return "train"
        return None

    def split_of(self, item: Document | Reject) -> Split | None:
        """As ``split``; what is lost of a shard without a key is told in every part."""
        if isinstance(item, Reject) and not item.key:
            return "train"
        return self.split(item.uid)


WHOLE = Selection()
"""Every document, none kept for validation."""


def parse_part(text: str) -> tuple[float, float]:
    """Read ``lo:hi``.

    Raises:
        PackError: the text is not two numbers with a colon.
    """
    try:
        low, high = (float(number) for number in str(text).split(":"))
    except ValueError as error:
        raise PackError(f"part is '{text}'; expected lo:hi, such as 0.0:0.9") from error
    return low, high


Row = tuple[int, int]
"""A document: number of its raw shard, row in that shard's scan."""


@dataclass(frozen=True)
class ShardPlan:
    """What goes into one packed shard.

    Attributes:
        first: number of its first pack.
        packs: for each pack its documents.
    """

    first: int
    packs: tuple[tuple[Row, ...], ...]


@dataclass(frozen=True)
class Plan:
    """How a corpus is laid into packs.

    Attributes:
        shards: the packed shards in order.
        packers: how many windows each packer laid out, by name.
    """

    shards: list[ShardPlan]
    packers: dict[str, int]


def plan_packs(
    lengths: Sequence[NDArray[np.int32]],
    images: Sequence[NDArray[np.int32]],
    kept: Sequence[NDArray[np.bool_]],
    limits: Limits,
    *,
    window: int,
    packs_per_shard: int,
    packer: str = AUTO,
) -> Plan:
    """Lay the documents of a corpus into packs, a window of raw shards at a time.

    The same input always gives the same plan.

    Args:
        lengths: per raw shard, the expanded length of each document.
        images: per raw shard, the images of each document.
        kept: per raw shard, which documents are to be packed.
        limits: what a pack holds.
        window: documents in a window, at least; whole raw shards only.
        packs_per_shard: packs in a packed shard, at most.
        packer: one of ``packers.PACKERS``; ``auto`` chooses anew for each window.

    Raises:
        PackError: a document that no pack can hold, or a packer that cannot do this.
        UserError: what the packer needs is not installed.
    """
    shards: list[ShardPlan] = []
    packers: Counter[str] = Counter()
    first = 0
    for rows in _windows(kept, window):
        used, bins = pack(packer, _gathered(lengths, rows), _gathered(images, rows), limits)
        packers[used] += 1
        num_shards = -(-len(bins) // packs_per_shard)
        bounds = [len(bins) * i // num_shards for i in range(num_shards + 1)]
        for start, stop in pairwise(bounds):
            packs = tuple(tuple(rows[i] for i in members) for members in bins[start:stop])
            shards.append(ShardPlan(first, packs))
            first += len(packs)
    return Plan(shards, dict(sorted(packers.items())))


def _gathered(values: Sequence[NDArray[np.int32]], rows: Sequence[Row]) -> list[int]:
    return [int(values[shard][row]) for shard, row in rows]


def _windows(kept: Sequence[NDArray[np.bool_]], window: int) -> list[list[Row]]:
    windows: list[list[Row]] = []
    rows: list[Row] = []
    for shard, mask in enumerate(kept):
        rows.extend((shard, row) for row in np.flatnonzero(mask).tolist())
        if len(rows) >= window:
            windows.append(rows)
            rows = []
    return [*windows, rows] if rows else windows


def first_occurrences(hashes: Sequence[NDArray[np.uint64]]) -> list[NDArray[np.bool_]]:
    """Mark in each shard the documents whose hash no earlier document has."""
    joined = np.concatenate(hashes) if hashes else np.empty(0, np.uint64)
    first = np.zeros(len(joined), bool)
    first[np.unique(joined, return_index=True)[1]] = True
    return np.split(first, np.cumsum([len(h) for h in hashes])[:-1]) if hashes else []
