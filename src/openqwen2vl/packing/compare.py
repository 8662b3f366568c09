"""Byte for byte: images in packs against those of the corpus, packed shards against their hash."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.corpora import Shard, shard_path
from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.packing.audit import Faults
from openqwen2vl.packing.census import Census, without_collector
from openqwen2vl.packing.entries import shard_entries
from openqwen2vl.packing.holdings import Holdings
from openqwen2vl.packing.pictures import ImageBytes


@dataclass(frozen=True)
class HashJob:
    """A packed shard and the sha256 that the manifest gives it."""

    path: Path
    sha256: str

    def __str__(self) -> str:
        return str(self.path)


def hash_shard(job: HashJob) -> str | None:
    """Say what is wrong with a packed shard's hash; None when it is right or there is no file."""
    try:
        with job.path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return None  # the audit has told it
    if found == job.sha256:
        return None
    return f"{job.path} has sha256 {found[:16]}..., the manifest says {job.sha256[:16]}..."


def hash_shards(holdings: Holdings, mapper: Mapper) -> Faults:
    """Hash every packed shard of a folder."""
    faults = Faults()
    jobs = [HashJob(holdings.path / e.name, e.sha256) for e in holdings.manifest.shards]
    for sentence in mapper(hash_shard, jobs):
        if sentence is not None:
            faults.add("packed shard", sentence)
    return faults


@dataclass(frozen=True)
class CompareJob:
    """The packed documents of one raw shard, and where their images lie in packs.

    Attributes:
        shard: the raw shard.
        entries: int64 (n,), number of each document's entry in the raw shard, ascending; twice
            where two folders hold it.
        files: the packed shards.
        file: int32 (n,), which of ``files`` holds each document.
        starts: int64 (n + 1,), bounds of each document's images in the columns below.
        offsets: int64 (images,).
        sizes: int64 (images,).
    """

    shard: Shard
    entries: NDArray[np.int64]
    files: tuple[Path, ...]
    file: NDArray[np.int32]
    starts: NDArray[np.int64]
    offsets: NDArray[np.int64]
    sizes: NDArray[np.int64]

    def __str__(self) -> str:
        return str(shard_path(self.shard))


def compare_shard(job: CompareJob) -> tuple[Faults, int]:
    """Compare the images of a raw shard's packed documents; gives faults and bytes compared."""
    with without_collector():
        return _compare(job)


def _compare(job: CompareJob) -> tuple[Faults, int]:
    faults, total, reader = Faults(), 0, ImageBytes()
    files = [str(path) for path in job.files]
    starts, offsets, sizes = job.starts.tolist(), job.offsets.tolist(), job.sizes.tolist()
    entries, owners = [*job.entries.tolist(), -1], job.file.tolist()
    place = 0
    try:
        for number, entry in enumerate(shard_entries(job.shard)):
            while entries[place] == number:
                images = range(starts[place], starts[place + 1])
                for image, (raw, at) in enumerate(zip(entry.refs, images, strict=True)):
                    packed = ImageRef(files[owners[place]], offsets[at], sizes[at], "")
                    if fault := _difference(reader, raw, packed):
                        name = f"image {image} of {shard_path(job.shard).stem}/{entry.key}"
                        faults.add("images", f"{name} {fault}")
                    total += sizes[at]
                place += 1
    finally:
        reader.close()
    return faults, total


def _difference(reader: ImageBytes, raw: ImageRef, packed: ImageRef) -> str | None:
    try:
        if reader.read(raw) == reader.read(packed):
            return None
    except ShardError:
        return f"cannot be read from {raw.path} or {packed.path}"
    return f"has other bytes in {packed.path} than in {raw.path}"


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
    census: Census,
    starts: NDArray[np.int64],
    folders: Sequence[Holdings],
    mapper: Mapper,
) -> tuple[Faults, int]:
    """Compare the bytes of every image in packs with the corpus.

    Args:
        shards: of the corpus.
        census: of the corpus.
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
    there = census.identities ^ census.sizes.view(np.uint64)
    order = np.argsort(there, kind="stable")
    packed = _together([_found(there, order, holdings) for holdings in folders])
    # A raw shard is read from front to back, so its documents go in that order.
    documents = np.argsort(packed.entries, kind="stable")
    bounds = np.searchsorted(packed.entries[documents], starts)
    jobs = [
        _job(shard, start, documents[a:b], packed)
        for shard, start, a, b in zip(shards, starts[:-1], bounds[:-1], bounds[1:], strict=True)
        if b > a
    ]
    for found, size in mapper(compare_shard, jobs):
        faults.merge(found)
        total += size
    return faults, total


def _found(there: NDArray[np.uint64], order: NDArray[np.int64], holdings: Holdings) -> _Packed:
    """Find a folder's documents in the census, by identity and sizes of the images."""
    audit, index = holdings.audit, holdings.index
    here = audit.identities ^ audit.sizes.view(np.uint64)
    entries = order[np.minimum(np.searchsorted(there[order], here), len(there) - 1)]
    usable = (there[entries] == here) & (audit.image_at >= 0) & (audit.num_images > 0)
    documents = np.flatnonzero(usable)
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
    shard: Shard, start: np.int64, documents: NDArray[np.int64], packed: _Packed
) -> CompareJob:
    counts = packed.counts[documents]
    images = _ranges((np.cumsum(packed.counts) - packed.counts)[documents], counts)
    used, file = np.unique(packed.file[documents], return_inverse=True)
    return CompareJob(
        shard=shard,
        entries=packed.entries[documents] - start,
        files=tuple(packed.files[number] for number in used.tolist()),
        file=file.astype(np.int32),
        starts=np.concatenate([[0], np.cumsum(counts)]),
        offsets=packed.offsets[images],
        sizes=packed.sizes[images],
    )
