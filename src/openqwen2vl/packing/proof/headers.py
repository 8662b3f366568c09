"""The headers of a plain tar, all of them at once, for those who need no more of it."""

import mmap
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.tar import BLOCK


@dataclass(frozen=True)
class PlainTar:
    """The regular files of a tar of plain headers.

    Attributes:
        names: of the files, in order.
        offsets: int64, of their first bytes.
        sizes: int64, in bytes.
    """

    names: list[str]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def walk_plain(data: mmap.mmap) -> PlainTar | None:
    """List the regular files of a tar of plain headers.

    Only the sizes are read one by one, since each says where the next header lies; everything
    else is looked at in all headers at once.

    Args:
        data: the whole tar; only headers are touched.

    Returns:
        None when the tar breaks off, is damaged, or holds names or sizes that plain headers
        cannot, so that ``formats.tar.members`` has to read it.
    """
    sizes: list[int] = []
    at = 0
    try:
        while (size := int(data[at + 124 : at + 135], 8)) >= 0:
            sizes.append(size)
            at += size + 2 * BLOCK - 1 & -BLOCK
    except ValueError:  # no octal number: a zero block, or something that is no plain header
        pass
    if not sizes or data[at : at + BLOCK] != bytes(BLOCK):
        return None
    lengths = np.array(sizes)
    offsets = _offsets(lengths)
    blocks = header_blocks(data, offsets)
    kinds = blocks[:, 156]
    regular = (kinds == 0) | (kinds == ord("0"))
    for place in np.flatnonzero(~regular).tolist():
        start = int(offsets[place])
        content = data[start : start + sizes[place]]
        if kinds[place] == ord("L") or b"path=" in content or b"size=" in content:
            return None
    joined = b"\0".join(header_names(blocks))
    names = joined.decode(errors="replace").split("\0")
    if len(names) != len(sizes) or blocks[:, 345].any() or not sound_headers(blocks):
        return None
    if not regular.all():
        kept = np.flatnonzero(regular)
        names = [names[i] for i in kept.tolist()]
        offsets, lengths = offsets[kept], lengths[kept]
    return PlainTar(names, offsets, lengths)


def _offsets(sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Give where files begin that lie one behind the other."""
    steps = sizes + 2 * BLOCK - 1 & -BLOCK
    offsets: NDArray[np.int64] = np.cumsum(steps) - steps + BLOCK
    return offsets


def header_blocks(data: mmap.mmap, offsets: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Copy the headers of files that begin at whole blocks, uint8 (n, 512)."""
    whole = len(data) // BLOCK
    view = np.frombuffer(data, np.uint8, whole * BLOCK).reshape(whole, BLOCK)
    blocks: NDArray[np.uint8] = view[offsets // BLOCK - 1]
    return blocks


def header_names(blocks: NDArray[np.uint8]) -> list[bytes]:
    """Give the names in headers, without their prefixes."""
    names: list[bytes] = np.ascontiguousarray(blocks[:, :100]).view("S100")[:, 0].tolist()
    return names


def sound_headers(blocks: NDArray[np.uint8]) -> bool:
    """Whether every header's checksum is right and every size ends where it should.

    Args:
        blocks: uint8 (n, 512).
    """
    digits = blocks[:, 148:154].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 7)).any() or blocks[:, 154].any():
        return False
    if not np.isin(blocks[:, 135], (0, ord(" "))).all():
        return False
    stated = digits @ 8 ** np.arange(5, -1, -1)
    sums = blocks.sum(1, dtype=np.uint32) + 8 * 32
    sums -= blocks[:, 148:156].sum(1, dtype=np.uint32)
    return bool((stated == sums).all())
