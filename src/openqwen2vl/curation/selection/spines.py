"""Which samples a source has, in order, each with what is known of it shard by shard."""

from collections import Counter
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.scores import list_scores, read_facts, score_path
from openqwen2vl.curation.selection.frames import (
    Part,
    TableError,
    cut_files,
    read_parts,
    schema_of,
)
from openqwen2vl.curation.shards import RawShard, shard_name

SHARDS = 64  # raw shards looked at together: about 640,000 samples, as img2dataset cuts them

_THREE = np.array([list(f"{n:03d}".encode()) for n in range(1000)], np.uint8)
# Arrow's view of a short text: its length in four bytes, then the text.
_TAILS = np.pad(_THREE, ((0, 0), (10, 3))).view(np.uint64)
_SPINE = ("shard", "key", "uid")

Names = Mapping[str, str]
"""Columns of a place: the name there by the name to give."""


class RawShards:
    """Raw shards: the rows of any scorer are their samples; those of all scorers agree.

    Attributes:
        places: columns and types of each scorer that has seen some of the shards.
        said: what to call each scorer when it is spoken of.
        rejects: how many samples could not be read, by reason, of the pieces yielded last.
    """

    def __init__(self, source: str, shards: Sequence[RawShard], scores: Path) -> None:
        """Look which scorers have seen the shards.

        Args:
            source: name of the corpus.
            shards: of ``shards.shards_of``, rising by name.
            scores: holds the scores of all sources; it need not exist.

        Raises:
            TableError: a file of scores cannot be read.
        """
        self._source, self._shards, self._folder = source, shards, scores
        self.places: dict[str, Mapping[str, pl.DataType]] = {}
        self.said: dict[str, str] = {}
        self.rejects: Counter[str] = Counter()
        self._lacking: dict[str, list[str]] = {}
        names = [shard_name(shard) for shard in shards]
        for folder in sorted(path for path in (scores / source).glob("*") if path.is_dir()):
            files = {path.stem: path for path in list_scores(folder)}
            there = [name for name in names if name in files]
            if there:
                columns = schema_of(files[there[0]])
                self.places[folder.name] = {c: t for c, t in columns.items() if c not in _SPINE}
                self.said[folder.name] = str(folder)
                self._lacking[folder.name] = [name for name in names if name not in files]

    @property
    def whole(self) -> list[str]:
        """Give the scorers that have seen all shards."""
        return [scorer for scorer, lacking in self._lacking.items() if not lacking]

    def demand(self, scorer: str) -> None:
        """Raise when a scorer has not seen all shards.

        Raises:
            TableError: with how many and the first.
        """
        lacking = self._lacking[scorer]
        if lacking:
            raise TableError(
                f"{len(lacking)} of {len(self._shards)} shards of {self._source} have no scores of "
                f"{scorer}, the first is {lacking[0]}; score them first"
            )

    def measured_by(self, scorer: str) -> dict[str, Any]:
        """Give the identity of the scorer whose scores these are.

        Raises:
            TableError: the scores of two shards were made with different settings.
            ScoreError: a file is no file of scores.
        """
        first, *others = [shard_name(shard) for shard in self._shards]
        paths = (score_path(self._folder, self._source, scorer, name) for name in (first, *others))
        found = read_facts(next(paths)).scorer
        for name, path in zip(others, paths, strict=True):
            if read_facts(path).scorer != found:
                raise TableError(
                    f"the scores of {scorer} for {self._source} were made with other settings for "
                    f"shard {name} than for {first}; score again with overwrite=true"
                )
        return found

    def pieces(
        self,
        wanted: Mapping[str, Names],
        numbers: Container[int] | None = None,
        bare: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """Yield the samples of 64 shards at a time.

        Args:
            wanted: columns by scorer.
            numbers: of the pieces to yield, counted from 0; all when None.
            bare: whether shard, key and uid may be left out.

        Yields:
            ``shard``, ``key``, ``uid`` and the columns. Without any scorer the shards are walked.

        Raises:
            TableError: scores cannot be read, or are not of the same samples.
        """
        scorers = [name for name in wanted if wanted[name]] or self.whole[:1]
        self.rejects.clear()
        for number, start in enumerate(range(0, len(self._shards), SHARDS)):
            if numbers is not None and number not in numbers:
                continue
            shards = self._shards[start : start + SHARDS]
            if not scorers:
                yield self._walk(shards)
                continue
            names = [shard_name(shard) for shard in shards]
            first, *others = scorers
            identity = {"key": "key"} if bare else {"key": "key", "uid": "uid"}
            frame = self._read(first, names, {**identity, **wanted.get(first, {})})
            for scorer in others:
                frame = self._beside(frame, first, scorer, names, wanted[scorer])
            for name in names:
                path = score_path(self._folder, self._source, first, name)
                self.rejects.update(read_facts(path).rejects)
            yield frame

    def _walk(self, shards: Sequence[RawShard]) -> pl.DataFrame:
        rows = []
        for path in shards:
            for item in read_samples(path, self._source):
                if isinstance(item, Sample):
                    rows.append((item.shard, item.key, item.uid))
                else:
                    self.rejects[item.reason] += 1
        return pl.DataFrame(rows, dict.fromkeys(_SPINE, pl.String), orient="row")

    def _read(self, scorer: str, shards: Sequence[str], names: Names) -> pl.DataFrame:
        parts = [Part(score_path(self._folder, self._source, scorer, s), s) for s in shards]
        return read_parts(parts, names)

    def _beside(
        self, frame: pl.DataFrame, first: str, scorer: str, shards: Sequence[str], names: Names
    ) -> pl.DataFrame:
        """Put a scorer's columns beside another's: both have a row a sample, in order."""
        found = self._read(scorer, shards, {"key": "key", **names})
        if not found.select("shard", "key").equals(frame.select("shard", "key")):
            lengths = (part.group_by("shard").len() for part in (frame, found))
            differing = next(lengths).join(next(lengths), on=["shard", "len"], how="anti")["shard"]
            shard = min(differing) if len(differing) else shards[0]
            raise TableError(
                f"the scores of {first} and {scorer} for {self._source} are of different samples, "
                f"about shard {shard}; score again with overwrite=true"
            )
        return frame.hstack(found.select(*names))


class TableRows:
    """A source without shards: the rows of parquet files, which have a ``uid``.

    Attributes:
        places: columns and types, by the name of the table.
        said: what to call the table when it is spoken of.
        rejects: none.
    """

    def __init__(self, name: str, files: Sequence[Path]) -> None:
        """Look at the files.

        Args:
            name: what an expression may call the table.
            files: rising by name; a file's name without its ending stands for a shard.

        Raises:
            TableError: a file cannot be read, or the first has no ``uid``.
        """
        schema = schema_of(files[0])
        if schema.get("uid") != pl.String:
            raise TableError(
                f"{files[0]} has the columns {', '.join(schema)}; expected a uid of text: a source "
                "without shards is known by its uids"
            )
        self.places: dict[str, Mapping[str, pl.DataType]] = {name: schema}
        self.said: dict[str, str] = {name: str(files[0].parent)}
        self.rejects: Counter[str] = Counter()
        self._name, self._files = name, files

    def pieces(
        self,
        wanted: Mapping[str, Names],
        numbers: Container[int] | None = None,
        bare: bool = False,
    ) -> Iterator[pl.DataFrame]:
        """Yield about a million rows at a time; the key of a row is its number in its file.

        Args:
            wanted: columns by table: there is one.
            numbers: of the pieces to yield, counted from 0; all when None.
            bare: whether shard, key and uid may be left out; uids are most of what is read.

        Yields:
            ``shard``, ``key``, ``uid`` and the columns.

        Raises:
            TableError: a file cannot be read, or lacks a column.
        """
        columns = wanted.get(self._name, {})
        for number, parts in enumerate(cut_files(self._files)):
            if numbers is not None and number not in numbers:
                continue
            if bare and columns:
                yield read_parts(parts, columns)
                continue
            frame = read_parts(parts, {"uid": "uid", **columns})
            keys = pl.concat([row_keys(part.start, part.rows or 0) for part in parts])
            frame = frame.with_columns(key=keys)
            if frame["uid"].null_count():
                own = pl.concat_str("shard", pl.lit("/"), "key")
                frame = frame.with_columns(pl.col("uid").fill_null(own))
            yield frame


def row_keys(start: int, count: int) -> pl.Series:
    """Give rows of a table their keys: the number in nine digits, more where it needs them.

    Args:
        start: number of the first row.
        count: how many follow each other.
    """
    stop = start + count
    if stop > 10**9:
        return pl.int_range(start, stop, eager=True).cast(pl.String).str.zfill(9)
    # In whole thousands, which share their first six digits; then the ends are cut off.
    thousands = np.arange(start // 1000, -(-stop // 1000))
    heads = np.zeros((len(thousands), 16), np.uint8)
    heads[:, 0] = 9
    heads[:, 4:7] = _THREE[thousands // 1000]
    heads[:, 7:10] = _THREE[thousands % 1000]
    views = heads.view(np.uint64)[:, None] | _TAILS
    views = views.reshape(-1, 2)[start % 1000 :][:count]
    keys = pa.Array.from_buffers(pa.string_view(), count, [None, pa.py_buffer(views)])
    return pl.Series("key", keys, pl.String)


Spine = RawShards | TableRows
"""The samples of a source."""
