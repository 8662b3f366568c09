"""Images in the cells of a parquet table: where one lies, and its bytes by row group."""

from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.rejects import Unusable

_FILE_END = ".parquet"
_MOST_BYTES = 64 * 2**20
_MOST_FILES = 16


def cell_path(path: Path, column: str, item: int) -> str:
    """Give the address of an image's column: ``FILE.parquet#COLUMN/ITEM``.

    Args:
        path: a file that ends in ``.parquet``.
        column: name of the column.
        item: the image's number within the list of a cell; 0 when the cell is one image.
    """
    return f"{path}#{column}/{item}"


def is_cell(image: ImageRef) -> bool:
    """Whether an image lies in a table rather than in a run of a file's bytes."""
    return f"{_FILE_END}#" in image.path


@dataclass(frozen=True)
class Picture:
    """What a cell says of one image: its bytes, or else the path of a file."""

    data: bytes | None
    path: str | None


def pictures(value: Any) -> list[Picture]:
    """Read a cell: a struct of ``bytes`` and ``path``, bytes, a path, a list of them, or nothing.

    What is null in a list is the place of something else, and counts as no image.

    Raises:
        Unusable: ``missing_image`` for an image with neither bytes nor a path, ``bad_json`` for
            anything else.
    """
    if value is None:
        return []
    items = value if isinstance(value, list) else [value]
    return [_picture(item) for item in items if item is not None]


def image_extension(data: bytes) -> str:
    """Name a picture's format by its first bytes: ``jpg``, ``png``, ``webp``, else ``img``."""
    if data.startswith(b"\xff\xd8\xff"):
        return "jpg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "png"
    return "webp" if data[:4] == b"RIFF" and data[8:12] == b"WEBP" else "img"


def _picture(value: Any) -> Picture:
    if isinstance(value, dict):
        data, path = value.get("bytes"), value.get("path")
    elif isinstance(value, str):
        data, path = None, value
    else:
        data, path = value, None
    if isinstance(data, bytes) and data:
        return Picture(data, None)
    if data:
        raise Unusable("bad_json", f"an image is {type(data).__name__}, not bytes or a path")
    if not isinstance(path, str) or not path:
        raise Unusable("missing_image", "an image has neither bytes nor a path")
    return Picture(None, path)


@dataclass(frozen=True)
class _Table:
    """An open file, and the number of the first row of each of its row groups."""

    file: pq.ParquetFile
    first: list[int]


class CellReader:
    """Reads images from tables, holding columns of a few row groups, one at least.

    In the order of the rows each row group is read once. In any other order an image costs the
    reading of its row group, unless that is among those kept.
    """

    def __init__(self, most_bytes: int = _MOST_BYTES) -> None:
        self._most_bytes = most_bytes
        self._tables: OrderedDict[str, _Table] = OrderedDict()
        self._kept: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()

    def read(self, image: ImageRef) -> bytes:
        """Give the bytes of an image, as they were stored.

        Raises:
            ShardError: the file went away or holds something else since it was scanned.
        """
        path, _, cell = image.path.rpartition("#")
        column, _, item = cell.rpartition("/")
        try:
            table = self._table(path)
            group = bisect_right(table.first, image.offset) - 1
            value = self._column(path, column, group)[image.offset - table.first[group]].as_py()
            data = pictures(value)[int(item)].data
        except FileNotFoundError as error:
            raise ShardError(f"{path} went away while its images were needed") from error
        except (pa.ArrowException, OSError, LookupError, Unusable) as error:
            raise ShardError(_changed(path, image, str(error))) from error
        if data is None or len(data) != image.size:
            raise ShardError(_changed(path, image, f"{len(data or b'')} bytes"))
        return data

    def _table(self, path: str) -> _Table:
        table = self._tables.get(path)
        if table is None:
            file = pq.ParquetFile(path)
            groups = range(file.metadata.num_row_groups)
            sizes = [file.metadata.row_group(group).num_rows for group in groups]
            table = self._tables[path] = _Table(file, list(accumulate(sizes, initial=0))[:-1])
            if len(self._tables) > _MOST_FILES:
                self._tables.popitem(last=False)[1].file.close()
        self._tables.move_to_end(path)
        return table

    def _column(self, path: str, column: str, group: int) -> pa.ChunkedArray:
        key = (path, column, group)
        values = self._kept.get(key)
        if values is None:
            file = self._table(path).file
            self._make_room(file.metadata.row_group(group).total_byte_size)
            values = self._kept[key] = file.read_row_group(group, columns=[column]).column(0)
        self._kept.move_to_end(key)
        return values

    def _make_room(self, num_bytes: int) -> None:
        """Let go of what was asked for longest ago, before more is read."""
        held = sum(kept.nbytes for kept in self._kept.values())
        while self._kept and held + num_bytes > self._most_bytes:
            held -= self._kept.popitem(last=False)[1].nbytes

    def close(self) -> None:
        """Close every file and let go of what was kept."""
        self._kept.clear()
        while self._tables:
            self._tables.popitem()[1].file.close()


def spill(document: Document, cells: CellReader, file: BinaryIO) -> Document:
    """Give the document with those of its images that lie in a table copied into a plain file.

    Who takes the images in another order than the rows' reads each of them once this way, where
    a table would have whole row groups read over and over.

    Args:
        document: any; one without such images is given back as it is.
        cells: reads them.
        file: a named file, open for writing at its end; what is copied goes there.

    Raises:
        ShardError: the table went away or changed.
    """
    if not any(map(is_cell, document.images)):
        return document
    images = []
    for image in document.images:
        if is_cell(image):
            offset = file.tell()
            file.write(cells.read(image))
            image = replace(image, path=str(file.name), offset=offset)
        images.append(image)
    return replace(document, images=tuple(images))


def _changed(path: str, image: ImageRef, found: str) -> str:
    return (
        f"{path} changed after it was scanned: {found} at row {image.offset} where there were "
        f"{image.size} bytes of an image; start again"
    )
