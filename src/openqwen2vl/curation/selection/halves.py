"""The numbers that hex uids stand for, read from the memory of the texts, many digits at a time."""

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

Halves = tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.bool_]]
"""High and low 64 bits, uint64 (n,) each, and bool (n,): which are 32 hex digits."""

_DIGITS = 32
_BLOCK = 1 << 15  # uids looked at together: what is made of them stays in the cache
_UID = np.dtype(f"V{_DIGITS}")
_EIGHT = np.uint64(0x0101010101010101)  # true in eight bytes


def read_halves(uids: pl.Series) -> Halves:
    """Read both halves of uids.

    Args:
        uids: strings (n,), null or not.

    Returns:
        The halves, 0 where a uid is not 32 hex digits of either case, and where it is.
    """
    uids = uids.cast(pl.String)
    high, low = np.zeros((2, len(uids)), np.uint64)
    known = np.zeros(len(uids), np.bool_)
    for start in range(0, len(uids), _BLOCK):
        whole, octets = _whole(uids.slice(start, _BLOCK).to_arrow())
        sound = _are_hex(octets)
        rows: slice | NDArray[np.int64] = slice(None)
        if not (whole.all() and sound.all()):
            rows, octets = np.flatnonzero(whole)[sound], octets[sound]
        block = slice(start, start + _BLOCK)
        halves = _numbers(octets)
        high[block][rows], low[block][rows] = halves[:, 0], halves[:, 1]
        known[block][rows] = True
    return high, low, known


def _whole(uids: pa.LargeStringArray) -> tuple[NDArray[np.bool_], NDArray[np.uint8]]:
    """Tell which rows have 32 bytes, and give these, uint8 (k, 32)."""
    _, ends, text = uids.buffers()
    begins = np.frombuffer(ends, np.int64)[uids.offset :][: len(uids) + 1]
    whole = np.diff(begins) == _DIGITS
    if uids.null_count:
        whole &= uids.is_valid().to_numpy(zero_copy_only=False)
    if whole.all():  # one after the other
        found = np.frombuffer(text, _UID, len(uids), begins[0])
    else:
        places = max(0, text.size - _DIGITS + 1)
        found = np.ndarray((places,), _UID, text, 0, (1,))[begins[:-1][whole]]
    return whole, found.view(np.uint8).reshape(-1, _DIGITS)


def _are_hex(octets: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Tell which rows are hex digits alone: what is below the first of a range wraps around."""
    sound = octets - ord("0") < 10
    sound |= (octets | 0x20) - ord("a") < 6
    eights = sound.view(np.uint64)
    found: NDArray[np.bool_] = eights[:, 0] & eights[:, 1] & eights[:, 2] & eights[:, 3] == _EIGHT
    return found


def _numbers(octets: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Give the numbers of hex digits: uint8 (k, 32) to uint64 (k, 2)."""
    digits = octets & 15
    digits += (octets >> 6) * 9  # letters
    pairs = digits.view(np.uint16)
    joined = (pairs << 4 | pairs >> 8).astype(np.uint8)
    return joined.view(">u8").astype(np.uint64)
