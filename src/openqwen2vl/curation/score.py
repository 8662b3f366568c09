"""Scoring: the raw shards of a source through scorers, each shard once."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from openqwen2vl.curation.batches import Batches
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.scorer import Scorer, error_column, identity
from openqwen2vl.curation.scores import (
    ScoreError,
    ScoreFacts,
    is_current,
    score_path,
    stamp,
    write_scores,
)
from openqwen2vl.curation.unreadable import Ledger, ledgers
from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.locks import one_writer

LEAST_SAMPLES = 100
"""Fewer samples in a shard say nothing of how a scorer does."""

MOST_ERRORS = 0.5
"""The share of a shard's samples that may lack a score; more are no longer the samples' fault."""

_runs = itertools.count()
# What this process scored with last: it has loaded weights, which a shard's job does not bring.
_resident: dict[tuple[str, str], Batches] = {}


@dataclass(frozen=True, kw_only=True)
class Task:
    """One scorer's part in a shard's job.

    Attributes:
        scorer: as it was built.
        identity: of the scorer.
        path: the file of scores to write.
    """

    scorer: Scorer
    identity: dict[str, Any]
    path: Path


@dataclass(frozen=True, kw_only=True)
class ScoreJob:
    """One raw shard to score.

    Attributes:
        shard: the tar, or the table with images in it.
        source: name of the corpus.
        tasks: scorers that have no scores of it yet.
        run: jobs of one run have the same scorers, whose weights a process loads once.
        ledger: takes what cannot be read; None: it is counted alone.
        overwrite: whether scores that were made from something else may go.
    """

    shard: Path
    source: str
    tasks: tuple[Task, ...]
    run: str
    ledger: Ledger | None = None
    overwrite: bool = False

    def __str__(self) -> str:
        return str(self.shard)


def score_source(
    shards: Sequence[Path],
    source: str,
    scorers: Sequence[Scorer],
    folder: Path,
    mapper: Mapper = map_inline,
    overwrite: bool = False,
    unreadable: Path | None = None,
) -> dict[str, list[Path]]:
    """Score every raw shard with every scorer that has no scores of it yet.

    What is there is looked at before anything is scored. The files' bytes depend neither on the
    mapper nor on when and how often a run was broken off, nor on which scorers run together;
    those that do read a shard once.

    Args:
        shards: of ``samples.shards_of``, with names of their own.
        source: name of the corpus.
        scorers: as they were built, with names of their own.
        folder: holds the scores of all sources.
        mapper: maps ``score_shard`` over jobs, each of one shard.
        overwrite: whether scores that were made from something else may go.
        unreadable: holds the ledgers of all sources, as of ``unreadable``: each shard that is read
            leaves one there; None: what cannot be read is counted alone.

    Returns:
        The files of each scorer by its name, in the order of the shards.

    Raises:
        ScoreError: there are scores that were made from something else, two shards or scorers
            have one name, a scorer takes no samples at a time, or it could not score more than
            ``MOST_ERRORS`` of a shard.
        ShardError: a raw shard is missing, or changes while it is read.
        UserError: the disk is full, or the memory does not hold a single sample.
        RuntimeError: a scorer failed on a sample that is not to blame; see ``batches``. Its shard
            has no scores then, those that were finished before keep theirs.
    """
    _check_names("shards", [shard.stem for shard in shards])
    _check_names("scorers", [scorer.name for scorer in scorers])
    for scorer in scorers:
        if scorer.batch_size < 1:
            raise ScoreError(f"batch_size of {scorer.name} is {scorer.batch_size}; it starts at 1")
    known = [(scorer, identity(scorer)) for scorer in scorers]
    run = f"{os.getpid()}-{next(_runs)}"
    paths: dict[str, list[Path]] = {scorer.name: [] for scorer in scorers}
    jobs = []
    noted = ledgers(unreadable, source, shards) if unreadable else [None] * len(shards)
    for shard, ledger in zip(shards, noted, strict=True):
        tasks = []
        for scorer, told in known:
            path = score_path(folder, source, scorer.name, shard.stem)
            paths[scorer.name].append(path)
            if not is_current(path, shard, source, told, overwrite):
                tasks.append(Task(scorer=scorer, identity=told, path=path))
        if tasks:
            jobs.append(
                ScoreJob(
                    shard=shard,
                    source=source,
                    tasks=tuple(tasks),
                    run=run,
                    ledger=ledger,
                    overwrite=overwrite,
                )
            )
    try:
        for _ in mapper(score_shard, jobs):
            pass
    finally:
        _resident.clear()
    return paths


def _check_names(kind: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ScoreError(f"two {kind} are called {twice[0]}; their scores need names of their own")


def score_shard(job: ScoreJob) -> list[Path]:
    """Do the tasks of one raw shard, but those that another process has done meanwhile.

    Returns:
        The files of scores.

    Raises:
        ScoreError: a scorer could not score more than ``MOST_ERRORS`` of the shard.
        ShardError: the raw shard is missing, or changes while it is read.
        UserError: the disk is full, or the memory does not hold a single sample.
        RuntimeError: a scorer failed on a sample that is not to blame.
    """
    items: _Items | None = None
    for task in job.tasks:
        with one_writer(task.path):
            if is_current(task.path, job.shard, job.source, task.identity, job.overwrite):
                continue
            items = items or _read(job)
            _write(job, task, items)
    return [task.path for task in job.tasks]


@dataclass(frozen=True)
class _Items:
    """What a raw shard held: samples, how many others by reason, and its stamp before that."""

    samples: list[Sample]
    rejects: dict[str, int]
    stamp: tuple[int, int]


def _read(job: ScoreJob) -> _Items:
    before = stamp(job.shard)
    samples: list[Sample] = []
    rejects: list[Reject] = []
    for item in read_samples(job.shard, job.source):
        if isinstance(item, Reject):
            rejects.append(item)
        else:
            samples.append(item)
    if job.ledger is not None and stamp(job.shard) == before:
        # Before the scores: where they are, a new start does not read the shard again.
        job.ledger.write(rejects, before)
    counts = Counter(reject.reason for reject in rejects)
    return _Items(samples, dict(sorted(counts.items())), before)


def _write(job: ScoreJob, task: Task, items: _Items) -> None:
    batches = _own(job.run, task.scorer)
    scorer, samples = batches.scorer, items.samples
    rows: dict[str, list[Any]] = {
        "key": [sample.key for sample in samples],
        "uid": [sample.uid for sample in samples],
        **{name: [] for name in (*scorer.columns, error_column(scorer))},
    }
    for at in range(0, len(samples), scorer.batch_size):
        for name, values in batches.score(samples[at : at + scorer.batch_size]).items():
            rows[name] += values
    table = _table(rows, scorer)
    if stamp(job.shard) != items.stamp:
        raise ShardError(f"{job.shard} changed while it was scored; start again when it is whole")
    errors = _count_errors(table, error_column(scorer), job.shard, scorer.name)
    facts = ScoreFacts(
        source=job.source,
        shard=job.shard.stem,
        bytes=items.stamp[0],
        mtime_ns=items.stamp[1],
        scorer=task.identity,
        rejects=items.rejects,
        errors=errors,
    )
    write_scores(task.path, table, facts)


def _count_errors(table: pa.Table, column: str, shard: Path, scorer: str) -> int:
    """Count the samples that lack a score; too large a share of them must not become final."""
    rows = table.num_rows
    errors: int = rows - table[column].null_count
    if rows >= LEAST_SAMPLES and errors > MOST_ERRORS * rows:
        first = table.filter(table[column].is_valid()).slice(0, 1).to_pylist()[0]
        raise ScoreError(
            f"{scorer} could not score {errors} of the {rows} samples of {shard}, the first, "
            f"{first['key']}, since: {first[column]}; at most {MOST_ERRORS:.0%} of a shard may lack "
            "a score: check the scorer's settings, or mend the shard or take it away"
        )
    return errors


def _own(run: str, scorer: Scorer) -> Batches:
    """Give what this process scores a run with: the scorers of its first jobs."""
    if any(key[0] != run for key in _resident):
        _resident.clear()
    return _resident.setdefault((run, scorer.name), Batches(scorer))


def _table(rows: dict[str, list[Any]], scorer: Scorer) -> pa.Table:
    """Lay rows out as columns of the types that the scorer names."""
    text = pa.string()
    types = {"key": text, "uid": text, **scorer.columns, error_column(scorer): text}
    columns = {name: pa.array(rows[name], kind) for name, kind in types.items()}
    return pa.table(columns)
