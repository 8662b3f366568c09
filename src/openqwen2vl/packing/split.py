"""One split of a folder of packs: from its plan to packed shards and what stands beside them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.manifest import Counts, Manifest, ShardEntry
from openqwen2vl.packing.choose import Choice, read_rejects
from openqwen2vl.packing.finished import WrittenShard, remove_others
from openqwen2vl.packing.index import join_indexes
from openqwen2vl.packing.layout import Layout, Window, plan_windows
from openqwen2vl.packing.ledger import count_reasons, write_rejects, write_shortened, write_uids
from openqwen2vl.packing.plan import Split
from openqwen2vl.packing.request import PackRequest
from openqwen2vl.packing.shards import ShardGroup, ShardJob, write_shards
from openqwen2vl.packing.space import packed_bytes

REJECTS_NAME = "rejects.parquet"
UIDS_NAME = "uids.npy"
SHORTENED_NAME = "shortened.parquet"


@dataclass(frozen=True)
class SplitPlan:
    """What is to be written of a split.

    Attributes:
        request: what to pack.
        split: which split.
        folder: takes its packs.
        work: keeps notes of its finished shards.
        choices: of all index files.
        windows: how the documents are laid into packs.
        groups: the packed shards, as they go to processes.
    """

    request: PackRequest
    split: Split
    folder: Path
    work: Path
    choices: Sequence[Choice]
    windows: list[Window]
    groups: list[ShardGroup]

    def take_over(self) -> int:
        """Remove what an earlier start left and this one cannot use; gives the bytes to write."""
        finished, needed, spill = [], 0, 0
        for group in self.groups:
            todo = []
            for job in group.jobs:
                shard = job.finished()
                if shard is None:
                    todo.append(job)
                else:
                    finished.append(shard)
            sizes = [self._bytes(job.layout) for job in todo]
            needed += sum(sizes)
            if group.spill is not None:
                spill = max(spill, sum(sizes))
        remove_others(self.folder, self.work, finished)
        return needed + spill

    def _bytes(self, layout: Layout) -> int:
        """Estimate what a packed shard takes up."""
        tokens = images = image_bytes = 0
        for number in np.unique(layout.files).tolist():
            choice, rows = self.choices[number], layout.rows[layout.files == number]
            tokens += int(choice.lengths[rows].sum())
            images += int(choice.images[rows].sum())
            image_bytes += int(choice.image_bytes[rows].sum())
        ids = tokens - images * (self.request.spec.tokens_per_image - 1)
        return packed_bytes(len(layout.starts) - 1, len(layout.rows), ids, image_bytes)

    def write(self, mapper: Mapper) -> Manifest:
        """Write everything but the manifest, which is given back.

        Raises:
            ShardError: a raw shard changed since it was indexed.
            UserError: the disk is full.
        """
        request, split = self.request, self.split
        written = [shard for group in mapper(write_shards, self.groups) for shard in group]
        join_indexes((shard.folder for shard in written), self.folder)
        context, most = request.spec.context, request.max_images
        write_rejects(
            (
                reject
                for choice in self.choices
                for reject in read_rejects(choice, split, request.source, context, most)
            ),
            self.folder / REJECTS_NAME,
        )
        if request.overlong != "reject":
            path = self.folder / SHORTENED_NAME
            write_shortened(self.choices, split, request.source, path)
        hashes = [choice.hashes[choice.kept(split)] for choice in self.choices]
        write_uids(np.concatenate(hashes), self.folder / UIDS_NAME)
        return self._manifest(written)

    def _manifest(self, written: list[WrittenShard]) -> Manifest:
        counts = Counts(
            packs=sum(shard.entry.packs for shard in written),
            documents=sum(shard.documents for shard in written),
            images=sum(shard.images for shard in written),
            tokens=sum(shard.tokens for shard in written),
            targets=sum(shard.targets for shard in written),
        )
        return describe(
            self.request,
            self.split,
            self.choices,
            [window.packer for window in self.windows],
            counts,
            shards=tuple(shard.entry for shard in written),
            max_documents=max((shard.max_documents for shard in written), default=0),
            max_images=max((shard.max_images for shard in written), default=0),
        )


def describe(
    request: PackRequest,
    split: Split,
    choices: Sequence[Choice],
    packers: Sequence[str],
    counts: Counts,
    *,
    shards: tuple[ShardEntry, ...],
    max_documents: int,
    max_images: int,
) -> Manifest:
    """Give the manifest of a split's packs.

    Args:
        request: what was packed.
        split: which split.
        choices: of all index files.
        packers: which packer laid each window out.
        counts: totals over the packs.
        shards: the packed shards; none when nothing was written.
        max_documents: most documents in one pack.
        max_images: most images in one pack.
    """
    context, most = request.spec.context, request.max_images
    shortened = [choice.kept(split).sum() for choice in choices if choice.shortened]
    return Manifest(
        spec=request.spec,
        source=request.source,
        part=request.selection.part,
        validation=request.selection.validation,
        split=split,
        counts=counts,
        fill=counts.tokens / (counts.packs * context) if counts.packs else 0.0,
        lower_bound=-(-counts.tokens // context),
        rejects=count_reasons(choices, split),
        outside_part=sum(c.outside for c in choices) if split == "train" else 0,
        shards=shards,
        max_documents=max_documents,
        max_images=max_images,
        packers={name: packers.count(name) for name in sorted(packers)},
        image_limit=most,
        image_lower_bound=None if most is None else -(-counts.images // most),
        interleaved=request.rules,
        overlong=request.overlong,
        shortened=int(sum(shortened)),
    )


def lay_out(
    request: PackRequest, split: Split, choices: Sequence[Choice], mapper: Mapper
) -> list[Window]:
    """Lay a split's documents into packs as a request asks for.

    Args:
        request: what to pack.
        split: which split.
        choices: of all index files.
        mapper: runs a function over windows, results in order.

    Raises:
        PackError: a packer that cannot do this.
        UserError: what the packer needs is not installed.
    """
    return plan_windows(
        choices,
        split,
        request.limits,
        mapper,
        window=request.window,
        packs_per_shard=request.packs_per_shard,
        packer=request.packer,
    )


def plan_split(
    request: PackRequest,
    split: Split,
    choices: Sequence[Choice],
    mapper: Mapper,
    work: Path,
    *,
    tables: bool,
) -> SplitPlan:
    """Plan a split; nothing is written.

    Args:
        request: what to pack.
        split: which split.
        choices: of all index files.
        mapper: runs a function over windows, results in order.
        work: the run's own folder.
        tables: whether images may lie in tables, which one process should read but once.

    Raises:
        PackError: a packer that cannot do this.
        UserError: what the packer needs is not installed.
    """
    windows = lay_out(request, split, choices, mapper)
    folder, work = request.out / ("" if split == "train" else split), work / split
    groups: list[ShardGroup] = []
    number = 0
    for window in windows:
        jobs = []
        for layout in window.layouts:
            name = f"packed-{number:06d}.tar"
            files = {f: choices[f].file for f in np.unique(layout.files).tolist()}
            jobs.append(
                ShardJob(
                    folder / name,
                    work / Path(name).stem,
                    request.source,
                    request.spec,
                    layout,
                    files,
                )
            )
            number += 1
        if tables:
            groups.append(ShardGroup(tuple(jobs), work / f"images-{jobs[0].path.stem}"))
        else:
            groups += [ShardGroup((job,)) for job in jobs]
    return SplitPlan(request, split, folder, work, choices, windows, groups)
