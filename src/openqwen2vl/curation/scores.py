"""Scores on disk: one parquet file a raw shard and scorer, and what it was made from.

``FOLDER/SOURCE/SCORER/SHARD.parquet`` holds a row for each sample that could be read, in the shard's
order: ``key``, ``uid``, the scorer's columns, and ``SCORER_error``, which says why a row has nulls.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.shards import (
    RawShard,
    has_files_beside,
    image_root_of,
    shard_file,
    shard_name,
)
from openqwen2vl.formats.errors import ShardError, UserError
from openqwen2vl.formats.files import atomic_file

VERSION = 2
"""Goes up whenever the same scores would be stored in another way."""

_FACTS = b"openqwen2vl"


class ScoreError(UserError):
    """Scores that cannot be read, or that were made from something else."""


@dataclass(frozen=True, kw_only=True)
class ScoreFacts:
    """What a file of scores was made from.

    Attributes:
        source: name of the corpus.
        shard: the raw shard's file name without its ending.
        bytes: size of the raw shard.
        mtime_ns: time of its last change, in ns.
        scorer: ``scorer.identity``.
        rejects: how many samples could not be read, by reason.
        errors: how many rows lack a score.
        image_root: folder of the pictures that the shard names by path; None without one.
    """

    source: str
    shard: str
    bytes: int
    mtime_ns: int
    scorer: dict[str, Any]
    rejects: dict[str, int] = field(default_factory=dict)
    errors: int = 0
    image_root: str | None = None


def score_path(folder: Path, source: str, scorer: str, shard: str) -> Path:
    """Give the file of a shard's scores.

    Args:
        folder: holds the scores of all sources.
        source: name of the corpus.
        scorer: name of the scorer.
        shard: the raw shard's file name without its ending.
    """
    return folder / source / scorer / f"{shard}.parquet"


def list_scores(folder: Path) -> list[Path]:
    """List the files of scores in a scorer's folder by name; none when there is no folder."""
    return sorted(path for path in folder.glob("*.parquet") if not path.name.startswith("."))


def stamp(raw: RawShard) -> tuple[int, int]:
    """Give bytes and time of the last change, in ns, of a raw shard's file.

    Raises:
        ShardError: it is missing.
    """
    try:
        found = shard_file(raw).stat()
    except FileNotFoundError as error:
        raise ShardError(f"raw shard {raw} is missing") from error
    return found.st_size, found.st_mtime_ns


def write_scores(path: Path, table: pa.Table, facts: ScoreFacts) -> None:
    """Write the scores of one shard, atomically; the same arguments give the same bytes.

    Args:
        path: of ``score_path``.
        table: the columns, a row a sample.
        facts: what they were made from.

    Raises:
        UserError: the disk is full, or nothing may be written there.
    """
    told = {"version": VERSION, **asdict(facts)}
    if facts.image_root is None:
        del told["image_root"]
    text = json.dumps(told, sort_keys=True, ensure_ascii=False)
    table = table.replace_schema_metadata({_FACTS: text.encode()})
    with atomic_file(path) as file:
        pq.write_table(table, file, compression="zstd", row_group_size=max(1, table.num_rows))


def read_facts(path: Path) -> ScoreFacts:
    """Read what a file of scores was made from; its rows are not touched.

    Raises:
        ScoreError: it is no file of scores, or one of another version.
    """
    try:
        told = json.loads((pq.read_schema(path).metadata or {})[_FACTS])
        version = told.pop("version")
        if version == VERSION:
            return ScoreFacts(**told)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ScoreError(
            f"{path} is no file of scores ({type(error).__name__}); remove it, or say "
            "overwrite=true"
        ) from error
    raise ScoreError(
        f"{path} has version {version} of scores; this program writes {VERSION}: say "
        "overwrite=true to score again"
    )


def is_current(
    path: Path, raw: RawShard, source: str, scorer: dict[str, Any], overwrite: bool = False
) -> bool:
    """Whether a shard's scores are there and still hold.

    Args:
        path: of ``score_path``.
        raw: the raw shard as it is now.
        source: name of the corpus.
        scorer: ``scorer.identity``.
        overwrite: whether scores of another shard or scorer may be written over: they count as
            none then. So do those of a shard that lacked pictures in files of their own, which may
            have come since; see ``is_of_samples``.

    Raises:
        ScoreError: they were made from something else, which is named.
        ShardError: the raw shard is missing.
    """
    size, mtime_ns = stamp(raw)
    if not path.exists():
        return False
    try:
        facts = read_facts(path)
        faults = _differences(facts, source, raw, (size, mtime_ns), scorer)
    except ScoreError:
        if overwrite:
            return False
        raise
    if faults and not overwrite:
        raise ScoreError(
            f"{path} was made from something else:\n  " + "\n  ".join(faults) + "\n"
            "say overwrite=true to score again, or choose another out"
        )
    # The shard's own stamp does not tell of pictures beside it.
    may_have_come = overwrite and has_files_beside(raw) and "missing_image" in facts.rejects
    return not (faults or may_have_come)


def is_of_samples(
    path: Path,
    raw: RawShard,
    source: str,
    scorer: dict[str, Any],
    keys: Sequence[str],
    rejects: Mapping[str, int],
) -> bool:
    """Whether a shard's scores hold, and are of the very samples that it has now.

    Args:
        path: of ``score_path``.
        raw: the raw shard as it is now.
        source: name of the corpus.
        scorer: ``scorer.identity``.
        keys: of the samples, in the shard's order.
        rejects: how many others there are, by reason.

    Raises:
        ShardError: the raw shard is missing.
    """
    now = stamp(raw)
    try:
        facts = read_facts(path)
        if _differences(facts, source, raw, now, scorer) or facts.rejects != rejects:
            return False
        then = pq.read_table(path, columns=["key"], use_threads=False)["key"]
    except (ScoreError, OSError, pa.ArrowException):
        return False
    return bool(then.to_pylist() == list(keys))


def _differences(
    facts: ScoreFacts, source: str, raw: RawShard, now: tuple[int, int], scorer: dict[str, Any]
) -> list[str]:
    """Say what differs between what scores were made from and what is there now."""
    faults = []
    if facts.source != source or facts.shard != shard_name(raw):
        faults.append(f"{facts.source}/{facts.shard} then, {source}/{shard_name(raw)} now")
    elif facts.bytes != now[0]:
        faults.append(f"{raw} had {facts.bytes} bytes then, {now[0]} now")
    elif facts.mtime_ns != now[1]:
        faults.append(f"{raw} was last changed at {facts.mtime_ns} ns then, {now[1]} ns now")
    if facts.image_root != image_root_of(raw):
        faults.append(f"image_root was {facts.image_root} then, is {image_root_of(raw)} now")
    known = json.loads(json.dumps(scorer))
    for name in sorted({*facts.scorer, *known}):
        was, is_ = (told.get(name, "not there") for told in (facts.scorer, known))
        if was != is_:
            faults.append(f"scorer {known.get('name')}: {name} was {was} then, is {is_} now")
    return faults
