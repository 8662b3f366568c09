"""Finished packed shards of a run that has not ended: what a new start need not write again."""

import json
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.manifest import ShardEntry
from openqwen2vl.packing.index import IndexRow, write_index

_NAME = "shard.json"


@dataclass(frozen=True)
class WrittenShard:
    """A packed shard's entry for the manifest, and totals over its packs.

    Attributes:
        entry: its name, packs, bytes and hash.
        folder: holds its rows of the index.
        documents: in all packs.
        images: in all packs.
        tokens: in all packs, image marks expanded.
        targets: in all packs.
        max_documents: most documents in one pack.
        max_images: most images in one pack.
    """

    entry: ShardEntry
    folder: Path
    documents: int
    images: int
    tokens: int
    targets: int
    max_documents: int
    max_images: int


def note_finished(
    folder: Path, digest: str, entry: ShardEntry, rows: list[IndexRow]
) -> WrittenShard:
    """Note that a packed shard has its final name, and keep its rows of the index.

    Args:
        folder: of this shard's own, below the run's work.
        digest: of everything that the shard depends on.
        entry: for the manifest.
        rows: for the index.

    Raises:
        UserError: the disk is full.
    """
    shard = WrittenShard(
        entry=entry,
        folder=folder,
        documents=sum(row.documents for row in rows),
        images=sum(row.images for row in rows),
        tokens=sum(row.tokens for row in rows),
        targets=sum(row.targets for row in rows),
        max_documents=max(row.documents for row in rows),
        max_images=max(row.images for row in rows),
    )
    write_index(rows, folder)
    noted = {**asdict(shard), "digest": digest}
    del noted["folder"]
    with atomic_file(folder / _NAME) as file:
        file.write(json.dumps(noted).encode())
    return shard


def read_finished(folder: Path, digest: str, path: Path) -> WrittenShard | None:
    """Give a packed shard that an earlier start has finished, or None.

    Args:
        folder: as of ``note_finished``.
        digest: as of ``note_finished``; a note of another one counts as none.
        path: the packed shard.
    """
    try:
        noted = json.loads((folder / _NAME).read_bytes())
        size = path.stat().st_size
        if noted.pop("digest") != digest or noted["entry"]["bytes"] != size:
            return None
        entry = ShardEntry(**noted.pop("entry"))
        return WrittenShard(entry=entry, folder=folder, **noted)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_others(folder: Path, work: Path, finished: Iterable[WrittenShard]) -> None:
    """Remove packed shards and notes that a new start does not take over.

    Args:
        folder: of packed shards.
        work: where the notes of this folder's shards are.
        finished: what stays.
    """
    kept = list(finished)
    tars, notes = {shard.entry.name for shard in kept}, {shard.folder for shard in kept}
    for path in folder.glob("packed-*.tar"):
        if path.name not in tars:
            path.unlink()
    for note in work.glob("packed-*"):
        if note not in notes:
            shutil.rmtree(note)
