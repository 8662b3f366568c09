"""Lists of uids as DataComp and DFN publish them: ``.npy``, the 128 bits of a hex uid as two u8.

An element of such an array is (high 64 bits, low 64 bits); the array rises. DataComp's resharder
and the released list of Data Filtering Networks (arXiv 2309.17425) have this form.
"""

import hashlib
import logging
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from openqwen2vl.curation.uid_index import UidIndex
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file

PAIR = np.dtype("u8,u8")
"""One uid: its high and its low 64 bits."""

_LOG = logging.getLogger(__name__)
_CHUNK = 1 << 22  # elements compared at a time, so that a mapped file is never in memory whole


class UidError(UserError):
    """A list of uids that cannot be read, or uids that such a list cannot hold."""


@dataclass(frozen=True)
class UidList:
    """A list of uids.

    Attributes:
        path: where it was read from.
        pairs: ``PAIR`` (n,), rising; mapped from the file when that is sorted.
        was_sorted: whether the file was.
        duplicates: elements that equal the one before them.
    """

    path: Path
    pairs: NDArray[np.void] = field(repr=False)
    was_sorted: bool
    duplicates: int

    @cached_property
    def index(self) -> UidIndex:
        """Give what finds uids in the list; it is in memory, 16 bytes an element."""
        high, low = (np.ascontiguousarray(self.pairs[name]) for name in ("f0", "f1"))
        return UidIndex(high, low)

    def contains(self, uids: pl.Series) -> NDArray[np.bool_]:
        """Tell which uids are in the list; one that is not 32 hex digits is not.

        Args:
            uids: strings (m,).

        Returns:
            bool (m,).
        """
        first = _half(pl.col("uid").str.slice(0, 16))
        high = pl.select(uid=uids).select(first.fill_null(0))["uid"].to_numpy()
        found = self.index.has_high(high)
        # Only of these few must the rest be read.
        near = np.flatnonzero(found)
        parts = split_uids(uids.gather(near))
        known = parts["high"].is_not_null().to_numpy()
        high, low = (parts[name].fill_null(0).to_numpy() for name in ("high", "low"))
        found[near] = known & (self.index.find(high, low) >= 0)
        return found


def split_uids(uids: pl.Series) -> pl.DataFrame:
    """Split hex uids into their two halves.

    Args:
        uids: strings (n,).

    Returns:
        Columns ``high`` and ``low``, uint64 (n,); both null where a uid is not 32 hex digits.
    """
    uid = pl.col("uid")
    halves = {"high": uid.str.slice(0, 16), "low": uid.str.slice(16)}
    frame = pl.select(uid=uids.cast(pl.String)).select("uid", **halves)
    # The parser takes a sign for part of a number.
    numbers = [
        pl.when(~pl.col(name).str.starts_with("+")).then(_half(pl.col(name))).alias(name)
        for name in halves
    ]
    whole = (uid.str.len_bytes() == 32) & pl.col("high").is_not_null() & pl.col("low").is_not_null()
    return frame.select("uid", *numbers).select(
        pl.when(whole).then(pl.col(name)).alias(name) for name in halves
    )


