"""Samples: the image-text pairs of a shard, as curation looks at them, and where shards lie."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from openqwen2vl.formats.cells import CellReader, is_cell
from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import DEFAULT_RULES
from openqwen2vl.formats.parquet import ParquetShard, holds_images, read_parquet_items
from openqwen2vl.formats.raw import read_raw_items
from openqwen2vl.formats.rejects import Reject

FACES = "face_bboxes"
"""The field of a sample that holds DataComp's boxes."""

_TABLE = ".parquet"


class Cells:
    """Reads images from a table, for one thread at a time."""

    def __init__(self) -> None:
        self._lock, self._cells = Lock(), CellReader()

    def read(self, image: ImageRef) -> bytes:
        """Give the bytes of an image, as they were stored.

        Raises:
            ShardError: the table went away or changed.
        """
        with self._lock:
            return self._cells.read(image)


@dataclass(frozen=True)
class Sample:
    """One image and its caption; ``(source, shard, key)`` tells it from every other.

    Attributes:
        source: the name that the corpus goes by.
        shard: the raw shard's file name without its ending.
        key: the sample's name within the shard.
        uid: the sample's own ``uid``, else ``shard/key``.
        caption: what ``KEY.txt`` or a table's cell holds, or the text of a page.
        image: where the image's bytes lie.
        fields: what ``KEY.json`` holds; empty without one. Of a table's row its own uid and
            ``FACES``, where it has them.
        cells: reads the images of the sample's table, whose samples share it; None in a tar.
    """

    source: str
    shard: str
    key: str
    uid: str
    caption: str
    image: ImageRef
    fields: dict[str, Any]
    cells: Cells | None = field(default=None, repr=False, compare=False, kw_only=True)

    def read(self) -> bytes:
        """Give the image's bytes as they were delivered.

        Raises:
            ShardError: the shard went away or was cut since it was read.
        """
        if is_cell(self.image):
            return (self.cells or Cells()).read(self.image)
        try:
            with open(self.image.path, "rb", buffering=0) as file:
                file.seek(self.image.offset)
                data = file.read(self.image.size)
        except FileNotFoundError as error:
            raise ShardError(f"{self.image.path} went away while its images were needed") from error
        if len(data) != self.image.size:
            raise ShardError(
                f"{self.image.path} was cut while its images were needed: {self.key} has "
                f"{len(data)} of {self.image.size} bytes; start again"
            )
        return data


def read_samples(path: Path, source: str) -> Iterator[Sample | Reject]:
    """Read the pairs of a shard in the order of their first files or of their rows.

    Args:
        path: a tar as img2dataset delivers it, or a parquet file with the images' bytes; what is
            wrong with it becomes rejects, as in ``formats.raw.read_raw_shard`` and
            ``formats.parquet.read_parquet_shard``. So does what is no pair: a conversation or an
            interleaved document has no caption, ``missing_text``.
        source: the name to give the samples.

    Raises:
        ShardError: the file is missing, or a table has no column of captions.
    """
    if path.suffix == _TABLE:
        cells = Cells()
        for item, row in read_parquet_items(ParquetShard(path), source, DEFAULT_RULES, (FACES,)):
            fields = {name: row[name] for name in ("uid", FACES) if name in row}
            yield item if isinstance(item, Reject) else _sample(item, fields, cells)
        return
    for item, fields in read_raw_items(path, source):
        yield item if isinstance(item, Reject) else _sample(item, fields)


def shards_of(folder: Path) -> list[Path]:
    """Give the shards of an input by name: its tars, or else its tables with images in them.

    A folder of tables without images, as of metadata, has none; whether it is one, the first
    table that can be opened says. Beside tables with images, one that cannot be opened is a shard
    as well, all of it a reject.
    """
    tars = sorted(folder.glob("*.tar"))
    if tars:
        return tars
    found, decided = [], False
    for path in sorted(folder.glob(f"*{_TABLE}")):
        try:
            shows = holds_images(path)
        except ShardError:
            found.append(path)
            continue
        if not (shows or decided):
            return []
        decided = True
        if shows:
            found.append(path)
    return found if decided else []


def shard_at(folder: Path, name: str) -> Path:
    """Give the file of an input's shard: the tar of that name, or else the table if it is there."""
    tar, table = folder / f"{name}.tar", folder / f"{name}{_TABLE}"
    return table if table.is_file() and not tar.is_file() else tar


def _sample(
    document: Document, fields: dict[str, Any], cells: Cells | None = None
) -> Sample | Reject:
    source, shard, key, uid = document.source, document.shard, document.key, document.uid
    turn = document.turns[0]
    if turn.role != "caption":
        kind = "an interleaved document" if turn.role == "interleaved" else "a conversation"
        detail = f"{key} is {kind}; curation reads pairs of an image and a caption"
        return Reject(source, shard, key, uid, "missing_text", detail)
    return Sample(source, shard, key, uid, turn.text, document.images[0], fields, cells=cells)
