"""What a folder of packs holds in all: its packed documents, its ledger, and what is wrong there."""

import json
from collections import Counter
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.formats.rejects import REASONS
from openqwen2vl.packing.index import INDEX_NAME, Index
from openqwen2vl.packing.plan import Split, name_hash
from openqwen2vl.packing.proof.audit import Audit, AuditJob, audit_shard, no_documents
from openqwen2vl.packing.proof.census import identities
from openqwen2vl.packing.proof.faults import Faults
from openqwen2vl.packing.split import REJECTS_NAME, SHORTENED_NAME, UIDS_NAME


@dataclass(frozen=True)
class Ledger:
    """The rows of ``rejects.parquet`` or ``shortened.parquet``.

    Attributes:
        rows: source, shard, key and uid of each, and reason and detail of rejects.
        identities: uint64 (r,), see ``census.identity``.
    """

    rows: list[dict[str, str]]
    identities: NDArray[np.uint64]

    def reasons(self) -> dict[str, int]:
        """Count the rows by reason, as the manifest does."""
        return dict(sorted(Counter(row["reason"] for row in self.rows).items()))


@dataclass(frozen=True)
class Holdings:
    """One split of a pack folder, read to the last document.

    Attributes:
        path: the folder.
        split: which split it is.
        manifest: its manifest.
        index: its index.
        audit: its documents, joined over the shards.
        ledger: its rejects.
        shortened: its documents that lost turns.
        faults: what was found so far.
    """

    path: Path
    split: Split
    manifest: Manifest
    index: Index
    audit: Audit
    ledger: Ledger
    shortened: Ledger
    faults: Faults

    def name(self, place: int) -> str:
        """Name a document by its place among those packed, then those of the ledger."""
        if place >= len(self.audit.packs):
            row = self.ledger.rows[place - len(self.audit.packs)]
            return f"{row['shard']}/{row['key']} (uid {row['uid']}) in {self.path / REJECTS_NAME}"
        pack, shard, number, content = self._content(place)
        document = content["documents"][number]
        named = f"{document['shard']}/{document['key']} (uid {document['uid']})"
        return f"{named} in pack {pack} of {shard}"

    def reason(self, place: int) -> str | None:
        """Give why something is left out, by its place as in ``name``; None for what is packed."""
        packed = len(self.audit.packs)
        return self.ledger.rows[place - packed]["reason"] if place >= packed else None

    def text(self, place: int) -> tuple[list[int], list[tuple[int, int]]]:
        """Give a packed document's ids, and its target spans counted from the first of them."""
        _, _, number, content = self._content(place)
        document = content["documents"][number]
        start, stop = document["start"], document["start"] + document["length"]
        spans = [(a - start, b - start) for a, b in content["targets"] if start <= a < stop]
        return content["ids"][start:stop], spans

    def _content(self, place: int) -> tuple[int, Path, int, dict[str, Any]]:
        """Read the pack of a document: its number, its shard, which document it is, and its JSON."""
        pack = int(self.audit.packs[place])
        shard = self.path / self.index.shards[self.index.shard[pack]]
        start, size = int(self.index.json_offset[pack]), int(self.index.json_size[pack])
        with shard.open("rb") as file:
            file.seek(start)
            content = json.loads(file.read(size))
        return pack, shard, place - int(np.searchsorted(self.audit.packs, pack)), content


def read_holdings(path: Path, split: Split, mapper: Mapper, *, texts: bool = False) -> Holdings:
    """Read a folder of packs and compare it with its own manifest, index and lists.

    Args:
        path: the folder.
        split: the one that it should hold.
        mapper: runs a function over shards, results in order.
        texts: whether to note what the documents' ids and target spans are.

    Raises:
        ShardError: manifest, index or ledger is missing or damaged.
        PackError: another format version, or the folder is not of this split.
    """
    manifest, index = Manifest.load(path), Index.load(path)
    if manifest.split != split:
        raise PackError(
            f"{path} holds the {manifest.split} split; name the folder above it, which has both"
        )
    faults = Faults()
    if len(index.image_offsets) != index.image_start[-1]:
        faults.add(
            "index",
            f"{path / INDEX_NAME} places {len(index.image_offsets)} images and counts "
            f"{index.image_start[-1]}",
        )
    audit = _joined(list(mapper(audit_shard, _jobs(path, manifest, index, faults, texts))))
    faults.merge(audit.faults)
    ledger = _read_ledger(path / REJECTS_NAME)
    cut = manifest.overlong != "reject"
    shortened = _read_ledger(path / SHORTENED_NAME) if cut else Ledger([], identities(iter(())))
    holdings = Holdings(path, split, manifest, index, audit, ledger, shortened, faults)
    _check_counts(holdings)
    _check_uids(holdings)
    _check_ledger(holdings)
    _check_shortened(holdings)
    return holdings


def _jobs(
    path: Path, manifest: Manifest, index: Index, faults: Faults, texts: bool
) -> list[AuditJob]:
    """Cut the index into the manifest's shards."""
    names = [entry.name for entry in manifest.shards]
    for name in sorted(set(index.shards) ^ set(names)):
        where = "the manifest" if name in names else "the index"
        faults.add("manifest", f"{path / name} is named by {where} alone")
    for found in sorted(path.glob("packed-*.tar")):
        if found.name not in names:
            faults.add("manifest", f"{found} is not in the manifest")
    jobs = []
    for entry in manifest.shards:
        code = index.shards.index(entry.name) if entry.name in index.shards else -1
        rows = np.flatnonzero(index.shard == code)
        first, stop = (int(rows[0]), int(rows[-1]) + 1) if len(rows) else (0, 0)
        if stop - first != len(rows):
            faults.add("index", f"{path / INDEX_NAME}: the packs of {entry.name} are not together")
        jobs.append(
            AuditJob(
                path=path / entry.name,
                entry=entry,
                spec=manifest.spec,
                source=manifest.source,
                first=first,
                index=_cut(index, first, stop),
                first_image=int(index.image_start[first]),
                texts=texts,
            )
        )
    return jobs


