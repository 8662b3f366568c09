"""Contamination: samples that show a picture of an evaluation, by its bytes or by its look."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.curation.duplicates.benchmark_pictures import BenchmarkPicture, benchmark_pictures
from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules, Removed
from openqwen2vl.curation.duplicates.near import first_within
from openqwen2vl.curation.duplicates.selected import Selected, Tables
from openqwen2vl.curation.duplicates.shown import Shown
from openqwen2vl.curation.measured import demand_alike
from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file

VERSION = 1
"""Goes up whenever the same pictures would be noted in another way."""

_FACTS = b"openqwen2vl"
_SCHEMA = pa.schema(
    {
        "benchmark": pa.string(),
        "file": pa.string(),
        "row": pa.int64(),
        "sha256": pa.binary(32),
        "phash": pa.uint64(),
        "blank_share": pa.float32(),
    }
)
_HITS = pa.schema(
    {
        **{name: pa.string() for name in ("source", "shard", "key", "uid", "benchmark", "file")},
        "row": pa.int64(),
        "bits": pa.int8(),
    }
)
_TOGETHER = 256
_NO_PLACE = ImageRef("", 0, 0, "img")


@dataclass(frozen=True)
class _Held(Sample):
    """A picture whose bytes are in memory, measured as those of samples are."""

    data: bytes

    def read(self) -> bytes:
        """Give the bytes."""
        return self.data


@dataclass(frozen=True)
class EvaluationIndex:
    """The hashes of evaluations.

    Attributes:
        table: a row a picture: ``benchmark``, ``file``, ``row``, ``sha256``, ``phash``,
            ``blank_share``; the last three are null for one that could not be read.
        scorer: fingerprint of what measured them; samples must have been measured alike.
    """

    table: pa.Table
    scorer: dict[str, Any]

    @classmethod
    def build(cls, evaluations: Mapping[str, Path], scorer: ImageScorer) -> Self:
        """Hash the pictures of evaluations.

        Args:
            evaluations: file or folder of each benchmark, by the name to give it.
            scorer: the one that measured the samples.

        Raises:
            ShardError: see ``benchmark_pictures``.
        """
        parts = [
            _measured(name, together, scorer)
            for name, path in evaluations.items()
            for together in _batched(benchmark_pictures(path))
        ]
        table = pa.concat_tables([_SCHEMA.empty_table(), *parts]).combine_chunks()
        return cls(table, scorer.fingerprint())

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read what ``write`` wrote.

        Raises:
            ShardError: it is missing, damaged or of another version.
        """
        try:
            table = pq.read_table(path)
            facts = json.loads(table.schema.metadata[_FACTS])
            table = table.cast(_SCHEMA).combine_chunks()
            version, scorer = facts["version"], facts["scorer"]
        except FileNotFoundError as error:
            raise ShardError(f"no index of evaluations {path}; build it first") from error
        except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
            raise ShardError(f"{path} is no index of evaluations; build it again") from error
        if version != VERSION:
            raise ShardError(f"{path} has version {version}, expected {VERSION}; build it again")
        return cls(table, scorer)

    def write(self, path: Path) -> None:
        """Write the index as parquet, atomically; the same pictures give the same bytes."""
        facts = json.dumps({"version": VERSION, "scorer": self.scorer}, sort_keys=True)
        with atomic_file(path) as file:
            pq.write_table(self.table.replace_schema_metadata({_FACTS: facts.encode()}), file)


@dataclass(frozen=True)
class Hits:
    """Samples that show a picture of an evaluation.

    Attributes:
        rows: int64 (h,), rising; a sample's number over all selections.
        entries: int64 (h,), the picture's row in the index: the first of the same bytes, else the
            first whose perceptual hash is within the distance.
        bits: int8 (h,), in how many bits the perceptual hashes differ; -1 for the same bytes.
    """

    rows: NDArray[np.int64]
    entries: NDArray[np.int64]
    bits: NDArray[np.int8]

    def removed(self, index: EvaluationIndex) -> Removed:
        """Give what ``deduplicate`` drops, with the evaluation's file and row as the detail."""
        found = index.table.take(pa.array(self.entries)).to_pylist()
        return Removed(
            self.rows,
            [
                f"{entry['benchmark']}/{entry['file']} row {entry['row']} ({_told(bits)})"
                for entry, bits in zip(found, self.bits.tolist(), strict=True)
            ],
        )

    def counts(self, index: EvaluationIndex) -> dict[str, dict[str, int]]:
        """Count by ``BENCHMARK/FILE``.

        Returns:
            ``pictures`` that it has, how many of them are ``unreadable`` and how many ``shown``
            by samples, and ``samples`` that show one; a sample counts for its first picture.
        """
        benchmarks, files = (index.table[name].to_pylist() for name in ("benchmark", "file"))
        names = [f"{a}/{b}" for a, b in zip(benchmarks, files, strict=True)]
        counts = {
            n: dict.fromkeys(("pictures", "unreadable", "shown", "samples"), 0) for n in names
        }
        sound = [index.table[name].is_valid().to_numpy() for name in ("sha256", "phash")]
        for name, read in zip(names, (sound[0] | sound[1]).tolist(), strict=True):
            counts[name]["pictures"] += 1
            counts[name]["unreadable"] += not read
        for entry, times in zip(*np.unique(self.entries, return_counts=True), strict=True):
            counts[names[entry]]["shown"] += 1
            counts[names[entry]]["samples"] += int(times)
        return counts

    def write(self, path: Path, selections: Sequence[Selected], index: EvaluationIndex) -> None:
        """Write a table of the hits: the sample, and the picture that it shows.

        Raises:
            ShardError: a selection is missing or damaged.
        """
        tables = Tables.open(selections)
        with atomic_file(path) as file, pq.ParquetWriter(file, _HITS) as writer:
            for number, selected in enumerate(selections):
                for first, batch in tables.batches(number, ["shard", "key", "uid"]):
                    here = slice(*np.searchsorted(self.rows, [first, first + batch.num_rows]))
                    places = pa.array(self.rows[here] - first)
                    entries = index.table.take(pa.array(self.entries[here]))
                    columns = {
                        "source": pa.array([selected.name] * len(places), pa.string()),
                        **{n: batch[n].take(places) for n in ("shard", "key", "uid")},
                        **{n: entries[n] for n in ("benchmark", "file", "row")},
                        "bits": pa.array(self.bits[here]),
                    }
                    if len(places):
                        writer.write_table(pa.table(columns).cast(_HITS))


