"""The pictures that selected samples show: one of each pair, all of each conversation."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openqwen2vl.curation.duplicates.selected import Mask, Tables


@dataclass(frozen=True)
class Shown:
    """The p pictures of samples: the first one of each row, then those that conversations add.

    Attributes:
        rows: int64 (p,), the sample's number over all selections.
        high: uint64 (p,), the first 64 bits of the sha256.
        low: uint64 (p,), the next 64.
        hashed: (p,), whether there is a sha256.
        hashes: uint64 (p,), perceptual hashes.
        compared: (p,), whether there is one that means something.
    """

    rows: NDArray[np.int64]
    high: NDArray[np.uint64]
    low: NDArray[np.uint64]
    hashed: NDArray[np.bool_]
    hashes: NDArray[np.uint64]
    compared: NDArray[np.bool_]

    @classmethod
    def of(cls, tables: Tables, max_blank: float) -> Self:
        """Read them all."""
        high, low, hashed = tables.digests()
        hashes, there = tables.numbers("phash")
        compared = there & ~tables.above("blank_share", max_blank)
        parts = [(np.arange(tables.rows), high, low, hashed, hashes, compared)]
        for rows, digests, looks, clear in _further(tables, max_blank):
            parts.append((rows, *digests, digests.any(axis=0), looks, clear))
        if len(parts) == 1:
            return cls(*parts[0])
        return cls(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _further(
    tables: Tables, max_blank: float
) -> Iterator[tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.uint64], Mask]]:
    """Give the pictures of conversations after the first ones, some at a time.

    Args:
        tables: the selections.
        max_blank: the look of a blanker picture is not compared.

    Yields:
        The row of each picture, int64 (p,); the first 128 bits of its sha256, uint64 (2, p), and
        its perceptual hash, uint64 (p,), zeros where there are none; whether to compare the hash.
    """
    for number, names in enumerate(tables.columns):
        known = [n for n in ("more_sha256", "more_phash", "more_blank_share") if n in names]
        if not {"more_sha256", "more_phash"} & set(known):
            continue
        for first, batch in tables.batches(number, known):
            joined = {name: _joined(batch[name]) for name in known}
            sizes = {"more_sha256": 32, "more_phash": 8}
            name = next(name for name in sizes if name in known)
            counts = np.array([len(v or b"") // sizes[name] for v in batch[name].to_pylist()])
            rows = first + np.repeat(np.arange(len(counts)), counts)
            digests = np.zeros((len(rows), 4), np.uint64)
            if "more_sha256" in known:
                digests = np.frombuffer(joined["more_sha256"], np.uint64).reshape(-1, 4)
            hashes = np.frombuffer(joined.get("more_phash", bytes(8 * len(rows))), "<u8")
            shares = np.frombuffer(joined.get("more_blank_share", bytes(4 * len(rows))), "<f4")
            compared = (shares <= max_blank) & ("more_phash" in known)
            yield rows, digests[:, :2].T, hashes.astype(np.uint64), compared


def _joined(column: pa.Array) -> bytes:
    return b"".join(value or b"" for value in column.to_pylist())
