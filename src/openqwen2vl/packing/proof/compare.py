"""Byte for byte: images in packs against those of the corpus."""

import mmap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.corpora import Shard, read_shard, shard_path
from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.packing.pictures import ImageBytes
from openqwen2vl.packing.proof.census import Census, Places, without_collector
from openqwen2vl.packing.proof.entries import list_shard
from openqwen2vl.packing.proof.faults import Faults
from openqwen2vl.packing.proof.holdings import Holdings


@dataclass(frozen=True)
class CompareJob:
    """The packed documents of one raw shard, and where their images lie in packs.

    Attributes:
        shard: the raw shard.
        rules: which interleaved documents were taken.
        entries: int64 (n,), number of each document's entry in the raw shard, ascending; twice
            where two folders hold it.
        files: the packed shards.
        file: int32 (n,), which of ``files`` holds each document.
        starts: int64 (n + 1,), bounds of each document's images in the columns below.
        offsets: int64 (images,).
        sizes: int64 (images,).
        raw: int64 (images,), where they begin in the raw shard's file; None where that takes
            the reader to tell.
    """

    shard: Shard
    rules: InterleavedRules
    entries: NDArray[np.int64]
    files: tuple[Path, ...]
    file: NDArray[np.int32]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]
    raw: NDArray[np.int64] | None

    def __str__(self) -> str:
        return str(shard_path(self.shard))


def compare_shard(job: CompareJob) -> tuple[Faults, int]:
    """Compare the images of a raw shard's packed documents; gives faults and bytes compared.

    Raises:
        ShardError: the raw shard went away.
    """
    with without_collector():
        return _compare_places(job, job.raw) if job.raw is not None else _compare_read(job)


def _compare_places(job: CompareJob, raw: NDArray[np.int64]) -> tuple[Faults, int]:
    """Compare bytes whose places are known on both sides."""
    faults, read, path = Faults(), PlainBytes(), str(shard_path(job.shard))
    files = np.repeat(job.file, np.diff(job.starts)).tolist()
    names = [str(name) for name in job.files]
    columns = zip(raw.tolist(), files, job.offsets.tolist(), job.sizes.tolist(), strict=True)
    other: list[int] = []
    with read:
        for image, (here, file, there, size) in enumerate(columns):
            if read.piece(path, here, size) != read.piece(names[file], there, size):
                other.append(image)
    if other:
        keys = list_shard(job.shard, job.rules).keys
        for image in other:
            place = int(np.searchsorted(job.starts, image, side="right")) - 1
            name = f"image {image - job.starts[place]} of {shard_path(job.shard).stem}/"
            name += keys[job.entries[place]]
            faults.add("images", f"{name} has other bytes in {names[files[image]]} than in {path}")
    return faults, int(job.sizes.sum())


def _compare_read(job: CompareJob) -> tuple[Faults, int]:
    """Compare the images of documents that are read again."""
    faults, total = Faults(), 0
    files = [str(path) for path in job.files]
    starts, offsets, sizes = job.starts.tolist(), job.offsets.tolist(), job.sizes.tolist()
    entries, owners = [*job.entries.tolist(), -1], job.file.tolist()
    place = 0
    with ImageBytes() as reader:
        for number, item in enumerate(read_shard(job.shard, "", job.rules)):
            while entries[place] == number:
                images = range(starts[place], starts[place + 1])
                refs = item.images if isinstance(item, Document) else ()
                for image, (raw, at) in enumerate(zip(refs, images, strict=False)):
                    packed = ImageRef(files[owners[place]], offsets[at], sizes[at], "")
                    if fault := _difference(reader, raw, packed):
                        name = f"image {image} of {shard_path(job.shard).stem}/{item.key}"
                        faults.add("images", f"{name} {fault}")
                    total += sizes[at]
                place += 1
    return faults, total


def _difference(reader: ImageBytes, raw: ImageRef, packed: ImageRef) -> str | None:
    try:
        if reader.read(raw) == reader.read(packed):
            return None
    except ShardError:
        return f"cannot be read from {raw.path} or {packed.path}"
    return f"has other bytes in {packed.path} than in {raw.path}"


class PlainBytes:
    """Pieces of plain files, mapped into memory, the last few of them."""

    _MOST_OPEN = 64

    def __init__(self) -> None:
        self._open: dict[str, mmap.mmap] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for data in self._open.values():
            data.close()

    def piece(self, path: str, start: int, size: int) -> bytes | None:
        """Give bytes of a file, fewer where it ends; None when it cannot be read at all."""
        data = self._open.get(path)
        if data is None:
            try:
                with open(path, "rb") as file:
                    data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            except (OSError, ValueError):  # gone, or empty
                return None
            if len(self._open) >= self._MOST_OPEN:
                self._open.pop(next(iter(self._open))).close()
            self._open[path] = data
        return data[start : start + size]


