"""The index of packed shards: for each pack where it lies and how much it holds."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import atomic_file

INDEX_NAME = "index.parquet"
_TOGETHER = 64  # indexes of packed shards that make a row group

_INTS = pa.list_(pa.int64())
_SCHEMA = pa.schema(
    {
        "shard": pa.string(),
        "json_offset": pa.int64(),
        "json_size": pa.int64(),
        "image_offsets": _INTS,
        "image_sizes": _INTS,
        "tokens": pa.int64(),
        "targets": pa.int64(),
        "images": pa.int64(),
        "documents": pa.int64(),
    }
)


@dataclass(frozen=True)
class IndexRow:
    """One pack: byte ranges of its members within its shard, and its totals.

    ``tokens`` are expanded ones without pads; ``targets`` are the labels it asks for.
    """

    shard: str
    json_offset: int
    json_size: int
    image_offsets: list[int]
    image_sizes: list[int]
    tokens: int
    targets: int
    images: int
    documents: int


def write_index(rows: list[IndexRow], folder: Path) -> None:
    """Write ``index.parquet``; row k is pack k."""
    columns = {name: [getattr(row, name) for row in rows] for name in _SCHEMA.names}
    with atomic_file(folder / INDEX_NAME) as file:
        pq.write_table(pa.table(columns, schema=_SCHEMA), file)


def join_indexes(parts: Iterable[Path], folder: Path) -> None:
    """Write ``index.parquet`` of those of other folders, end to end, holding few in memory."""
    with atomic_file(folder / INDEX_NAME) as file, pq.ParquetWriter(file, _SCHEMA) as writer:
        tables = (pq.read_table(part / INDEX_NAME, schema=_SCHEMA) for part in parts)
        while batch := list(islice(tables, _TOGETHER)):
            writer.write_table(pa.concat_tables(batch).combine_chunks())


@dataclass(frozen=True)
class Index:
    """The whole index as flat arrays, which worker processes share without copying.

    Attributes:
        shards: names of the shards in order.
        shard: int32 (n,), number of each pack's shard.
        json_offset: int64 (n,).
        json_size: int64 (n,).
        image_start: int64 (n + 1,), bounds of each pack's images in the two arrays below.
        image_offsets: int64 (all images,).
        image_sizes: int64 (all images,).
        tokens: int64 (n,).
        targets: int64 (n,).
        images: int64 (n,).
        documents: int64 (n,).
    """

    shards: tuple[str, ...]
    shard: NDArray[np.int32]
    json_offset: NDArray[np.int64]
    json_size: NDArray[np.int64]
    image_start: NDArray[np.int64]
    image_offsets: NDArray[np.int64]
    image_sizes: NDArray[np.int64]
    tokens: NDArray[np.int64]
    targets: NDArray[np.int64]
    images: NDArray[np.int64]
    documents: NDArray[np.int64]

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read ``index.parquet`` of a folder.

        Raises:
            ShardError: it is missing or damaged.
        """
        path = folder / INDEX_NAME
        try:
            table = pq.read_table(path, schema=_SCHEMA).combine_chunks()
        except FileNotFoundError as error:
            raise ShardError(f"no {INDEX_NAME} in {folder}; run pack again") from error
        except (pa.ArrowInvalid, OSError) as error:
            raise ShardError(f"{path} is damaged ({error}); run pack again") from error
        names = table["shard"].combine_chunks().dictionary_encode()
        numbers = {
            name: table[name].to_numpy()
            for name in ("json_offset", "json_size", "tokens", "targets", "images", "documents")
        }
        return cls(
            shards=tuple(names.dictionary.to_pylist()) if len(table) else (),
            shard=names.indices.to_numpy(),
            image_start=np.concatenate([[0], np.cumsum(numbers["images"])]).astype(np.int64),
            image_offsets=_flat(table["image_offsets"]),
            image_sizes=_flat(table["image_sizes"]),
            **numbers,
        )


def _flat(column: pa.ChunkedArray) -> NDArray[np.int64]:
    values: NDArray[np.int64] = column.combine_chunks().flatten().to_numpy()
    return values
