"""Scoring: the raw shards of a source through scorers, each shard once."""

import itertools
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from openqwen2vl.curation.batches import Batches
from openqwen2vl.curation.limits import check_pictures, count_errors
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.scorer import Scorer, error_column, identity, wants_gpu
from openqwen2vl.curation.scores import (
    ScoreError,
    ScoreFacts,
    is_current,
    is_of_samples,
    score_path,
    stamp,
    write_scores,
)
from openqwen2vl.curation.shards import RawShard, image_root_of, shard_name
from openqwen2vl.curation.unreadable import Ledger, ledgers
from openqwen2vl.engine.local import Mapper, map_inline
from openqwen2vl.engine.resident import forget, keep
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.locks import one_writer

_runs = itertools.count()


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
        shard: the tar, the table with images in it, or a shard of conversations.
        source: name of the corpus.
        tasks: scorers that have no scores of it yet; all of them run on a GPU, or none does.
        run: jobs of one run have the same scorers, whose weights a process loads once.
        ledger: takes what cannot be read; None: it is counted alone.
        overwrite: whether scores that were made from something else may go.
    """

    shard: RawShard
    source: str
    tasks: tuple[Task, ...]
    run: str
    ledger: Ledger | None = None
    overwrite: bool = False

    def __str__(self) -> str:
        return str(self.shard)

    @property
    def on_gpu(self) -> bool:
        """Whether it is to be done where there is a GPU."""
        return any(wants_gpu(task.scorer) for task in self.tasks)


def score_source(
    shards: Sequence[RawShard],
    source: str,
    scorers: Sequence[Scorer],
    folder: Path,
    mapper: Mapper = map_inline,
    overwrite: bool = False,
    unreadable: Path | None = None,
) -> dict[str, list[Path]]:
    """Score every raw shard with every scorer that has no scores of it yet.

    What is there is looked at before anything is scored. The files' bytes depend neither on the
    mapper nor on when and how often a run was broken off, nor on which scorers run together. Only
    where memory runs out do they: a process then goes on with fewer samples at once, and what a
    network computes may differ in its last bits.
    First come the scorers that run on a GPU, then the others with all cores, so that no GPU is
    held by who does not use it; those of either kind read a shard once.

    Args:
        shards: of ``shards.shards_of``, with names of their own.
        source: name of the corpus.
        scorers: as they were built, with names of their own.
        folder: holds the scores of all sources.
        mapper: maps ``score_shard`` over jobs, each of one shard.
        overwrite: whether scores that were made from something else may go. Shards that lacked
            pictures in files of their own are read again then, and scored if they have others.
        unreadable: holds the ledgers of all sources, as of ``unreadable``: each shard that is read
            leaves one there; None: what cannot be read is counted alone.

    Returns:
        The files of each scorer by its name, in the order of the shards.

    Raises:
        ScoreError: there are scores that were made from something else, two shards or scorers
            have one name, a scorer takes no samples at a time, or it could not score more than
            ``limits.MOST_ERRORS`` of a shard.
        ShardError: a raw shard is missing, or changes while it is read.
        UserError: the disk is full, or the memory does not hold a single sample.
        RuntimeError: a scorer failed on a sample that is not to blame; see ``batches``. Its shard
            has no scores then, those that were finished before keep theirs.
    """
    _check_names("shards", [shard_name(shard) for shard in shards])
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
            path = score_path(folder, source, scorer.name, shard_name(shard))
            paths[scorer.name].append(path)
            if not is_current(path, shard, source, told, overwrite):
                tasks.append(Task(scorer=scorer, identity=told, path=path))
        jobs += [
            ScoreJob(
                shard=shard,
                source=source,
                tasks=part,
                run=run,
                ledger=ledger,
                overwrite=overwrite,
            )
            for part in _by_kind(tasks)
        ]
    try:
        for on_gpu in (True, False):
            kind = [job for job in jobs if job.on_gpu == on_gpu]
            for _ in mapper(score_shard, kind) if kind else ():
                pass
    finally:
        forget()
    return paths


def _by_kind(tasks: Sequence[Task]) -> list[tuple[Task, ...]]:
    """Part tasks into those that want no GPU and those that do; nothing of a kind without any."""
    kinds = (
        tuple(task for task in tasks if wants_gpu(task.scorer) == gpu) for gpu in (False, True)
    )
    return [part for part in kinds if part]


def _check_names(kind: str, names: list[str]) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ScoreError(f"two {kind} are called {twice[0]}; their scores need names of their own")


def score_shard(job: ScoreJob) -> list[Path]:
    """Do the tasks of one raw shard, but those that another process has done meanwhile.

    Returns:
        The files of scores.

    Raises:
        ScoreError: a scorer could not score more than ``limits.MOST_ERRORS`` of the shard, or
            so many conversations lack a picture.
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
            if not (job.overwrite and _holds_still(job, task, items)):
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
    check_pictures(job.shard, rejects, len(samples))
    if job.ledger is not None and stamp(job.shard) == before:
        # Before the scores: where they are, a new start does not read the shard again.
        job.ledger.write(rejects, before)
    counts = Counter(reject.reason for reject in rejects)
    return _Items(samples, dict(sorted(counts.items())), before)


def _holds_still(job: ScoreJob, task: Task, items: _Items) -> bool:
    """Whether scores that were in doubt, since pictures were missing, are of the samples of now."""
    keys = [sample.key for sample in items.samples]
    return is_of_samples(task.path, job.shard, job.source, task.identity, keys, items.rejects)


def _write(job: ScoreJob, task: Task, items: _Items) -> None:
    batches = keep(job.run, task.scorer.name, partial(Batches, task.scorer))
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
    errors = count_errors(table, error_column(scorer), job.shard, scorer.name)
    facts = ScoreFacts(
        source=job.source,
        shard=shard_name(job.shard),
        bytes=items.stamp[0],
        mtime_ns=items.stamp[1],
        image_root=image_root_of(job.shard),
        scorer=task.identity,
        rejects=items.rejects,
        errors=errors,
    )
    write_scores(task.path, table, facts)


def _table(rows: dict[str, list[Any]], scorer: Scorer) -> pa.Table:
    """Lay rows out as columns of the types that the scorer names."""
    text = pa.string()
    types = {"key": text, "uid": text, **scorer.columns, error_column(scorer): text}
    columns = {name: pa.array(rows[name], kind) for name, kind in types.items()}
    return pa.table(columns)
