"""Overlong conversations, read again and shortened by whole exchanges, in index files of a run."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.engine.local import Mapper
from openqwen2vl.formats.corpora import read_shard
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.overlong import drop_last_turns
from openqwen2vl.formats.templates import Encoded, encode_document, template
from openqwen2vl.packing.choose import SHORTENED, Choice, choose
from openqwen2vl.packing.lengths import IndexFile, Lengths
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.scan import ScanJob, index_rows, load_saved


@dataclass(frozen=True)
class ShortenJob:
    """The overlong conversations of one raw shard.

    Attributes:
        scan: how the raw shard is read.
        file: its index file.
        rows: int64, the conversations' rows there.
        spec: says how long they may be.
        path: the index file to write for what fits.
    """

    scan: ScanJob
    file: IndexFile
    rows: NDArray[np.int64]
    spec: PackSpec
    path: Path

    def __str__(self) -> str:
        return str(self.scan)


@dataclass(frozen=True)
class Shortened:
    """What came of a raw shard's overlong conversations.

    Attributes:
        lengths: of the shortened documents.
        rows: int64, the rows of the whole ones, in the same order.
    """

    lengths: Lengths
    rows: NDArray[np.int64]


def shorten_shard(job: ShortenJob) -> Shortened:
    """Shorten the conversations of one raw shard, as far as their first exchange fits.

    Raises:
        ShardError: the raw shard changed since it was indexed.
        UserError: the disk is full.
    """
    found = list(_shortened(job))
    spec, stamp = job.spec, job.file.stamp
    file = IndexFile.of(
        job.path,
        job.file.shard,
        stamp,
        folder=job.scan.folder.name,
        context=spec.context,
        grid=spec.grid,
        rows=[row for row, _, _ in found],
    )
    file.write([index_rows((document, code) for _, document, code in found)])
    stamp.check()
    return Shortened(Lengths.read(file), np.array([row for row, _, _ in found], np.int64))


def _shortened(job: ShortenJob) -> Iterator[tuple[int, Document, Encoded]]:
    """Give row, document and code of each conversation that can be made to fit."""
    scan, spec = job.scan, job.spec
    tokenizer = load_saved(str(scan.tokenizer), scan.tokenizer_hash)
    chosen = template(scan.template)

    def code(document: Document) -> Encoded:
        return encode_document(document, tokenizer, chosen)

    items = read_shard(scan.shard, scan.source, scan.rules)
    before = 0
    for row in job.rows.tolist():
        document = next(islice(items, row - before, None))
        before = row + 1
        if isinstance(document, Document):
            short = drop_last_turns(document, spec.context, lambda d: spec.length(code(d)))
            if short is not None:
                yield row, short, code(short)


def shorten(
    choices: Sequence[Choice],
    scans: Sequence[ScanJob],
    conversations: Sequence[NDArray[np.bool_]],
    spec: PackSpec,
    selection: Selection,
    max_images: int | None,
    work: Path,
    mapper: Mapper,
) -> list[Choice]:
    """Put shortened conversations behind the index files that hold the whole ones.

    Args:
        choices: of the index files; the rows that go in shortened are marked, in place.
        scans: how the raw shards of these files are read.
        conversations: per file, bool, which rows have turns that could be dropped.
        spec: says how long documents may be.
        selection: which documents are wanted.
        max_images: images in a pack, at most.
        work: the run's own folder.
        mapper: runs a function over raw shards, results in order.

    Returns:
        The choices, and behind each one that of its shortened documents, where there are any.
    """
    jobs = {}
    for number, (choice, scan, spoken) in enumerate(
        zip(choices, scans, conversations, strict=True)
    ):
        rows = choice.too_long()
        rows = rows[spoken[rows]]
        if len(rows):
            path = work / f"shortened-{number:06d}.parquet"
            jobs[number] = ShortenJob(scan, choice.file, rows, spec, path)
    found = dict(zip(jobs, mapper(shorten_shard, list(jobs.values())), strict=True))
    joined = []
    for number, choice in enumerate(choices):
        joined.append(choice)
        if number in found:
            choice.reason[found[number].rows] = SHORTENED
            short = choose(found[number].lengths, spec, selection, max_images)
            joined.append(replace(short, shortened=True))
    return joined