def number_uids(uids: pl.Series) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give 128 bits for any uid: its own when it is 32 hex digits, else BLAKE2b's of its text.

    Args:
        uids: strings (n,), none null.

    Returns:
        High and low halves, uint64 (n,) each.
    """
    parts = split_uids(uids)
    high, low = (parts[name].fill_null(0).to_numpy().copy() for name in ("high", "low"))
    others = parts["high"].is_null().to_numpy().nonzero()[0]
    if len(others):
        hashed = b"".join(
            hashlib.blake2b(uid.encode(), digest_size=16).digest() for uid in uids.gather(others)
        )
        halves = np.frombuffer(hashed, ">u8").reshape(-1, 2)
        high[others], low[others] = halves[:, 0], halves[:, 1]
    return high, low


def join_uids(pairs: NDArray[np.void]) -> pl.Series:
    """Give pairs as 32 lower-case hex digits.

    Args:
        pairs: ``PAIR`` (n,).

    Returns:
        strings (n,).
    """
    big = np.empty((len(pairs), 2), ">u8")
    big[:, 0], big[:, 1] = pairs["f0"], pairs["f1"]
    digits = np.frombuffer(b"0123456789abcdef", np.uint8)
    octets = big.view(np.uint8).reshape(-1, 16)
    text = np.stack([digits[octets >> 4], digits[octets & 15]], axis=-1).tobytes()
    ends = pa.py_buffer(np.arange(len(pairs) + 1, dtype=np.int64) * 32)
    lines = pa.LargeStringArray.from_buffers(len(pairs), ends, pa.py_buffer(text))
    return pl.Series("uid", lines, pl.String)


def read_uids(path: Path) -> UidList:
    """Read a list; a sorted one is mapped, another is sorted in memory, with a warning.

    Raises:
        UidError: the file is missing, is no ``.npy``, or holds something else than pairs.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError as error:
        raise UidError(f"no list of uids {path}; check the path") from error
    except (OSError, ValueError, EOFError) as error:
        raise UidError(
            f"{path} is no .npy of uids ({str(error).splitlines()[0]}); expected an array of u8,u8"
        ) from error
    kinds = [found.dtype[i] for i in range(len(found.dtype))] if found.dtype.names else []
    if found.ndim != 1 or [(kind.kind, kind.itemsize) for kind in kinds] != [("u", 8)] * 2:
        raise UidError(
            f"{path} holds {found.dtype} of shape {found.shape}; expected one row of u8,u8: high "
            "and low 64 bits of each uid"
        )
    pairs = found if found.dtype == PAIR else found.astype([("f0", "u8"), ("f1", "u8")])
    was_sorted, duplicates = _order(pairs)
    if not was_sorted:
        _LOG.warning("%s is not sorted; its %d uids are sorted in memory", path, len(pairs))
        pairs = _sorted(pairs)
        duplicates = _order(pairs)[1]
    return UidList(path, pairs, was_sorted, duplicates)


def write_uids(path: Path, uids: pl.Series) -> int:
    """Write a list, sorted, each uid once, atomically.

    Args:
        path: the ``.npy`` to write.
        uids: strings (n,); the case of their digits does not matter.

    Returns:
        How many uids were given more than once, beyond the first time.

    Raises:
        UidError: a uid is not 32 hex digits.
        UserError: the disk is full, or nothing may be written there.
    """
    parts = split_uids(uids)
    bad = parts["high"].is_null().to_numpy().nonzero()[0]
    if len(bad):
        row = int(bad[0])
        raise UidError(
            f"{len(bad)} of {len(uids)} uids are not 32 hex digits, the first is {uids[row]!r} in "
            f"row {row}; a list in DataComp's form cannot hold them"
        )
    rising = parts.sort("high", "low")
    pairs = np.empty(len(rising), PAIR)
    pairs["f0"], pairs["f1"] = rising["high"].to_numpy(), rising["low"].to_numpy()
    new = np.ones(len(pairs), np.bool_)
    new[1:] = (pairs["f0"][1:] != pairs["f0"][:-1]) | (pairs["f1"][1:] != pairs["f1"][:-1])
    pairs = pairs[new]
    with atomic_file(path) as file:
        np.save(file, pairs, allow_pickle=False)
    return len(rising) - len(pairs)


def _half(digits: pl.Expr) -> pl.Expr:
    return digits.str.to_integer(base=16, dtype=pl.UInt64, strict=False)


def _sorted(pairs: NDArray[np.void]) -> NDArray[np.void]:
    return np.asarray(pairs)[np.lexsort((pairs["f1"], pairs["f0"]))]


def _order(pairs: NDArray[np.void]) -> tuple[bool, int]:
    """Tell whether pairs rise, and how many equal the one before."""
    rises, duplicates = True, 0
    for start in range(0, len(pairs), _CHUNK):
        high, low = (np.array(pairs[name][start : start + _CHUNK + 1]) for name in ("f0", "f1"))
        same = high[1:] == high[:-1]
        duplicates += int((same & (low[1:] == low[:-1])).sum())
        rises &= bool(((high[1:] > high[:-1]) | (same & (low[1:] >= low[:-1]))).all())
    return rises, duplicates