def find_hits(
    selections: Sequence[Selected], index: EvaluationIndex, rules: DuplicateRules
) -> Hits:
    """Find the samples that show a picture of an evaluation; of conversations all are looked at.

    Args:
        selections: with ``sha256``, ``phash`` or both; nulls match nothing. One that tells which
            scorer measured it, as those of ``select`` do, must have been measured as the index was.
        index: of the evaluations.
        rules: whose ``distance`` and ``max_blank`` hold for samples and evaluations alike; ``by``
            does not matter.

    Raises:
        ShardError: a selection is missing or damaged, has neither hash, or was measured with other
            settings than the index.
    """
    tables = Tables.open(selections)
    for names in tables.columns:
        if "sha256" not in names and "phash" not in names:
            tables.demand("phash", "evaluations are found by it or sha256, of the image scorer")
    for selected in selections:
        demand_alike(selected, dict.fromkeys(("sha256", "phash", "blank_share"), index.scorer))
    shown = Shown.of(tables, rules.max_blank)
    entries, bits = _same_bytes(shown, index), np.full(len(shown.rows), -1, np.int8)
    asked = np.flatnonzero(shown.compared & (entries < 0))
    seen, places = _looks(index, rules.max_blank)
    found = first_within(shown.hashes[asked], seen, rules.distance)
    asked, found = asked[found >= 0], found[found >= 0]
    entries[asked] = places[found]
    bits[asked] = np.bitwise_count(shown.hashes[asked] ^ seen[found])
    hit = np.flatnonzero(entries >= 0)
    # Of a sample's pictures the first of the same bytes counts, else the first of a like look.
    hit = hit[np.lexsort((hit, bits[hit] >= 0, shown.rows[hit]))]
    rows, first = np.unique(shown.rows[hit], return_index=True)
    return Hits(rows, entries[hit[first]], bits[hit[first]])


def _same_bytes(shown: Shown, index: EvaluationIndex) -> NDArray[np.int64]:
    """Give for each picture the first of the evaluations' of the same sha256, or -1."""
    column = index.table["sha256"]
    places = np.flatnonzero(column.is_valid().to_numpy())
    digests = b"".join(column.drop_null().to_pylist())
    high, low = np.frombuffer(digests, np.uint64).reshape(-1, 4)[:, :2].T
    order = np.lexsort((places, low, high))
    high, low, places = high[order], low[order], places[order]
    found = np.full(len(shown.rows), -1, np.int64)
    if len(places):
        # No two digests share 64 bits but by the same bytes, so the first of a run is the one.
        at = np.minimum(np.searchsorted(high, shown.high), len(places) - 1)
        same = shown.hashed & (high[at] == shown.high) & (low[at] == shown.low)
        found[same] = places[at[same]]
    return found


def _looks(
    index: EvaluationIndex, max_blank: float
) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    """Give the perceptual hashes of pictures that are not blank, and their rows in the index."""
    shares = index.table["blank_share"].fill_null(0.0).to_numpy()
    column = index.table["phash"]
    places = np.flatnonzero(column.is_valid().to_numpy() & (shares <= max_blank))
    return column.fill_null(0).to_numpy()[places], places


def _measured(name: str, found: Sequence[BenchmarkPicture], scorer: ImageScorer) -> pa.Table:
    held = [
        _Held(name, picture.file, str(picture.row), "", "", _NO_PLACE, {}, picture.data or b"")
        for picture in found
    ]
    scores = scorer.score(held)
    columns = {
        "benchmark": [name] * len(found),
        "file": [picture.file for picture in found],
        "row": [picture.row for picture in found],
        **{n: scores.get(n, [None] * len(found)) for n in ("sha256", "phash", "blank_share")},
    }
    return pa.table(columns, schema=_SCHEMA)


def _batched(found: Iterator[BenchmarkPicture]) -> Iterator[list[BenchmarkPicture]]:
    while together := list(islice(found, _TOGETHER)):
        yield together


def _told(bits: int) -> str:
    return "the same bytes" if bits < 0 else f"{bits} of 64 bits differ"
