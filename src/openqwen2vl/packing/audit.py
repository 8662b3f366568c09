"""The audit of a folder of packs: whether it is what its index, ledger and manifest say."""

import json
import mmap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.manifest import PackSpec, ShardEntry
from openqwen2vl.formats.tar import BLOCK, END, Member, TruncatedTarError, members
from openqwen2vl.packing.census import identity, sizes_mark
from openqwen2vl.packing.entries import sound_headers
from openqwen2vl.packing.index import Index
from openqwen2vl.packing.plan import uid_hash

LISTED = 20
"""Faults of one kind that are told with names; all are counted."""

_NO_SPAN = (2**62, 0)  # behind every target span that a pack can hold


@dataclass
class Faults:
    """Faults by kind: how many, and the first of each in words."""

    counts: Counter[str] = field(default_factory=Counter)
    told: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, sentence: str, count: int = 1) -> None:
        """Count a fault, or several that one sentence tells."""
        self.counts[kind] += count
        sentences = self.told.setdefault(kind, [])
        if len(sentences) < LISTED:
            sentences.append(sentence)

    def merge(self, other: "Faults") -> None:
        """Take over what another part found."""
        self.counts += other.counts
        for kind, sentences in other.told.items():
            mine = self.told.setdefault(kind, [])
            mine += sentences[: LISTED - len(mine)]

    def sentences(self) -> Iterator[str]:
        """Give the faults in words, one of each kind in turn, so that no kind hides another."""
        for place in range(LISTED):
            for sentences in self.told.values():
                if place < len(sentences):
                    yield sentences[place]


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
    """

    path: Path
    entry: ShardEntry
    spec: PackSpec
    source: str
    first: int
    index: Index
    first_image: int

    def __str__(self) -> str:
        return str(self.path)


@dataclass
class Audit:
    """The documents that a packed shard holds, in order, and its faults.

    Attributes:
        identities: uint64 (n,), see ``census.identity``.
        uids: uint64 (n,), see ``plan.uid_hash``.
        sizes: int64 (n,), see ``census.sizes_mark``.
        packs: int64 (n,), number of each document's pack.
        image_at: int64 (n,), place of its first image in the whole index; -1 where the pack's
            marks and the index do not agree.
        num_images: int64 (n,).
        faults: what was found.
    """

    identities: NDArray[np.uint64]
    uids: NDArray[np.uint64]
    sizes: NDArray[np.int64]
    packs: NDArray[np.int64]
    image_at: NDArray[np.int64]
    num_images: NDArray[np.int64]
    faults: Faults


def no_documents(faults: Faults) -> Audit:
    """Give the audit of nothing."""
    return _Columns().audit(faults)


@dataclass
class _Columns:
    """What is noted of the documents while packs are read; see ``Audit``."""

    identities: list[bytes] = field(default_factory=list)
    uids: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    packs: list[int] = field(default_factory=list)
    image_at: list[int] = field(default_factory=list)
    num_images: list[int] = field(default_factory=list)

    def audit(self, faults: Faults) -> Audit:
        return Audit(
            np.frombuffer(b"".join(self.identities), np.uint64),
            np.array(self.uids, np.uint64),
            np.array(self.sizes, np.int64),
            np.array(self.packs, np.int64),
            np.array(self.image_at, np.int64),
            np.array(self.num_images, np.int64),
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
    if size:
        with job.path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
            _check_members(job, data, faults)
            for place in range(packs):
                _check_pack(job, place, data, columns, faults)
    return columns.audit(faults)


def _check_members(job: AuditJob, data: mmap.mmap, faults: Faults) -> None:
    """Compare names and places of a shard's members with those that the index asks for."""
    wanted = _wanted(job)
    if _as_wanted(data, wanted):
        return
    found: list[Member] = []
    try:
        found.extend(members(data))
    except TruncatedTarError as error:
        faults.add("packed shard", f"{job.path} {error}")
    if len(found) != len(wanted):
        faults.add("index", f"{job.path} holds {len(found)} files, the index says {len(wanted)}")
    for member, (stem, offset, size) in zip(found, wanted, strict=False):
        if (member.offset, member.size) != (offset, size) or not member.name.startswith(stem):
            faults.add(
                "index",
                f"{job.path}: {member.name} of {member.size} bytes at {member.offset} where the "
                f"index has {stem}* of {size} bytes at {offset}",
            )