def _cut(index: Index, first: int, stop: int) -> Index:
    begin, end = index.image_start[first], index.image_start[stop]
    columns: dict[str, Any] = {
        name: getattr(index, name)[first:stop]
        for name in ("json_offset", "json_size", "tokens", "targets", "images", "documents")
    }
    return replace(
        index,
        shard=index.shard[first:stop],
        image_start=index.image_start[first : stop + 1] - begin,
        image_offsets=index.image_offsets[begin:end],
        image_sizes=index.image_sizes[begin:end],
        **columns,
    )


def _joined(parts: list[Audit]) -> Audit:
    """Lay the audits of a folder's shards end to end."""
    faults = Faults()
    for part in parts:
        faults.merge(part.faults)
    names = [item.name for item in fields(Audit) if item.name != "faults"]
    columns: dict[str, Any] = {
        name: np.concatenate([getattr(part, name) for part in [no_documents(faults), *parts]])
        for name in names
    }
    return Audit(**columns, faults=faults)


def _read_ledger(path: Path) -> Ledger:
    try:
        rows = pq.read_table(path).to_pylist()
        names = [(row["shard"], row["key"], row["uid"]) for row in rows]
    except (OSError, pa.ArrowInvalid, KeyError) as error:
        raise ShardError(f"{path} cannot be read ({error}); run pack again") from error
    return Ledger(rows, identities(iter(names)))


def _check_counts(holdings: Holdings) -> None:
    """Compare the totals of index, audit and ledger with the manifest's."""
    index, manifest = holdings.index, holdings.manifest
    counts = manifest.counts
    tokens = int(index.tokens.sum())
    pairs = {
        "packs": (len(index.shard), counts.packs),
        "documents": (len(holdings.audit.identities), counts.documents),
        "images": (int(index.images.sum()), counts.images),
        "tokens": (tokens, counts.tokens),
        "targets": (int(index.targets.sum()), counts.targets),
        "documents in the largest pack": (
            int(index.documents.max(initial=0)),
            manifest.max_documents,
        ),
        "images in the largest pack": (int(index.images.max(initial=0)), manifest.max_images),
        "packs at least": (-(-tokens // manifest.spec.context), manifest.lower_bound),
        "rejects": (holdings.ledger.reasons(), manifest.rejects),
        "shortened documents": (len(holdings.shortened.rows), manifest.shortened),
    }
    for name, (found, said) in pairs.items():
        if found != said:
            holdings.faults.add(
                "manifest", f"{holdings.path}: {found} {name}, the manifest says {said}"
            )
    fill = tokens / max(1, len(index.shard) * manifest.spec.context)
    if abs(fill - manifest.fill) > 1e-9:
        holdings.faults.add(
            "manifest",
            f"{holdings.path}: fill is {fill:.4%}, the manifest says {manifest.fill:.4%}",
        )


def _check_uids(holdings: Holdings) -> None:
    """Compare ``uids.npy`` with the documents, and the documents with each other."""
    path, faults = holdings.path / UIDS_NAME, holdings.faults
    found = np.sort(holdings.audit.uids)
    try:
        stated = np.load(path, allow_pickle=False)
    except (OSError, ValueError) as error:
        faults.add("uids", f"{path} cannot be read ({error})")
    else:
        if not np.array_equal(stated, found):
            apart = len(np.setxor1d(stated, found)) or abs(len(stated) - len(found))
            faults.add("uids", f"{path} and the packed documents differ in {apart} uids", apart)
    # One document packed twice is told as a duplicate; here it is about two with one uid.
    _, first = np.unique(holdings.audit.identities, return_index=True)
    twice = len(first) - len(np.unique(holdings.audit.uids[first]))
    if twice:
        faults.add("uids", f"{holdings.path}: {twice} packed documents share a uid", twice)


def _check_ledger(holdings: Holdings) -> None:
    """Look at the reasons: known ones only, and a duplicate needs the document that came first."""
    packed = set(holdings.audit.uids.tolist())
    for row in holdings.ledger.rows:
        name = f"{holdings.path / REJECTS_NAME}: {row['shard']}/{row['key']}"
        if row["reason"] not in REASONS:
            holdings.faults.add("ledger", f"{name} has the unknown reason {row['reason']!r}")
        elif row["reason"] == "duplicate_uid":
            names = (row[name] for name in ("source", "shard", "key", "uid"))
            if name_hash(*names) not in packed:
                holdings.faults.add(
                    "ledger", f"{name} is left out as a duplicate of uid {row['uid']}, unpacked"
                )


def _check_shortened(holdings: Holdings) -> None:
    """Make sure that what is told to be shortened is packed, and told once."""
    stated = holdings.shortened.identities
    _, first = np.unique(stated, return_index=True)
    wrong = ~np.isin(stated, holdings.audit.identities)
    wrong[np.setdiff1d(np.arange(len(stated)), first)] = True
    for place in np.flatnonzero(wrong).tolist():
        row = holdings.shortened.rows[place]
        holdings.faults.add(
            "shortened",
            f"{holdings.path / SHORTENED_NAME}: {row['shard']}/{row['key']} is in no pack, or is "
            "told twice",
        )
