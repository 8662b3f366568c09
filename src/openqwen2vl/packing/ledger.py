"""What stands beside packed shards for those who compare corpora: rejects, uids, what was cut."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.rejects import REASONS, Reject
from openqwen2vl.packing.choose import Choice
from openqwen2vl.packing.plan import Split

_NAMES = ("source", "shard", "key", "uid")
_SCHEMA = pa.schema({name: pa.string() for name in (*_NAMES, "reason", "detail")})
_ROWS = 65_536  # in memory at a time


def count_reasons(choices: Sequence[Choice], split: Split) -> dict[str, int]:
    """Count what stays out of a split by reason, reasons sorted."""
    counts = np.zeros(len(REASONS) + 1, np.int64)
    for choice in choices:
        codes = choice.reason[choice.rejected(split)]
        counts += np.bincount(codes, minlength=len(counts))
    return dict(sorted((r, int(n)) for r, n in zip(REASONS, counts[1:], strict=True) if n))


def write_rejects(rejects: Iterator[Reject], path: Path) -> None:
    """Write the ledger, a row for each reject.

    Raises:
        UserError: the disk is full.
    """
    with atomic_file(path) as file, pq.ParquetWriter(file, _SCHEMA) as writer:
        while batch := list(islice(rejects, _ROWS)):
            columns = {name: [getattr(reject, name) for reject in batch] for name in _SCHEMA.names}
            writer.write_table(pa.table(columns, schema=_SCHEMA))


def write_shortened(choices: Sequence[Choice], split: Split, source: str, path: Path) -> None:
    """Write which documents of a split lost turns, a row for each.

    Raises:
        ShardError: an index file went away.
        UserError: the disk is full.
    """
    schema = pa.schema({name: pa.string() for name in _NAMES})
    with atomic_file(path) as file, pq.ParquetWriter(file, schema) as writer:
        for choice in choices:
            if choice.shortened:
                rows = np.flatnonzero(choice.kept(split))
                table = choice.file.read(["key", "uid"]).take(rows)
                fixed = ([name] * len(rows) for name in (source, choice.file.shard))
                columns = [pa.array(values, pa.string()) for values in fixed]
                writer.write_table(pa.table([*columns, *table.columns], schema=schema))


def write_uids(hashes: NDArray[np.uint64], path: Path) -> None:
    """Write the hashes of the packed documents in rising order.

    Raises:
        UserError: the disk is full.
    """
    with atomic_file(path) as file:
        np.save(file, np.sort(hashes), allow_pickle=False)
