"""Whether a packed shard's tar holds just the members that its index places."""

import mmap
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.tar import BLOCK, END, Member, TruncatedTarError, members
from openqwen2vl.packing.index import Index
from openqwen2vl.packing.proof.headers import header_blocks, sound_headers

_DIGITS = 9  # of a pack's number in the names of its members


def misplaced_members(path: Path, data: mmap.mmap, first: int, index: Index) -> Iterator[str]:
    """Say where a packed shard's members and its index differ.

    Args:
        path: of the shard, for the sentences.
        data: the shard.
        first: number of its first pack.
        index: the index' columns, cut to this shard; ``image_start`` counts from 0.

    Yields:
        A sentence for the archive's end, the number of members, and each member.
    """
    if _as_indexed(data, first, index):
        return
    wanted = _wanted(first, index)
    found: list[Member] = []
    try:
        found.extend(members(data))
    except TruncatedTarError as error:
        yield f"{path} {error}"
    if len(found) != len(wanted):
        yield f"{path} holds {len(found)} files, the index says {len(wanted)}"
    for member, (stem, offset, size) in zip(found, wanted, strict=False):
        if (member.offset, member.size) != (offset, size) or not member.name.startswith(stem):
            yield (
                f"{path}: {member.name} of {member.size} bytes at {member.offset} where the "
                f"index has {stem}* of {size} bytes at {offset}"
            )


def _as_indexed(data: mmap.mmap, first: int, index: Index) -> bool:
    """Whether a tar is as its index says, looking at all headers at once; False when in doubt."""
    packs, images = len(index.json_offset), len(index.image_offsets)
    bounds = index.image_start
    if not packs or first + packs > 10**_DIGITS or images != bounds[-1]:
        return False
    if len(index.image_sizes) != images or (np.diff(bounds) < 0).any():
        return False
    # A pack's JSON comes before its images.
    texts = np.arange(packs) + bounds[:-1]
    pictures = np.setdiff1d(np.arange(packs + images), texts, assume_unique=True)
    at, length = np.empty(packs + images, np.int64), np.empty(packs + images, np.int64)
    at[texts], at[pictures] = index.json_offset, index.image_offsets
    length[texts], length[pictures] = index.json_size, index.image_sizes
    ends = at + (length + BLOCK - 1 & -BLOCK)
    if at[0] != BLOCK or (length < 0).any() or (at[1:] != ends[:-1] + BLOCK).any():
        return False
    if ends[-1] + len(END) != len(data) or data[-len(END) :] != END:
        return False
    blocks = header_blocks(data, at)
    powers = 10 ** np.arange(_DIGITS - 1, -1, -1)
    keys = (first + np.arange(packs))[:, None] // powers % 10 + ord("0")
    counts = np.diff(bounds)
    if not _says(blocks, 124, length, 8 ** np.arange(10, -1, -1)):
        return False
    if (blocks[:, :_DIGITS] != np.repeat(keys, counts + 1, axis=0)).any():
        return False
    places = np.arange(images) - np.repeat(bounds[:-1], counts)
    named = _ends(blocks[texts], b".json\0") and all(
        _ends(blocks[pictures[places == place]], f".{place}.".encode())
        for place in range(int(counts.max()))
    )
    return named and sound_headers(blocks)


def _says(
    blocks: NDArray[np.uint8], start: int, numbers: NDArray[np.int64], powers: NDArray[np.int64]
) -> bool:
    """Whether headers hold these octal numbers from a byte on."""
    digits = blocks[:, start : start + len(powers)].astype(np.int64) - ord("0")
    return bool(((digits >= 0) & (digits <= 7)).all() and (digits @ powers == numbers).all())


def _ends(blocks: NDArray[np.uint8], ending: bytes) -> bool:
    """Whether names go on like this behind their pack's number."""
    stated = blocks[:, _DIGITS : _DIGITS + len(ending)]
    return bool((stated == np.frombuffer(ending, np.uint8)).all())


def _wanted(first: int, index: Index) -> list[tuple[str, int, int]]:
    """Give how each member's name begins, its offset and its size, by the index."""
    wanted = []
    images = list(zip(index.image_offsets.tolist(), index.image_sizes.tolist(), strict=True))
    starts = index.image_start.tolist()
    texts = zip(index.json_offset.tolist(), index.json_size.tolist(), strict=True)
    for place, (offset, size) in enumerate(texts):
        key = f"{first + place:0{_DIGITS}d}."
        wanted.append((f"{key}json", offset, size))
        mine = images[starts[place] : starts[place + 1]]
        wanted += [(f"{key}{i}.", *where) for i, where in enumerate(mine)]
    return wanted
