"""Scans: what packing needs to know of one raw shard, kept in a small file beside the output."""

import errno
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.listing import ListingShard, read_listing_shard
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.formats.templates import Encoded, encode_documents, template
from openqwen2vl.packing.plan import SPLITS, Selection, Split, uid_hash

_BATCH = 1024  # documents in one call of the tokenizer
_INTS = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    {
        "shard": pa.string(),
        "key": pa.string(),
        "uid": pa.string(),
        "ids": pa.list_(pa.int32()),
        "targets": pa.list_(pa.int32()),
        "length": pa.int32(),
        "paths": pa.list_(pa.string()),
        "offsets": _INTS,
        "sizes": _INTS,
        "extensions": pa.list_(pa.string()),
    }
)


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One raw shard to scan.

    Attributes:
        number: the shard's place in the corpus.
        shard: a tar, or a run of a LLaVA listing.
        source: name of the corpus.
        spec: what the packs are made for.
        selection: which documents are wanted.
        tokenizer: a folder that every worker can read.
        folder: where the scan's files go.
        max_images: images that a pack may hold; None means any number.
    """

    number: int
    shard: Path | ListingShard
    source: str
    spec: PackSpec
    selection: Selection
    tokenizer: Path
    folder: Path
    max_images: int | None = None

    def __str__(self) -> str:
        return str(self.shard if isinstance(self.shard, Path) else self.shard.path)


@dataclass
class SplitScan:
    """One split of a raw shard, without the documents themselves.

    Attributes:
        path: the Arrow file that holds the documents.
        lengths: int32 (n,), expanded tokens of each document.
        images: int32 (n,), images of each document.
        hashes: uint64 (n,), ``uid_hash`` of each document.
        rejects: what was left out, in the shard's order.
    """

    path: Path
    lengths: NDArray[np.int32]
    images: NDArray[np.int32]
    hashes: NDArray[np.uint64]
    rejects: list[Reject] = field(default_factory=list)


@dataclass
class Scan:
    """What one raw shard holds, by split, and how many documents belong to another part."""

    splits: dict[Split, SplitScan]
    outside_part: int


@dataclass(frozen=True)
class ScannedDocument:
    """A document ready to be packed: compact ids, flat target spans, where its images lie."""

    shard: str
    key: str
    uid: str
    ids: list[int]
    targets: list[int]
    length: int
    images: list[ImageRef]


@dataclass
class _Collected:
    """What is gathered of one split while its shard is read."""

    columns: dict[str, list[Any]] = field(default_factory=lambda: {n: [] for n in _SCHEMA.names})
    hashes: list[int] = field(default_factory=list)
    rejects: list[Reject] = field(default_factory=list)


def scan_shard(job: ScanJob) -> Scan:
    """Read, select and encode the documents of one raw shard.

    The result depends on the job alone, whatever process runs it and in whatever order.
    """
    collected = {split: _Collected() for split in SPLITS}
    outside = 0
    items = _items(job)
    while batch := list(islice(items, _BATCH)):
        chosen: list[tuple[Document, Split]] = []
        for item in batch:
            split = job.selection.split_of(item)
            if split is None:
                outside += 1
            elif isinstance(item, Reject):
                collected[split].rejects.append(item)
            else:
                chosen.append((item, split))
        _encode(chosen, job, collected)
    return Scan({split: _save(job, split, collected[split]) for split in SPLITS}, outside)


def _encode(
    chosen: list[tuple[Document, Split]], job: ScanJob, collected: dict[Split, _Collected]
) -> None:
    tokenizer = _tokenizer(str(job.tokenizer), job.spec.tokenizer_hash)
    documents = [document for document, _ in chosen]
    encoded = encode_documents(documents, tokenizer, template(job.spec.template))
    for (document, split), code in zip(chosen, encoded, strict=True):
        length = job.spec.length(code)
        if length > job.spec.context:
            collected[split].rejects.append(_too_long(document, length, job.spec.context))
        elif job.max_images is not None and code.num_images > job.max_images:
            collected[split].rejects.append(
                _too_many_images(document, code.num_images, job.max_images)
            )
        else:
            _append(collected[split].columns, document, code, length)
            collected[split].hashes.append(uid_hash(document))


def _items(job: ScanJob) -> Iterator[Document | Reject]:
    if isinstance(job.shard, ListingShard):
        return read_listing_shard(job.shard, job.source)
    return read_raw_shard(job.shard, job.source)


@lru_cache(maxsize=1)
def _tokenizer(folder: str, tokenizer_hash: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer once a process; the hash tells two that lay in the same folder apart."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def _too_long(document: Document, length: int, context: int) -> Reject:
    detail = f"{length} tokens, the context holds {context}"
    return Reject(document.source, document.shard, document.key, document.uid, "too_long", detail)


def _too_many_images(document: Document, images: int, most: int) -> Reject:
    detail = f"{images} images, a pack holds {most}"
    return Reject(
        document.source, document.shard, document.key, document.uid, "too_many_images", detail
    )


def _append(
    columns: dict[str, list[Any]], document: Document, encoded: Encoded, length: int
) -> None:
    row = {
        "shard": document.shard,
        "key": document.key,
        "uid": document.uid,
        "ids": encoded.ids,
        "targets": [edge for span in encoded.targets for edge in span],
        "length": length,
        "paths": [image.path for image in document.images],
        "offsets": [image.offset for image in document.images],
        "sizes": [image.size for image in document.images],
        "extensions": [image.extension for image in document.images],
    }
    for name, value in row.items():
        columns[name].append(value)


def _save(job: ScanJob, split: Split, collected: _Collected) -> SplitScan:
    path = job.folder / f"scan-{job.number:06d}-{split}.arrow"
    table = pa.table(collected.columns, schema=_SCHEMA)
    try:
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_table(table)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"no space left while writing {path}; free some or choose another folder"
            ) from error
        raise
    lengths = np.array(collected.columns["length"], np.int32)
    images = np.array([len(paths) for paths in collected.columns["paths"]], np.int32)
    hashes = np.array(collected.hashes, np.uint64)
    return SplitScan(path, lengths, images, hashes, collected.rejects)


class ScanReader:
    """The documents of one scan's split, by row; the file is mapped, not loaded."""

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as source:
            self._table = pa.ipc.open_file(source).read_all()

    def read(self, row: int) -> ScannedDocument:
        """Give the document of a row."""
        (fields,) = self._table.slice(row, 1).to_pylist()
        images = [
            ImageRef(*where)
            for where in zip(
                fields.pop("paths"),
                fields.pop("offsets"),
                fields.pop("sizes"),
                fields.pop("extensions"),
                strict=True,
            )
        ]
        return ScannedDocument(**fields, images=images)