def _as_wanted(data: mmap.mmap, wanted: list[tuple[str, int, int]]) -> bool:
    """Whether a tar holds just the files that are wanted, looking at all headers at once."""
    if not wanted:
        return False
    stems, offsets, sizes = zip(*wanted, strict=True)
    at, length = np.array(offsets), np.array(sizes)
    ends = at + (length + BLOCK - 1 & -BLOCK)
    if at[0] != BLOCK or (at[1:] != ends[:-1] + BLOCK).any() or ends[-1] + len(END) != len(data):
        return False
    blocks = np.frombuffer(b"".join([data[a - BLOCK : a] for a in offsets]), np.uint8)
    blocks = blocks.reshape(-1, BLOCK)
    digits = blocks[:, 124:135].astype(np.int64) - ord("0")
    if ((digits < 0) | (digits > 7)).any() or (digits @ 8 ** np.arange(10, -1, -1) != length).any():
        return False
    names = np.ascontiguousarray(blocks[:, :100]).view("S100")[:, 0].tolist()
    named = all(n.startswith(s.encode()) for n, s in zip(names, stems, strict=True))
    return named and sound_headers(blocks) and data[-len(END) :] == END


def _wanted(job: AuditJob) -> list[tuple[str, int, int]]:
    """Give how each member's name begins, its offset and its size, by the index."""
    index, wanted = job.index, []
    images = list(zip(index.image_offsets.tolist(), index.image_sizes.tolist(), strict=True))
    starts = index.image_start.tolist()
    texts = zip(index.json_offset.tolist(), index.json_size.tolist(), strict=True)
    for place, (offset, size) in enumerate(texts):
        key = f"{job.first + place:09d}."
        wanted.append((f"{key}json", offset, size))
        mine = images[starts[place] : starts[place + 1]]
        wanted += [(f"{key}{i}.", *where) for i, where in enumerate(mine)]
    return wanted


@dataclass(frozen=True)
class _Content:
    """What a pack's JSON says, and what its ids say of it."""

    ids: list[int]
    documents: list[dict[str, Any]]
    targets: list[tuple[int, int]]
    marks: list[int]


def _check_pack(
    job: AuditJob, place: int, data: mmap.mmap, columns: _Columns, faults: Faults
) -> None:
    """Read one pack, note its documents and compare it with the index."""
    where = f"pack {job.first + place} of {job.path}"
    start, size = int(job.index.json_offset[place]), int(job.index.json_size[place])
    try:
        content = _parse(data[start : start + size], job.spec.special.image)
        _note(job, place, content, columns)
    except (ValueError, KeyError, TypeError) as error:
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


def _parse(raw: bytes, image: int) -> _Content:
    fields = json.loads(raw)
    ids, documents = fields["ids"], fields["documents"]
    marks = [ids[d["start"] : d["start"] + d["length"]].count(image) for d in documents]
    return _Content(ids, documents, [(a, b) for a, b in fields["targets"]], marks)


def _note(job: AuditJob, place: int, content: _Content, columns: _Columns) -> None:
    """Append a pack's documents to the columns: all of them, or none when one makes no sense."""
    first, last = job.index.image_start[place : place + 2].tolist()
    stated = [document["images"] for document in content.documents]
    agree = content.marks == stated and sum(stated) == last - first
    sizes = job.index.image_sizes[first:last].tolist()
    starts = [0, *accumulate(stated)]
    names = [Document(d["source"], d["shard"], d["key"], d["uid"], ()) for d in content.documents]
    columns.identities += [identity(name.shard, name.key, name.uid) for name in names]
    columns.uids += map(uid_hash, names)
    columns.sizes += [sizes_mark(sizes[a:b]) for a, b in pairwise(starts)]
    columns.packs += [job.first + place] * len(names)
    at = job.first_image + first
    columns.image_at += [at + a if agree else -1 for a in starts[:-1]]
    columns.num_images += stated


def _disorder(content: _Content, source: str) -> Iterator[str]:
    """Say what is wrong with the documents of a pack, or with what it asks for."""
    end = 0
    spans = iter([*content.targets, _NO_SPAN])
    start, stop = next(spans)
    for document, marks in zip(content.documents, content.marks, strict=True):
        name = f"{document['shard']}/{document['key']}"
        if document["start"] != end:
            yield f"{name} starts at {document['start']}, the document before ends at {end}"
        end = document["start"] + document["length"]
        if marks != document["images"]:
            yield f"{name} has {marks} image marks and {document['images']} images"
        if document["source"] != source:
            yield f"{name} is of source {document['source']!r}, the manifest says {source!r}"
        while start < end:
            if not document["start"] <= start < stop <= end:
                yield f"{name} ends at {end} and has the target span {start}:{stop}"
            start, stop = next(spans)
    if start != _NO_SPAN[0]:
        yield f"the target span {start}:{stop} lies behind its documents"
    if end != len(content.ids):
        yield f"its documents end at {end} of {len(content.ids)} ids"
