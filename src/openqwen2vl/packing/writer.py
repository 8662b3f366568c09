"""From a corpus to a folder of packs: scan, plan, write, and the manifest last."""

import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.errors import PackError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.listing import ListingShard, listing_shards
from openqwen2vl.formats.manifest import MANIFEST_NAME, Counts, Manifest, PackSpec
from openqwen2vl.formats.raw import raw_shards
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.formats.templates import template
from openqwen2vl.formats.tokens import special_tokens, tokenizer_hash
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.index import INDEX_NAME, write_index
from openqwen2vl.packing.packers import AUTO, check_packer
from openqwen2vl.packing.plan import SPLITS, WHOLE, Selection, Split, first_occurrences, plan_packs
from openqwen2vl.packing.scan import Scan, ScanJob, ScanReader, SplitScan, scan_shard
from openqwen2vl.packing.shards import ShardJob, WrittenShard, scans_needed, write_shard

REJECTS_NAME = "rejects.parquet"
UIDS_NAME = "uids.npy"
_WORK = ".work"
_LEDGER = pa.schema(
    {name: pa.string() for name in ("source", "shard", "key", "uid", "reason", "detail")}
)


@dataclass(frozen=True, kw_only=True)
class PackRequest:
    """What to pack, for what, and where to.

    Attributes:
        input: a folder of raw shards, or a LLaVA ``.json`` / ``.jsonl``.
        out: the folder to fill; ``out/validation`` takes the validation packs.
        source: name of the corpus in mixtures and ledgers.
        spec: what the packs are made for.
        selection: which documents to cover.
        image_root: folder of the images of a listing.
        window: documents planned together, at least.
        packs_per_shard: packs in a packed shard, at most.
        packer: one of ``packers.PACKERS``.
        max_images: images in a pack, at most; None means any number.
        overwrite: whether packs that ``out`` holds may go.
    """

    input: Path
    out: Path
    source: str
    spec: PackSpec
    selection: Selection = WHOLE
    image_root: Path | None = None
    window: int = 50_000
    packs_per_shard: int = 512
    packer: str = AUTO
    max_images: int | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        if self.window < 1 or self.packs_per_shard < 1:
            raise PackError(
                f"window is {self.window} and packs_per_shard {self.packs_per_shard}; "
                "both start at 1"
            )
        check_packer(self.packer, self.max_images)
        if self.out.resolve() == self.input.resolve():
            raise PackError(f"input and out are both {self.out}; give the packs another folder")


def make_spec(
    tokenizer: PreTrainedTokenizerFast, context: int, grid: int, template_name: str
) -> PackSpec:
    """Give the spec of packs that a tokenizer and a template make."""
    return PackSpec(
        context=context,
        grid=grid,
        tokenizer_hash=tokenizer_hash(tokenizer),
        vocab_size=len(tokenizer),
        template=template_name,
        template_hash=template(template_name).hash,
        special=special_tokens(tokenizer),
    )


def pack_folder(
    request: PackRequest, tokenizer: PreTrainedTokenizerFast, mapper: Mapper = map_inline
) -> Manifest:
    """Pack a corpus; the same request gives the same bytes, whatever maps the work.

    Args:
        request: what to do.
        tokenizer: the one that ``request.spec`` was made with.
        mapper: runs a function over shards, here or in other processes, results in order.

    Returns:
        The manifest of the training packs; ``out/validation`` has its own.

    Raises:
        UserError: bad input, packs already there, nothing left to pack, or a full disk.
    """
    shards = _shards(request)
    _clear(request)
    work = request.out / _WORK
    work.mkdir(parents=True)
    tokenizer.save_pretrained(work / "tokenizer")
    scans = list(mapper(scan_shard, _scan_jobs(request, shards, work)))
    folders = {"train": request.out}
    if request.selection.validation:
        folders["validation"] = request.out / "validation"
    manifests = {
        s: _write_split(request, s, folders[s], scans, mapper) for s in SPLITS if s in folders
    }
    shutil.rmtree(work)
    # Training's manifest is the last of all: with it the whole folder is complete.
    for split in reversed(list(manifests)):
        manifests[split].save(folders[split])
    return manifests["train"]


def _shards(request: PackRequest) -> Sequence[Path | ListingShard]:
    if request.input.suffix in (".json", ".jsonl"):
        return listing_shards(request.input, request.image_root)
    return raw_shards(request.input)


def _clear(request: PackRequest) -> None:
    """Make room: what an unfinished run left goes, finished packs only on request."""
    if (request.out / MANIFEST_NAME).exists() and not request.overwrite:
        raise PackError(
            f"{request.out} already holds packs; delete the folder or set overwrite=true, "
            "or give another out"
        )
    for folder in (request.out, request.out / "validation"):
        # The manifest goes first: without it the rest counts as unfinished.
        for name in (MANIFEST_NAME, INDEX_NAME, REJECTS_NAME, UIDS_NAME, "packed-*.tar", ".*.tmp"):
            for path in folder.glob(name):
                path.unlink()
    shutil.rmtree(request.out / _WORK, ignore_errors=True)


