"""Choices: which rows of the length index a folder of packs takes, and why others stay out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.rejects import REASONS, Reject
from openqwen2vl.packing.lengths import IndexFile, Lengths, reason_code
from openqwen2vl.packing.plan import SPLITS, Selection, Split, first_occurrences

OUTSIDE = -1
"""In ``Choice.split``: a row of another part."""
SHORTENED = -1
"""In ``Choice.reason``: the row's document goes in by another file, with fewer turns."""

_TOO_LONG = reason_code("too_long")
_TOO_MANY_IMAGES = reason_code("too_many_images")
_DUPLICATE = reason_code("duplicate_uid")


@dataclass(frozen=True)
class Choice:
    """What becomes of the rows of one index file; n rows, 26 bytes each.

    Attributes:
        file: where the rows are.
        lengths: int32 (n,), tokens with the image marks expanded.
        images: int32 (n,).
        image_bytes: int64 (n,), what the images take up in a tar.
        hashes: uint64 (n,).
        split: int8 (n,), place in ``plan.SPLITS``, or ``OUTSIDE``.
        reason: int8 (n,), 0 for a document to pack, else why it stays out or ``SHORTENED``.
        shortened: whether these are the shortened documents of the file before.
    """

    file: IndexFile
    lengths: NDArray[np.int32]
    images: NDArray[np.int32]
    image_bytes: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    split: NDArray[np.int8]
    reason: NDArray[np.int8]
    shortened: bool = False

    def kept(self, split: Split) -> NDArray[np.bool_]:
        """Mark the rows to pack into a split, bool (n,)."""
        kept: NDArray[np.bool_] = self._of(split) & (self.reason == 0)
        return kept

    def rejected(self, split: Split) -> NDArray[np.int64]:
        """Give the rows that stay out of a split for a reason."""
        return np.flatnonzero(self._of(split) & (self.reason > 0))

    def too_long(self) -> NDArray[np.int64]:
        """Give the rows that outgrow the context."""
        return np.flatnonzero((self.split != OUTSIDE) & (self.reason == _TOO_LONG))

    @property
    def outside(self) -> int:
        """How many rows belong to another part."""
        return int((self.split == OUTSIDE).sum())

    def _of(self, split: Split) -> NDArray[np.bool_]:
        mask: NDArray[np.bool_] = self.split == SPLITS.index(split)
        return mask


def choose(
    lengths: Lengths, spec: PackSpec, selection: Selection, max_images: int | None
) -> Choice:
    """Choose among the rows of one index file, each on its own.

    Raises:
        PackError: a document of more than 2**31 tokens.
    """
    held_out = lengths.validation < selection.validation
    low, high = selection.part
    # Written so that NaN, which stands for every part, is in each of them.
    outside = ~held_out & ((lengths.part < low) | (lengths.part >= high))
    split = np.where(outside, OUTSIDE, held_out).astype(np.int8)
    expanded = lengths.num_ids + lengths.num_images.astype(np.int64) * (spec.tokens_per_image - 1)
    if expanded.max(initial=0) > np.iinfo(np.int32).max:
        raise PackError(f"{lengths.file.stamp.path} has a document of {expanded.max()} tokens")
    reason = lengths.reason.copy()
    if max_images is not None:
        reason[(lengths.reason == 0) & (lengths.num_images > max_images)] = _TOO_MANY_IMAGES
    reason[(lengths.reason == 0) & (expanded > spec.context)] = _TOO_LONG
    return Choice(
        lengths.file,
        expanded.astype(np.int32),
        lengths.num_images,
        lengths.image_bytes,
        lengths.hashes,
        split,
        reason,
    )


def leave_out_duplicates(choices: Sequence[Choice]) -> None:
    """Give the documents that share a uid with an earlier one their reason, in place."""
    # Documents of one uid are of one split, so both can be looked at together.
    usable = [np.flatnonzero((c.split != OUTSIDE) & (c.reason == 0)) for c in choices]
    firsts = first_occurrences([c.hashes[rows] for c, rows in zip(choices, usable, strict=True)])
    for choice, rows, first in zip(choices, usable, firsts, strict=True):
        choice.reason[rows[~first]] = _DUPLICATE


def read_rejects(
    choice: Choice, split: Split, source: str, context: int, max_images: int | None
) -> Iterator[Reject]:
    """Read what stays out of a split, in the order of the rows.

    Args:
        choice: of one index file.
        split: the split that would have had them.
        source: name of the corpus.
        context: tokens in a pack.
        max_images: images in a pack, at most.

    Raises:
        ShardError: the index file went away.
    """
    rows = choice.rejected(split)
    if not len(rows):
        return
    table = choice.file.read(["key", "uid", "detail"]).take(rows)
    columns = (table[name].to_pylist() for name in ("key", "uid", "detail"))
    for row, key, uid, detail in zip(rows.tolist(), *columns, strict=True):
        reason = REASONS[choice.reason[row] - 1]
        if detail is None:
            detail = {
                "too_long": f"{choice.lengths[row]} tokens, the context holds {context}",
                "too_many_images": f"{choice.images[row]} images, a pack holds {max_images}",
                "duplicate_uid": "an earlier document has this uid",
            }[reason]
        yield Reject(source, choice.file.shard, key, uid, reason, detail)
