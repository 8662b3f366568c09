"""Scans: one raw shard read, laid out and encoded into its file of the length index."""

import hashlib
import json
import math
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.corpora import Shard, read_shard, shard_path
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.listing import ListingShard
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.parquet import ParquetShard
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.formats.tar import BLOCK, padded
from openqwen2vl.formats.templates import Encoded, encode_documents, template
from openqwen2vl.packing.lengths import SCHEMA, IndexFile, Lengths, Stamp, reason_code
from openqwen2vl.packing.locks import one_writer
from openqwen2vl.packing.plan import uid_fraction, uid_hash

_BATCH = 1024  # documents in one call of the tokenizer
_MISSING = reason_code("missing_image")


@dataclass(frozen=True, kw_only=True)
class ScanJob:
    """One raw shard to scan.

    Attributes:
        shard: what ``corpora.open_corpus`` gives.
        source: name of the corpus.
        template: name of the template that lays documents out.
        rules: which interleaved documents are taken.
        tokenizer: a folder that every worker can read.
        tokenizer_hash: of the tokenizer in it.
        folder: where the index file goes, ``index_folder``.
    """

    shard: Shard
    source: str
    template: str
    rules: InterleavedRules
    tokenizer: Path
    tokenizer_hash: str
    folder: Path

    def __str__(self) -> str:
        return str(shard_path(self.shard))

    def index_file(self) -> IndexFile:
        """Describe the index file of the raw shard as it is now.

        Raises:
            ShardError: the raw shard is missing.
        """
        path = shard_path(self.shard)
        stamp = Stamp.of(path)
        root = None if isinstance(self.shard, Path) else self.shard.image_root
        also: dict[str, object] = {"image_root": None if root is None else str(root.absolute())}
        if isinstance(self.shard, ListingShard):
            spans = self.shard.spans
            also["entries"] = [self.shard.first, spans[0][0], spans[-1][1], self.shard.broken]
        # Shards of one name may come from several folders, or be runs of one listing.
        told = json.dumps([stamp.path, also], sort_keys=True)
        name = f"{path.stem}-{hashlib.sha256(told.encode()).hexdigest()[:12]}.parquet"
        return IndexFile.of(self.folder / name, path.stem, stamp, folder=self.folder.name, **also)


def index_folder(root: Path, spec: PackSpec, source: str, rules: InterleavedRules) -> Path:
    """Give the folder of an index in which files of one tokenizer, template, source and rules lie.

    Args:
        root: holds the indexes of many corpora.
        spec: what packs are made for; context and grid do not matter.
        source: name of the corpus.
        rules: which interleaved documents are taken.
    """
    text = json.dumps([source, asdict(rules)], sort_keys=True)
    digest = hashlib.sha256(text.encode()).hexdigest()[:16]
    return root / f"{spec.tokenizer_hash}-{spec.template_hash}-{digest}"


def scan_shard(job: ScanJob) -> Lengths:
    """Give the lengths of a raw shard, from its index file when that is current.

    The result depends on the job alone, whatever process runs it and in whatever order.

    Raises:
        ShardError: the raw shard is missing, or changes while it is read.
        UserError: the disk is full.
    """
    file = job.index_file()
    if not _is_current(file, job.shard):
        with one_writer(file.path):
            if not _is_current(file, job.shard):
                file.write(list(_batches(job)))
                file.stamp.check()
    return Lengths.read(file)


def _is_current(file: IndexFile, shard: Shard) -> bool:
    """Whether the index still holds, the images that are files of their own included."""
    if not file.is_current():
        return False
    if isinstance(shard, Path) or (isinstance(shard, ParquetShard) and shard.image_root is None):
        return True
    table = file.read(["paths", "sizes", "reason"])
    if pc.any(pc.equal(table["reason"], _MISSING)).as_py():
        return False  # it may have come by now
    paths, sizes = (pc.list_flatten(table[name]).to_pylist() for name in ("paths", "sizes"))
    return all("#" in path or _size(path) == size for path, size in zip(paths, sizes, strict=True))


def _size(path: str) -> int | None:
    try:
        return os.stat(path).st_size
    except OSError:
        return None


def _batches(job: ScanJob) -> Iterator[pa.RecordBatch]:
    tokenizer = load_saved(str(job.tokenizer), job.tokenizer_hash)
    items = read_shard(job.shard, job.source, job.rules)
    while batch := list(islice(items, _BATCH)):
        documents = [item for item in batch if isinstance(item, Document)]
        encoded = iter(encode_documents(documents, tokenizer, template(job.template)))
        yield index_rows((i, next(encoded) if isinstance(i, Document) else None) for i in batch)


@lru_cache(maxsize=1)
def load_saved(folder: str, tokenizer_hash: str) -> PreTrainedTokenizerFast:
    """Load a tokenizer once a process; the hash tells two that lay in the same folder apart."""
    return PreTrainedTokenizerFast.from_pretrained(folder)


def index_rows(items: Iterator[tuple[Document | Reject, Encoded | None]]) -> pa.RecordBatch:
    """Lay documents, each with its code, and rejects, which have none, out as rows of an index."""
    columns: dict[str, list[Any]] = {name: [] for name in SCHEMA.names}
    for item, code in items:
        if isinstance(item, Document) and code is not None:
            row = _document_row(item, code)
        elif isinstance(item, Reject):
            row = _reject_row(item)
        for name, value in zip(SCHEMA.names, row, strict=True):
            columns[name].append(value)
    return pa.RecordBatch.from_pydict(columns, schema=SCHEMA)


def _document_row(document: Document, code: Encoded) -> tuple[Any, ...]:
    """Give the values in the order of the schema."""
    images, uid = document.images, document.uid
    return (
        document.key,
        uid,
        uid_hash(document),
        uid_fraction(uid, "part"),
        uid_fraction(uid, "validation"),
        document.turns[0].role not in ("caption", "interleaved"),
        len(code.ids),
        code.num_images,
        sum(BLOCK + padded(image.size) for image in images),
        0,
        None,
        code.ids,
        [edge for span in code.targets for edge in span],
        [image.path for image in images],
        [image.offset for image in images],
        [image.size for image in images],
        [image.extension for image in images],
        json.dumps(dict(document.scores)) if document.scores else None,
    )


def _reject_row(reject: Reject) -> tuple[Any, ...]:
    # What is lost of a shard without a key is told in every part.
    known = bool(reject.key)
    part, validation = (
        uid_fraction(reject.uid, salt) if known else math.nan for salt in ("part", "validation")
    )
    code = reason_code(reject.reason)
    row = (reject.key, reject.uid, 0, part, validation, False, 0, 0, 0, code, reject.detail)
    return (*row, [], [], [], [], [], [], None)
