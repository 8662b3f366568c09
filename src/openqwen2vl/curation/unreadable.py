"""Ledgers of what could not be read: one parquet file a raw shard, and one a selected source.

``FOLDER/SOURCE/SHARD.parquet`` holds a row for each sample that is none, in the shard's order:
``shard``, ``key``, ``uid``, ``reason`` (of ``formats.rejects.REASONS``) and ``detail``. A shard
without any has a ledger of no rows, so that one that was looked through is known.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.samples import read_samples
from openqwen2vl.curation.scores import stamp
from openqwen2vl.curation.shards import RawShard, shard_name
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.locks import one_writer

VERSION = 1
"""Goes up whenever the same rejects would be written in another way."""

SCHEMA = pa.schema(dict.fromkeys(("shard", "key", "uid", "reason", "detail"), pa.string()))
"""Of every ledger; those of samples that selection and de-duplication dropped have the same."""

_FACTS = b"openqwen2vl"


@dataclass(frozen=True, kw_only=True)
class Ledger:
    """The ledger of one raw shard.

    Attributes:
        shard: a tar, a table, or a shard of conversations.
        source: name of the corpus.
        path: the file.
    """

    shard: RawShard
    source: str
    path: Path

    def __str__(self) -> str:
        return str(self.shard)

    def is_current(self) -> bool:
        """Whether it is there and speaks of the shard as it is now.

        Raises:
            ShardError: the raw shard is missing.
        """
        return _facts(self.path) == self._identity(stamp(self.shard))

    def write(self, rejects: Sequence[Reject], made_of: tuple[int, int]) -> None:
        """Write it, atomically; the same arguments give the same bytes.

        One that is there goes, though it speaks of the same shard: pictures may have come since.

        Args:
            rejects: of the shard, in its order.
            made_of: the stamp of the shard before it was read.

        Raises:
            UserError: the disk is full, or nothing may be written there.
        """
        identity = self._identity(made_of)
        with one_writer(self.path):
            rows = [{name: getattr(one, name) for name in SCHEMA.names} for one in rejects]
            table = pa.Table.from_pylist(rows, SCHEMA.with_metadata({_FACTS: identity}))
            with atomic_file(self.path) as file:
                pq.write_table(table, file, compression="zstd")

    def _identity(self, made_of: tuple[int, int]) -> bytes:
        size, mtime_ns = made_of
        told = {
            "version": VERSION,
            "source": self.source,
            "shard": shard_name(self.shard),
            "bytes": size,
            "mtime_ns": mtime_ns,
        }
        return json.dumps(told, sort_keys=True, ensure_ascii=False).encode()


def ledgers(folder: Path, source: str, shards: Iterable[RawShard]) -> list[Ledger]:
    """Give the ledgers of raw shards, whether they are there or not.

    Args:
        folder: holds the ledgers of all sources.
        source: name of the corpus.
        shards: of ``shards.shards_of``.
    """
    return [
        Ledger(shard=shard, source=source, path=folder / source / f"{shard_name(shard)}.parquet")
        for shard in shards
    ]


def look_through(ledger: Ledger) -> None:
    """Write the ledger of a raw shard, unless it is current; scoring does so on its way.

    Raises:
        ShardError: the raw shard is missing, or changes while it is read.
        UserError: the disk is full, or nothing may be written there.
    """
    if ledger.is_current():
        return
    before = stamp(ledger.shard)
    rejects = [i for i in read_samples(ledger.shard, ledger.source) if isinstance(i, Reject)]
    if stamp(ledger.shard) != before:
        raise ShardError(f"{ledger.shard} changed while it was read; start again when it is whole")
    ledger.write(rejects, before)


def join_ledgers(parts: Sequence[Ledger], path: Path) -> int:
    """Write the ledgers of a source's shards as one, in their order.

    Args:
        parts: all of them there.
        path: of the whole; it names neither times nor sizes, so the same rejects are equal bytes.

    Returns:
        Its rows.

    Raises:
        ShardError: a part cannot be read.
        UserError: the disk is full, or nothing may be written there.
    """
    rows = 0
    with atomic_file(path) as file, pq.ParquetWriter(file, SCHEMA, compression="zstd") as writer:
        for part in parts:
            try:
                table = pq.read_table(part.path, use_threads=False).cast(SCHEMA)
            except (OSError, pa.ArrowException, ValueError) as error:
                raise ShardError(
                    f"{part.path} cannot be read ({type(error).__name__}); remove it and run the "
                    "step select again"
                ) from error
            if table.num_rows:
                writer.write_table(table)
            rows += table.num_rows
    return rows


def _facts(path: Path) -> bytes | None:
    try:
        return (pq.read_schema(path).metadata or {}).get(_FACTS)
    except (OSError, pa.ArrowException):
        return None
