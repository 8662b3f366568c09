"""The audit of a folder of packs: whether it is what its index, ledger and manifest say."""

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.manifest import PackSpec, ShardEntry
from openqwen2vl.packing.index import Index
from openqwen2vl.packing.plan import name_hash
from openqwen2vl.packing.proof.census import identities, sizes_marks, text_marks, without_collector
from openqwen2vl.packing.proof.faults import Faults
from openqwen2vl.packing.proof.packed_tar import misplaced_members

_NO_SPAN = (2**62, 0)  # behind every target span that a pack can hold


@dataclass(frozen=True)
class AuditJob:
    """One packed shard and what is said of it.

    Attributes:
        path: the tar.
        entry: its line of the manifest.
        spec: what the packs are made for.
        source: name of the corpus.
        first: number of its first pack.
        index: the index' columns, cut to this shard; ``image_start`` counts from 0.
        first_image: place of its first image in the whole index.
        texts: whether to note what the documents' ids and target spans are.
    """

    path: Path
    entry: ShardEntry
    spec: PackSpec
    source: str
    first: int
    index: Index
    first_image: int
    texts: bool = False

    def __str__(self) -> str:
        return str(self.path)


@dataclass
class Audit:
    """The documents that a packed shard holds, in order, and its faults.

    Attributes:
        identities: uint64 (n,), see ``census.identity``.
        uids: uint64 (n,), see ``plan.uid_hash``.
        sizes: uint64 (n,), see ``census.sizes_marks``.
        turns: int32 (n,), ends of turns among its ids, see ``entries.num_turns``.
        packs: int64 (n,), number of each document's pack.
        image_at: int64 (n,), place of its first image in the whole index; -1 where the pack's
            marks and the index do not agree.
        num_images: int64 (n,).
        texts: uint64 (n,), see ``census.text_marks``; uint64 (0,) where it was not asked for.
        faults: what was found.
    """

    identities: NDArray[np.uint64]
    uids: NDArray[np.uint64]
    sizes: NDArray[np.uint64]
    turns: NDArray[np.int32]
    packs: NDArray[np.int64]
    image_at: NDArray[np.int64]
    num_images: NDArray[np.int64]
    texts: NDArray[np.uint64]
    faults: Faults


def no_documents(faults: Faults) -> Audit:
    """Give the audit of nothing."""
    return _Columns().audit(faults)


@dataclass
class _Columns:
    """What is noted of the documents while packs are read; see ``Audit``."""

    names: list[tuple[str, str, str]] = field(default_factory=list)
    uids: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    turns: list[int] = field(default_factory=list)
    packs: list[int] = field(default_factory=list)
    image_at: list[int] = field(default_factory=list)
    num_images: list[int] = field(default_factory=list)
    texts: list[int] = field(default_factory=list)

    def audit(self, faults: Faults) -> Audit:
        return Audit(
            identities(iter(self.names)),
            np.array(self.uids, np.uint64),
            sizes_marks(np.array(self.counts, np.int64), np.array(self.sizes, np.int64)),
            np.array(self.turns, np.int32),
            np.array(self.packs, np.int64),
            np.array(self.image_at, np.int64),
            np.array(self.num_images, np.int64),
            np.array(self.texts, np.uint64),
            faults,
        )


def audit_shard(job: AuditJob) -> Audit:
    """Read every pack's JSON of a shard and compare it with index and manifest; no image is read."""
    faults, columns = Faults(), _Columns()
    packs = len(job.index.json_offset)
    if packs != job.entry.packs:
        faults.add(
            "manifest", f"{job.path}: {packs} packs in the index, manifest {job.entry.packs}"
        )
    try:
        size = job.path.stat().st_size
    except FileNotFoundError:
        faults.add("packed shard", f"{job.path} is missing")
        size = 0
    else:
        if size != job.entry.bytes:
            faults.add("packed shard", f"{job.path}: {size} bytes, manifest {job.entry.bytes}")
    with without_collector():
        if size:
            _read(job, columns, faults)
        return columns.audit(faults)


