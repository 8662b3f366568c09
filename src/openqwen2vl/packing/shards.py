"""Packed shards: plain tars that hold packs, written without decoding a picture."""

import hashlib
import json
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.manifest import PackSpec, ShardEntry
from openqwen2vl.formats.tar import BLOCK, END, header, padded
from openqwen2vl.packing.finished import WrittenShard, note_finished, read_finished
from openqwen2vl.packing.gather import Gathered, gather
from openqwen2vl.packing.index import IndexRow
from openqwen2vl.packing.layout import Layout
from openqwen2vl.packing.lengths import IndexFile
from openqwen2vl.packing.locks import one_writer
from openqwen2vl.packing.pictures import ImageBytes, Spilled, spill_cells


@dataclass(frozen=True)
class ShardJob:
    """One packed shard to write.

    Attributes:
        path: the tar to write.
        note: the folder that says when it is finished.
        source: name of the corpus.
        spec: what the packs are made for.
        layout: which documents go into which pack.
        files: the index files by number; only those that the layout names.
    """

    path: Path
    note: Path
    source: str
    spec: PackSpec
    layout: Layout
    files: dict[int, IndexFile]

    def digest(self) -> str:
        """16 hex digits over everything that the shard's bytes depend on."""
        identities = [file.identity for _, file in sorted(self.files.items())]
        told = [self.path.name, self.source, asdict(self.spec), self.layout.first, identities]
        digest = hashlib.sha256(json.dumps(told, sort_keys=True).encode())
        for array in (self.layout.files, self.layout.rows, self.layout.starts):
            digest.update(array.tobytes())
        return digest.hexdigest()[:16]

    def finished(self) -> WrittenShard | None:
        """Give the shard when an earlier start has finished it."""
        return read_finished(self.note, self.digest(), self.path)


@dataclass(frozen=True)
class ShardGroup:
    """Packed shards that one process writes one after the other.

    Attributes:
        jobs: what to write.
        spill: a file for the images that lie in tables, so that each table is read once for all
            the jobs; None where there are no tables.
    """

    jobs: tuple[ShardJob, ...]
    spill: Path | None = None

    def __str__(self) -> str:
        return str(self.jobs[0].path)


class _TarWriter:
    """Gathers the members of a pack in one piece of memory; counts and hashes what is written."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self._buffer = bytearray(2**20)
        self._used = 0
        self._written = 0

    @property
    def at(self) -> int:
        """Bytes so far."""
        return self._written + self._used

    def member(self, name: str, size: int) -> memoryview:
        """Append a member; gives the place for its content, good until the next call."""
        start, stop = self._used + BLOCK, self._used + BLOCK + padded(size)
        if stop > len(self._buffer):
            self._buffer = self._buffer[: self._used] + bytes(2 * stop - self._used)
        self._buffer[self._used : start] = header(name, size)
        self._buffer[start + size : stop] = bytes(stop - start - size)
        self._used = stop
        return memoryview(self._buffer)[start : start + size]

    def flush(self) -> None:
        """Write what was gathered."""
        with memoryview(self._buffer)[: self._used] as piece:
            self._file.write(piece)
            self._sha256.update(piece)
        self._written, self._used = self.at, 0

    def end(self) -> str:
        """End the archive; gives the sha256 of the whole file."""
        self._buffer[: len(END)], self._used = END, len(END)
        self.flush()
        return self._sha256.hexdigest()


def write_shards(group: ShardGroup) -> list[WrittenShard]:
    """Write packed shards, leaving those that are finished; one pack's images are in memory.

    Raises:
        ShardError: a raw shard or an image changed since it was indexed.
        UserError: the disk is full.
    """
    with ExitStack() as stack:
        pictures = stack.enter_context(ImageBytes())
        spilled: Spilled = {}
        todo = [job for job in group.jobs if job.finished() is None]
        if group.spill is not None and todo:
            stack.enter_context(one_writer(group.spill))
            stack.callback(group.spill.unlink, missing_ok=True)
            wanted = [(job.layout, job.files) for job in todo]
            spilled = spill_cells(wanted, pictures, group.spill)
        written = []
        for job in group.jobs:
            with one_writer(job.note):
                written.append(job.finished() or _write(job, pictures, spilled))
        return written


def _write(job: ShardJob, pictures: ImageBytes, spilled: Spilled) -> WrittenShard:
    documents = gather(job.layout, job.files)
    rows: list[IndexRow] = []
    with atomic_file(job.path) as file:
        tar = _TarWriter(file)
        for number in range(len(job.layout.starts) - 1):
            rows.append(_write_pack(tar, number, documents, job, pictures, spilled))
        digest = tar.end()
        for index_file in job.files.values():
            index_file.stamp.check()
    entry = ShardEntry(name=job.path.name, packs=len(rows), bytes=tar.at, sha256=digest)
    return note_finished(job.note, job.digest(), entry, rows)


def _write_pack(
    tar: _TarWriter,
    number: int,
    documents: Gathered,
    job: ShardJob,
    pictures: ImageBytes,
    spilled: Mapping[tuple[str, int], ImageRef],
) -> IndexRow:
    key = f"{job.layout.first + number:09d}"
    start, stop = job.layout.starts[number : number + 2].tolist()
    content, targets, num_ids = pack_content(documents, start, stop, job.source)
    json_offset = tar.at + BLOCK
    tar.member(f"{key}.json", len(content))[:] = content
    refs = documents.images[documents.images_at[start] : documents.images_at[stop]]
    offsets = []
    for place, image in enumerate(refs):
        offsets.append(tar.at + BLOCK)
        content_place = tar.member(f"{key}.{place}.{image.extension}", image.size)
        pictures.read_into(spilled.get((image.path, image.offset), image), content_place)
    tar.flush()
    return IndexRow(
        shard=job.path.name,
        json_offset=json_offset,
        json_size=len(content),
        image_offsets=offsets,
        image_sizes=[image.size for image in refs],
        tokens=num_ids + len(refs) * (job.spec.tokens_per_image - 1),
        targets=targets,
        images=len(refs),
        documents=stop - start,
    )


def pack_content(documents: Gathered, start: int, stop: int, source: str) -> tuple[bytes, int, int]:
    """Give ``KEY.json`` of a pack in compact coordinates, how many targets and ids it has.

    Args:
        documents: those of a packed shard, or some of them.
        start: the pack's first document.
        stop: the one after its last.
        source: name of the corpus.
    """
    ids_at, images_at = documents.ids_at[start : stop + 1], documents.images_at[start : stop + 1]
    bounds, images = (ids_at - ids_at[0]).tolist(), (images_at - images_at[0]).tolist()
    targets: list[list[int]] = []
    entries = []
    for document, (first, last) in enumerate(pairwise(bounds)):
        place = start + document
        low, high = documents.targets_at[place : place + 2]
        edges = (documents.targets[low:high] + first).tolist()
        targets.extend([a, b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        entries.append(
            {
                "uid": documents.uids[place],
                "source": source,
                "shard": documents.shards[place],
                "key": documents.keys[place],
                "start": first,
                "length": last - first,
                "images": images[document + 1] - images[document],
            }
        )
        if scores := documents.scores[place]:
            entries[-1]["scores"] = json.loads(scores)
    ids = documents.ids[ids_at[0] : ids_at[-1]].tolist()
    content = {"ids": ids, "targets": targets, "documents": entries}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.encode(), sum(b - a for a, b in targets), len(ids)