@dataclass(frozen=True)
class _Packed:
    """Packed documents of one folder that the corpus has, and where their images lie.

    Attributes:
        entries: int64 (n,), place of each document in the census.
        files: the packed shards.
        file: int32 (n,), which of ``files`` holds each document.
        counts: int64 (n,), images of each document.
        offsets: int64 (images,).
        sizes: int64 (images,).
    """

    entries: NDArray[np.int64]
    files: tuple[Path, ...]
    file: NDArray[np.int32]
    counts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]


def compare_images(
    shards: Sequence[Shard],
    rules: InterleavedRules,
    census: Census,
    starts: NDArray[np.int64],
    folders: Sequence[Holdings],
    mapper: Mapper,
) -> tuple[Faults, int]:
    """Compare the bytes of every image in packs with the corpus.

    Args:
        shards: of the corpus.
        rules: which interleaved documents were taken.
        census: of the corpus, with the places of images where there are any.
        starts: int64 (shards + 1,), bounds of the shards' entries in the census.
        folders: the packs.
        mapper: runs a function over shards, results in order.

    Returns:
        Faults, and how many bytes were compared. Documents that the corpus does not have, or with
        images of other sizes, are left out: they are faults already.
    """
    faults, total = Faults(), 0
    if not len(census):
        return faults, total
    order = np.argsort(census.identities, kind="stable")
    packed = _together([_found(census, order, holdings) for holdings in folders])
    # A raw shard is read from front to back, so its documents go in that order.
    documents = np.argsort(packed.entries, kind="stable")
    bounds = np.searchsorted(packed.entries[documents], starts).tolist()
    jobs = []
    for number, shard in enumerate(shards):
        mine = documents[bounds[number] : bounds[number + 1]]
        if len(mine):
            start, places = int(starts[number]), census.places[number]
            jobs.append(_job(shard, rules, start, mine, packed, places))
    for found, size in mapper(compare_shard, jobs):
        faults.merge(found)
        total += size
    return faults, total


def _found(census: Census, order: NDArray[np.int64], holdings: Holdings) -> _Packed:
    """Find a folder's documents in the census, those with images of the sizes there."""
    audit, index = holdings.audit, holdings.index
    place = np.searchsorted(census.identities[order], audit.identities)
    entries = order[np.minimum(place, len(order) - 1)]
    usable = (census.identities[entries] == audit.identities) & (audit.image_at >= 0)
    # What was shortened has fewer images, the first of the whole document's.
    shortened = np.isin(audit.identities, holdings.shortened.identities)
    usable &= (census.sizes[entries] == audit.sizes) | shortened
    documents = np.flatnonzero(usable & (audit.num_images > 0))
    counts = audit.num_images[documents]
    images = _ranges(audit.image_at[documents], counts)
    return _Packed(
        entries[documents],
        tuple(holdings.path / name for name in index.shards),
        index.shard[audit.packs[documents]],
        counts,
        index.image_offsets[images],
        index.image_sizes[images],
    )


def _ranges(first: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Lay the ranges ``first[i] .. first[i] + counts[i] - 1`` end to end."""
    ends = np.cumsum(counts)
    ranges: NDArray[np.int64] = np.arange(counts.sum()) + np.repeat(first - ends + counts, counts)
    return ranges


def _together(parts: Sequence[_Packed]) -> _Packed:
    """Lay the documents of several folders end to end."""
    before = np.cumsum([0, *(len(part.files) for part in parts)])
    return _Packed(
        np.concatenate([part.entries for part in parts]),
        tuple(path for part in parts for path in part.files),
        np.concatenate([p.file + b for p, b in zip(parts, before, strict=False)]).astype(np.int32),
        np.concatenate([part.counts for part in parts]),
        np.concatenate([part.offsets for part in parts]),
        np.concatenate([part.sizes for part in parts]),
    )


def _job(
    shard: Shard,
    rules: InterleavedRules,
    start: int,
    documents: NDArray[np.int64],
    packed: _Packed,
    places: Places | None,
) -> CompareJob:
    counts, entries = packed.counts[documents], packed.entries[documents] - start
    images = _ranges((np.cumsum(packed.counts) - packed.counts)[documents], counts)
    used, file = np.unique(packed.file[documents], return_inverse=True)
    return CompareJob(
        shard=shard,
        rules=rules,
        entries=entries,
        files=tuple(packed.files[number] for number in used.tolist()),
        file=file.astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        offsets=packed.offsets[images],
        sizes=packed.sizes[images],
        raw=None if places is None else _raw_offsets(places, entries, counts),
    )


def _raw_offsets(
    places: Places, entries: NDArray[np.int64], counts: NDArray[np.int64]
) -> NDArray[np.int64] | None:
    """Give where documents' images begin in a raw shard; None when one has fewer there."""
    if (places.starts[entries] + counts > places.starts[entries + 1]).any():
        return None
    offsets: NDArray[np.int64] = places.offsets[_ranges(places.starts[entries], counts)]
    return offsets
