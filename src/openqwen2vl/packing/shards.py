"""Packed shards: plain tars that hold packs, written without decoding a picture."""

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from openqwen2vl.formats.cells import CellReader, is_cell
from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.manifest import ShardEntry
from openqwen2vl.formats.tar import BLOCK, END, header, padded
from openqwen2vl.packing.index import IndexRow
from openqwen2vl.packing.plan import Row, ShardPlan
from openqwen2vl.packing.scan import ScannedDocument, ScanReader


@dataclass(frozen=True)
class ShardJob:
    """One packed shard to write.

    Attributes:
        path: the tar to write.
        source: name of the corpus.
        plan: which documents go into which pack.
        scans: the scan files by number of the raw shard; only those that the plan names.
    """

    path: Path
    source: str
    plan: ShardPlan
    scans: dict[int, Path]

    def __str__(self) -> str:
        return str(self.path)


@dataclass(frozen=True)
class WrittenShard:
    """A packed shard's entry for the manifest and its rows of the index."""

    entry: ShardEntry
    rows: list[IndexRow]


class _TarWriter:
    """Appends members and keeps count of bytes and their hash."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.at = 0

    def add(self, name: str, content: bytes) -> int:
        """Append a file; gives the offset of its first byte."""
        offset = self.at + BLOCK
        self._put(header(name, len(content)))
        self._put(content)
        self._put(bytes(padded(len(content)) - len(content)))
        return offset

    def end(self) -> str:
        """End the archive; gives the sha256 of the whole file."""
        self._put(END)
        return self._sha256.hexdigest()

    def _put(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.at += len(data)


class ImageBytes:
    """Reads image bytes by offset or table cell, keeping the last few files open."""

    _MOST_OPEN = 64

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._cells = CellReader()

    def read(self, image: ImageRef) -> bytes:
        """Give the bytes of an image.

        Raises:
            ShardError: the file went away or shrank since it was scanned.
        """
        if is_cell(image):
            return self._cells.read(image)
        try:
            data = os.pread(self._descriptor(image.path), image.size, image.offset)
        except FileNotFoundError as error:
            raise ShardError(f"{image.path} went away while it was being packed") from error
        if len(data) != image.size:
            raise ShardError(
                f"{image.path} changed while it was being packed: {len(data)} bytes at "
                f"{image.offset} where there were {image.size}; pack again"
            )
        return data

    def _descriptor(self, path: str) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= self._MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._open[path] = os.open(path, os.O_RDONLY)
        return descriptor

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._cells.close()


def write_shard(job: ShardJob) -> WrittenShard:
    """Write one packed shard; one pack's pictures are in memory at a time.

    Raises:
        ShardError: a raw shard changed since it was scanned.
        UserError: the disk is full.
    """
    scans = {number: ScanReader(path) for number, path in job.scans.items()}
    rows: list[IndexRow] = []
    with ExitStack() as stack:
        pictures = ImageBytes()
        stack.callback(pictures.close)
        tar = _TarWriter(stack.enter_context(atomic_file(job.path)))
        for number, members in enumerate(job.plan.packs, job.plan.first):
            documents = [scans[shard].read(row) for shard, row in members]
            rows.append(_write_pack(tar, f"{number:09d}", documents, job, pictures))
        digest = tar.end()
    entry = ShardEntry(name=job.path.name, packs=len(rows), bytes=tar.at, sha256=digest)
    return WrittenShard(entry, rows)


def _write_pack(
    tar: _TarWriter,
    key: str,
    documents: Sequence[ScannedDocument],
    job: ShardJob,
    pictures: ImageBytes,
) -> IndexRow:
    content, targets = _content(documents, job.source)
    json_offset = tar.add(f"{key}.json", content)
    refs = [image for document in documents for image in document.images]
    offsets = [
        tar.add(f"{key}.{i}.{image.extension}", pictures.read(image))
        for i, image in enumerate(refs)
    ]
    return IndexRow(
        shard=job.path.name,
        json_offset=json_offset,
        json_size=len(content),
        image_offsets=offsets,
        image_sizes=[image.size for image in refs],
        tokens=sum(document.length for document in documents),
        targets=targets,
        images=len(refs),
        documents=len(documents),
    )


def _content(documents: Sequence[ScannedDocument], source: str) -> tuple[bytes, int]:
    """Give ``KEY.json`` of a pack in compact coordinates, and how many targets it has."""
    ids: list[int] = []
    targets: list[list[int]] = []
    entries = []
    for document in documents:
        start = len(ids)
        ids.extend(document.ids)
        edges = [start + edge for edge in document.targets]
        targets.extend([a, b] for a, b in zip(edges[::2], edges[1::2], strict=True))
        entries.append(
            {
                "uid": document.uid,
                "source": source,
                "shard": document.shard,
                "key": document.key,
                "start": start,
                "length": len(document.ids),
                "images": len(document.images),
            }
        )
    content = {"ids": ids, "targets": targets, "documents": entries}
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False)
    return text.encode(errors="surrogatepass"), sum(stop - start for start, stop in targets)


def scans_needed(rows: Sequence[Sequence[Row]]) -> set[int]:
    """The raw shards that a plan draws on."""
    return {shard for pack in rows for shard, _ in pack}