def _read(job: AuditJob, columns: _Columns, faults: Faults) -> None:
    index = job.index
    with (
        job.path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        for sentence in misplaced_members(job.path, data, job.first, index):
            kind = "packed shard" if sentence.startswith(f"{job.path} ends") else "index"
            faults.add(kind, sentence)
        starts, sizes = index.json_offset.tolist(), index.json_size.tolist()
        for place, (start, size) in enumerate(zip(starts, sizes, strict=True)):
            _check_pack(job, place, data[start : start + size], columns, faults)


@dataclass(frozen=True)
class _Content:
    """What a pack's JSON says, and what its ids say of it: each document's images and turns."""

    ids: list[int]
    documents: list[dict[str, Any]]
    targets: list[list[int]]
    marks: list[int]
    turns: list[int]


def _check_pack(job: AuditJob, place: int, raw: bytes, columns: _Columns, faults: Faults) -> None:
    """Read one pack, note its documents and compare it with the index."""
    where = f"pack {job.first + place} of {job.path}"
    try:
        content = _parse(raw, job.spec)
        _note(job, place, content, columns)
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        faults.add("packed shard", f"{where} cannot be read ({type(error).__name__}: {error})")
        return
    tokens = len(content.ids) + sum(content.marks) * (job.spec.tokens_per_image - 1)
    found = {
        "tokens": tokens,
        "targets": sum(stop - start for start, stop in content.targets),
        "images": sum(content.marks),
        "documents": len(content.documents),
    }
    for name, number in found.items():
        said = int(getattr(job.index, name)[place])
        if number != said:
            faults.add("index", f"{where} holds {number} {name}, the index says {said}")
    if tokens > job.spec.context:
        faults.add("pack", f"{where} holds {tokens} tokens, the context {job.spec.context}")
    for sentence in _disorder(content, job.source):
        faults.add("pack", f"{where}: {sentence}")


def _parse(raw: bytes, spec: PackSpec) -> _Content:
    fields = json.loads(raw)
    ids, documents = fields["ids"], fields["documents"]
    pieces = [ids[d["start"] : d["start"] + d["length"]] for d in documents]
    return _Content(
        ids,
        documents,
        [[start, stop] for start, stop in fields["targets"]],
        [piece.count(spec.special.image) for piece in pieces],
        [piece.count(spec.special.im_end) for piece in pieces],
    )


def _note(job: AuditJob, place: int, content: _Content, columns: _Columns) -> None:
    """Append a pack's documents to the columns: all of them, or none when one makes no sense."""
    documents = content.documents
    first, last = job.index.image_start[place : place + 2].tolist()
    stated = [document["images"] for document in documents]
    starts = [0, *accumulate(stated)]
    agree = content.marks == stated and starts[-1] == last - first
    sizes = job.index.image_sizes[first:last].tolist()
    held = [sizes[a : a + n] for a, n in zip(starts, stated, strict=False)]
    names = [(d["shard"], d["key"], d["uid"]) for d in documents]
    texts = text_marks(_texts(content)).tolist() if job.texts else []
    columns.uids += [name_hash(d["source"], *n) for d, n in zip(documents, names, strict=True)]
    columns.names += names
    columns.counts += map(len, held)
    columns.sizes += [size for mine in held for size in mine]
    columns.turns += content.turns
    columns.packs += [job.first + place] * len(names)
    at = job.first_image + first
    columns.image_at += [at + a if agree else -1 for a in starts[:-1]]
    columns.num_images += stated
    columns.texts += texts


def _texts(content: _Content) -> Iterator[tuple[list[int], list[list[int]]]]:
    """Give each document's ids and target spans, counted from its first id."""
    spans, place = content.targets, 0
    for document in content.documents:
        start, stop = document["start"], document["start"] + document["length"]
        first = place
        while place < len(spans) and spans[place][0] < stop:
            place += 1
        yield content.ids[start:stop], [[a - start, b - start] for a, b in spans[first:place]]


def _disorder(content: _Content, source: str) -> Iterator[str]:
    """Say what is wrong with the documents of a pack, or with what it asks for."""
    end = 0
    spans = iter([*content.targets, _NO_SPAN])
    start, stop = next(spans)
    for document, marks in zip(content.documents, content.marks, strict=True):
        begin = document["start"]
        if begin != end:
            yield f"{_name(document)} starts at {begin}, the document before ends at {end}"
        end = begin + document["length"]
        if marks != document["images"]:
            yield f"{_name(document)} has {marks} image marks and {document['images']} images"
        if document["source"] != source:
            yield (
                f"{_name(document)} is of source {document['source']!r}, the manifest says "
                f"{source!r}"
            )
        while start < end:
            if not begin <= start < stop <= end:
                yield f"{_name(document)} ends at {end} and has the target span {start}:{stop}"
            start, stop = next(spans)
    if start != _NO_SPAN[0]:
        yield f"the target span {start}:{stop} lies behind its documents"
    if end != len(content.ids):
        yield f"its documents end at {end} of {len(content.ids)} ids"


def _name(document: dict[str, Any]) -> str:
    return f"{document['shard']}/{document['key']}"
