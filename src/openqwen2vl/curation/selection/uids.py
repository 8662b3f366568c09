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

from openqwen2vl.curation.selection.halves import read_halves
from openqwen2vl.curation.selection.uid_index import UidIndex, rising_order
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
        high, low, found = read_halves(uids)
        found &= self.index.may_have(high)
        rows = np.flatnonzero(found)
        found[rows] = self.index.find(high[rows], low[rows]) >= 0
        return found


def number_uids(uids: pl.Series) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    """Give 128 bits for any uid: its own when it is 32 hex digits, else BLAKE2b's of its text.

    Args:
        uids: strings (n,), none null.

    Returns:
        High and low halves, uint64 (n,) each.
    """
    high, low, known = read_halves(uids)
    others = np.flatnonzero(~known)
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
    if not isinstance(found, np.ndarray):
        found.close()
        raise UidError(f"{path} is an .npz of several arrays; expected one array of u8,u8")
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
    high, low, known = read_halves(uids)
    bad = np.flatnonzero(~known)
    if len(bad):
        row = int(bad[0])
        raise UidError(
            f"{len(bad)} of {len(uids)} uids are not 32 hex digits, the first is {uids[row]!r} in "
            f"row {row}; a list in DataComp's form cannot hold them"
        )
    order = rising_order(high, low)
    high, low = high[order], low[order]
    new = np.ones(len(high), np.bool_)
    new[1:] = (high[1:] != high[:-1]) | (low[1:] != low[:-1])
    pairs = np.empty(int(new.sum()), PAIR)
    pairs["f0"], pairs["f1"] = high[new], low[new]
    with atomic_file(path) as file:
        np.save(file, pairs, allow_pickle=False)
    return len(high) - len(pairs)


def _sorted(pairs: NDArray[np.void]) -> NDArray[np.void]:
    high, low = (np.ascontiguousarray(pairs[name]) for name in ("f0", "f1"))
    return np.asarray(pairs)[rising_order(high, low)]


def _order(pairs: NDArray[np.void]) -> tuple[bool, int]:
    """Tell whether pairs rise, and how many equal the one before."""
    rises, duplicates = True, 0
    for start in range(0, len(pairs), _CHUNK):
        high, low = (np.array(pairs[name][start : start + _CHUNK + 1]) for name in ("f0", "f1"))
        same = high[1:] == high[:-1]
        duplicates += int((same & (low[1:] == low[:-1])).sum())
        rises &= bool(((high[1:] > high[:-1]) | (same & (low[1:] >= low[:-1]))).all())
    return rises, duplicates