def _scan_jobs(
    request: PackRequest, shards: Sequence[Path | ListingShard], work: Path
) -> list[ScanJob]:
    return [
        ScanJob(
            number=number,
            shard=shard,
            source=request.source,
            spec=request.spec,
            selection=request.selection,
            tokenizer=work / "tokenizer",
            folder=work,
            max_images=request.max_images,
        )
        for number, shard in enumerate(shards)
    ]


def _write_split(
    request: PackRequest, split: Split, folder: Path, scans: list[Scan], mapper: Mapper
) -> Manifest:
    """Write everything of one split but its manifest, which is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = [scan.splits[split] for scan in scans]
    kept = first_occurrences([part.hashes for part in parts])
    rejects = [
        reject
        for part, mask in zip(parts, kept, strict=True)
        for reject in [*part.rejects, *_duplicates(part, mask, request.source)]
    ]
    outside = sum(scan.outside_part for scan in scans) if split == "train" else 0
    if split == "train" and not any(mask.any() for mask in kept):
        raise PackError(_nothing_left(request, rejects, outside))
    plan = plan_packs(
        [part.lengths for part in parts],
        [part.images for part in parts],
        kept,
        Limits(request.spec.context, request.max_images),
        window=request.window,
        packs_per_shard=request.packs_per_shard,
        packer=request.packer,
    )
    jobs = [
        ShardJob(
            path=folder / f"packed-{number:06d}.tar",
            source=request.source,
            plan=shard_plan,
            scans={s: parts[s].path for s in sorted(scans_needed(shard_plan.packs))},
        )
        for number, shard_plan in enumerate(plan.shards)
    ]
    written = list(mapper(write_shard, jobs))
    rows = [row for shard in written for row in shard.rows]
    write_index(rows, folder)
    _write_ledger(rejects, folder)
    _write_uids([part.hashes[mask] for part, mask in zip(parts, kept, strict=True)], folder)
    return _manifest(request, split, written, rejects, outside, plan.packers)


def _duplicates(part: SplitScan, kept: NDArray[np.bool_], source: str) -> list[Reject]:
    """Ledger entries for the documents whose uid an earlier one has."""
    rows = np.flatnonzero(~kept).tolist()
    if not rows:
        return []
    reader = ScanReader(part.path)
    found = map(reader.read, rows)
    return [
        Reject(source, d.shard, d.key, d.uid, "duplicate_uid", "an earlier document has this uid")
        for d in found
    ]


def _nothing_left(request: PackRequest, rejects: list[Reject], outside: int) -> str:
    reasons = ", ".join(f"{n} {reason}" for reason, n in _by_reason(rejects).items())
    return (
        f"nothing of {request.input} is left to pack: {len(rejects)} rejected "
        f"({reasons or 'none'}), {outside} outside the part; look at the shards, or widen part"
    )


def _by_reason(rejects: list[Reject]) -> dict[str, int]:
    return dict(sorted(Counter(reject.reason for reject in rejects).items()))


def _write_ledger(rejects: list[Reject], folder: Path) -> None:
    columns = {name: [getattr(reject, name) for reject in rejects] for name in _LEDGER.names}
    with atomic_file(folder / REJECTS_NAME) as file:
        pq.write_table(pa.table(columns, schema=_LEDGER), file)


def _write_uids(hashes: list[NDArray[np.uint64]], folder: Path) -> None:
    with atomic_file(folder / UIDS_NAME) as file:
        np.save(file, np.sort(np.concatenate(hashes)), allow_pickle=False)


def _manifest(
    request: PackRequest,
    split: Split,
    written: list[WrittenShard],
    rejects: list[Reject],
    outside: int,
    packers: dict[str, int],
) -> Manifest:
    rows = [row for shard in written for row in shard.rows]
    tokens, context = sum(row.tokens for row in rows), request.spec.context
    images, most = sum(row.images for row in rows), request.max_images
    return Manifest(
        spec=request.spec,
        source=request.source,
        part=request.selection.part,
        validation=request.selection.validation,
        split=split,
        counts=Counts(
            packs=len(rows),
            documents=sum(row.documents for row in rows),
            images=images,
            tokens=tokens,
            targets=sum(row.targets for row in rows),
        ),
        fill=tokens / (len(rows) * context) if rows else 0.0,
        lower_bound=-(-tokens // context),
        rejects=_by_reason(rejects),
        outside_part=outside,
        shards=tuple(shard.entry for shard in written),
        max_documents=max((row.documents for row in rows), default=0),
        max_images=max((row.images for row in rows), default=0),
        packers=packers,
        image_limit=most,
        image_lower_bound=None if most is None else -(-images // most),
    )
