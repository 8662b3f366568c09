"""Gathers the documents of one packed shard from the length index, in the order of its packs."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.packing.layout import Layout
from openqwen2vl.packing.lengths import IndexFile

_COLUMNS = ("key", "uid", "ids", "targets", "paths", "offsets", "sizes", "extensions", "scores")


@dataclass(frozen=True)
class Gathered:
    """Documents by column; a list of every document's values has its bounds beside it.

    Attributes:
        shards: (d,), name of the raw shard of each document.
        keys: (d,).
        uids: (d,).
        ids: int32, compact ids of all documents.
        ids_at: int64 (d + 1,), bounds of each document's ids.
        targets: int32, edges of target spans, counted from the document's first id.
        targets_at: int64 (d + 1,).
        images: of all documents.
        images_at: int64 (d + 1,).
        scores: JSON of each document's scores, None where it has none.
    """

    shards: list[str]
    keys: list[str]
    uids: list[str]
    ids: NDArray[np.int32]
    ids_at: NDArray[np.int64]
    targets: NDArray[np.int32]
    targets_at: NDArray[np.int64]
    images: list[ImageRef]
    images_at: NDArray[np.int64]
    scores: list[str | None]


def gather(layout: Layout, files: Mapping[int, IndexFile]) -> Gathered:
    """Read the documents of a packed shard; document k of the layout is document k of the result.

    Args:
        layout: which documents, in the order of the packs.
        files: the index files by the layout's numbers.

    Raises:
        ShardError: an index file went away or is damaged.
    """
    tables, place, found = [], np.empty(len(layout.rows), np.int64), 0
    for number in np.unique(layout.files).tolist():
        mine = np.flatnonzero(layout.files == number)
        tables.append(files[number].read(_COLUMNS).take(layout.rows[mine]))
        place[mine] = np.arange(found, found + len(mine))
        found += len(mine)
    table = pa.concat_tables(tables).take(place)
    ids, ids_at = _flat(table["ids"])
    targets, targets_at = _flat(table["targets"])
    paths, images_at = _flat(table["paths"])
    parts = (_flat(table[name])[0].to_pylist() for name in ("offsets", "sizes", "extensions"))
    return Gathered(
        shards=[files[number].shard for number in layout.files.tolist()],
        keys=table["key"].to_pylist(),
        uids=table["uid"].to_pylist(),
        ids=ids.to_numpy(),
        ids_at=ids_at,
        targets=targets.to_numpy(),
        targets_at=targets_at,
        images=list(map(ImageRef, paths.to_pylist(), *parts)),
        images_at=images_at,
        scores=table["scores"].to_pylist(),
    )


def _flat(column: pa.ChunkedArray) -> tuple[Any, NDArray[np.int64]]:
    """Give the values of all lists and the bounds of each."""
    lists = column.combine_chunks()
    if isinstance(lists, pa.ChunkedArray):
        lists = pa.concat_arrays(lists.chunks)
    return lists.flatten(), np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy())])
