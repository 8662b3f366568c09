"""The length index: what packing needs to know of a raw shard, made once and kept between runs.

One parquet file for each raw shard, with a row for each of its documents and rejects in the shard's
order. Nothing in it depends on grid, context, part or validation, so that packing the same corpus
for others tokenises nothing.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.rejects import REASONS

VERSION = 3
"""Goes up whenever the same raw shard would be read, laid out or stored in another way."""

SCHEMA = pa.schema(
    {
        "key": pa.string(),
        "uid": pa.string(),
        "hash": pa.uint64(),
        "part": pa.float64(),
        "validation": pa.float64(),
        "conversation": pa.bool_(),
        "num_ids": pa.int32(),
        "num_images": pa.int32(),
        "image_bytes": pa.int64(),
        "reason": pa.int8(),
        "detail": pa.string(),
        "ids": pa.list_(pa.int32()),
        "targets": pa.list_(pa.int32()),
        "paths": pa.list_(pa.string()),
        "offsets": pa.list_(pa.int64()),
        "sizes": pa.list_(pa.int64()),
        "extensions": pa.list_(pa.string()),
        "scores": pa.string(),
    }
)
"""Columns of an index file.

``hash`` is ``plan.uid_hash``, ``part`` and ``validation`` are ``plan.uid_fraction`` of the uid;
NaN where the rest of a shard is lost, which belongs to every part. ``ids`` are compact, ``targets``
the flat edges of spans over them. ``image_bytes`` is what the images take up in a tar. ``reason``
is 0 for a document, else the number of ``reason_code``. ``scores`` is JSON, null for none.
"""

_NUMBERS = (
    "num_ids",
    "num_images",
    "image_bytes",
    "hash",
    "part",
    "validation",
    "conversation",
    "reason",
)
_IDENTITY = b"openqwen2vl.lengths"


def reason_code(reason: str) -> int:
    """Give the number, from 1 on, by which arrays and index files say why something is left out."""
    return REASONS.index(reason) + 1


@dataclass(frozen=True)
class Stamp:
    """A file as it was: its absolute path, bytes, and the time of its last change in ns."""

    path: str
    size: int
    mtime_ns: int

    @classmethod
    def of(cls, path: Path) -> Self:
        """Look at a file.

        Raises:
            ShardError: it is missing.
        """
        try:
            found = path.stat()
        except FileNotFoundError as error:
            raise ShardError(f"raw shard {path} is missing; check the path of the input") from error
        return cls(str(path.absolute()), found.st_size, found.st_mtime_ns)

    def check(self) -> None:
        """Make sure that the file is still as it was.

        Raises:
            ShardError: it changed or went away.
        """
        found = Stamp.of(Path(self.path))
        if found != self:
            raise ShardError(
                f"{self.path} changed while it was being packed: {found.size} bytes of time "
                f"{found.mtime_ns} ns, where there were {self.size} bytes of {self.mtime_ns} ns; "
                "run pack again"
            )


@dataclass(frozen=True)
class IndexFile:
    """Where the index of a raw shard lies, and what it must be of to be used.

    Attributes:
        path: the parquet file.
        shard: the name that its documents give their raw shard.
        stamp: the raw shard's file.
        identity: everything that its rows depend on, as text.
    """

    path: Path
    shard: str
    stamp: Stamp
    identity: str

    @classmethod
    def of(cls, path: Path, shard: str, stamp: Stamp, **also: object) -> Self:
        """Describe an index file; ``also`` is what its rows depend on beside the raw shard."""
        depends = {"version": VERSION, "shard": shard, **vars(stamp), **also}
        return cls(path, shard, stamp, json.dumps(depends, sort_keys=True))

    def is_current(self) -> bool:
        """Whether the file is there, whole, and made of what the identity says."""
        try:
            metadata = pq.read_schema(self.path).metadata or {}
        except (OSError, pa.ArrowException):
            return False
        return bool(metadata.get(_IDENTITY) == self.identity.encode())

    def write(self, batches: Sequence[pa.RecordBatch]) -> None:
        """Write rows, atomically.

        Raises:
            UserError: the disk is full.
        """
        schema = SCHEMA.with_metadata({_IDENTITY: self.identity.encode()})
        table = pa.Table.from_batches(batches, SCHEMA).replace_schema_metadata(schema.metadata)
        with atomic_file(self.path) as file:
            pq.write_table(table, file, compression="zstd", compression_level=1)

    def read(self, columns: Sequence[str]) -> pa.Table:
        """Read some columns of all rows.

        Raises:
            ShardError: the file went away or is damaged.
        """
        try:
            return pq.read_table(self.path, columns=list(columns), use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise ShardError(
                f"{self.path} cannot be read ({error}); delete it and run pack again"
            ) from error


@dataclass(frozen=True)
class Lengths:
    """The numbers of one index file, without the documents themselves; n rows.

    Attributes:
        file: where the rows are.
        num_ids: int32 (n,), compact ids of each document.
        num_images: int32 (n,).
        image_bytes: int64 (n,), what the images take up in a tar.
        hashes: uint64 (n,), 0 for a reject.
        part: float64 (n,), where the document is in the range that ``part`` cuts; NaN: everywhere.
        validation: float64 (n,), likewise for the share kept for validation; NaN: never.
        conversation: bool (n,), whether the document has turns that could be dropped.
        reason: int8 (n,), 0 or the number of why it is left out.
    """

    file: IndexFile
    num_ids: NDArray[np.int32]
    num_images: NDArray[np.int32]
    image_bytes: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    part: NDArray[np.float64]
    validation: NDArray[np.float64]
    conversation: NDArray[np.bool_]
    reason: NDArray[np.int8]

    @classmethod
    def read(cls, file: IndexFile) -> Self:
        """Read the numbers of an index file.

        Raises:
            ShardError: as of ``IndexFile.read``.
        """
        table = file.read(_NUMBERS)
        return cls(file, *(table[name].to_numpy() for name in _NUMBERS))

    @property
    def documents(self) -> int:
        """Rows, rejects included."""
        return len(self.num_ids)
