"""Where the pictures of benchmark rows lie, read one at a time when they are needed."""

import ast
import base64
import binascii
import io
import os
from bisect import bisect_right
from collections import OrderedDict
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from openqwen2vl.formats.cells import pictures
from openqwen2vl.formats.errors import ImageError
from openqwen2vl.formats.rejects import Unusable

_MOST_BYTES = 256 * 2**20


@dataclass(frozen=True)
class BytesImage:
    """A picture that is in memory already."""

    data: bytes

    def read(self) -> bytes:
        """Give the bytes."""
        return self.data


@dataclass(frozen=True)
class OpenedImage:
    """A picture that somebody else has decoded, turned upright and made RGB."""

    picture: Image.Image

    def read(self) -> bytes:
        """Give its pixels as they are: PPM neither loses any nor tells an orientation."""
        file = io.BytesIO()
        self.picture.convert("RGB").save(file, "PPM")
        return file.getvalue()


@dataclass(frozen=True)
class NoImage:
    """The picture that a row should have had and has not; ``place`` says which row."""

    place: str

    def read(self) -> bytes:
        """Say so.

        Raises:
            ImageError: always.
        """
        raise ImageError(f"{self.place} has no picture")


@dataclass(frozen=True)
class FileImage:
    """A picture in a file of its own."""

    path: str

    def read(self) -> bytes:
        """Read the file.

        Raises:
            ImageError: it cannot be read.
        """
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise ImageError(f"{self.path} cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class CellImage:
    """A picture in a parquet file.

    Attributes:
        path: the file.
        column: bytes, a struct of ``bytes`` and ``path``, or a list of these.
        row: its number in the file.
        item: the picture's number within a list; 0 when the cell is one picture.
    """

    path: str
    column: str
    row: int
    item: int = 0

    def read(self) -> bytes:
        """Read the cell; the row group it lies in is kept for the next.

        Raises:
            ImageError: the cell holds no such picture, or the file cannot be read.
        """
        try:
            found = pictures(_columns(os.getpid()).value(self.path, self.column, self.row))
            data = found[self.item].data
        except LookupError as error:
            raise ImageError(f"there is no {self._place}: the cell is empty") from error
        except (pa.ArrowException, OSError, Unusable) as error:
            raise ImageError(f"{self._place} cannot be read ({error})") from error
        if data is None:
            raise ImageError(f"{self._place} holds a path and no bytes")
        return data

    @property
    def _place(self) -> str:
        return f"picture {self.item} in {self.column} of row {self.row} of {self.path}"


@dataclass(frozen=True)
class EncodedImage:
    """A picture as base64 in a run of a text file's bytes: the cell of a TSV.

    Attributes:
        path: the file.
        offset: of the first byte of the cell.
        size: in bytes.
        item: the picture's number when the cell is a list; 0 for one alone.
    """

    path: str
    offset: int
    size: int
    item: int = 0

    def read(self) -> bytes:
        """Read and decode the cell.

        Raises:
            ImageError: it is no base64, or the file cannot be read.
        """
        try:
            with Path(self.path).open("rb") as file:
                file.seek(self.offset)
                cell = file.read(self.size).decode()
            return base64.b64decode(encoded_items(cell)[self.item], validate=True)
        except (OSError, LookupError, ValueError, SyntaxError, binascii.Error) as error:
            raise ImageError(f"{self.path} at byte {self.offset}: no picture ({error})") from error


def encoded_items(cell: str) -> list[str]:
    """Split a TSV's cell into the base64 of each of its pictures.

    Raises:
        ValueError: it looks like a list and is none.
    """
    text = cell.strip().strip('"')
    if not text.startswith("["):
        return [text] if text else []
    try:
        return [str(item) for item in ast.literal_eval(text.replace('""', '"'))]
    except (SyntaxError, TypeError) as error:
        raise ValueError("a list of pictures that is none") from error


class _Columns:
    """Row groups of picture columns, the ones asked for last up to a number of bytes."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[pq.ParquetFile, list[int]]] = {}
        self._kept: OrderedDict[tuple[str, str, int], pa.ChunkedArray] = OrderedDict()

    def value(self, path: str, column: str, row: int) -> Any:
        """Give the cell as Python's own types."""
        if path not in self._files:
            file = pq.ParquetFile(path)
            groups = range(file.metadata.num_row_groups)
            sizes = (file.metadata.row_group(group).num_rows for group in groups)
            self._files[path] = file, list(accumulate(sizes, initial=0))
        file, first = self._files[path]
        group = bisect_right(first, row) - 1
        key = path, column, group
        if key not in self._kept:
            self._make_room(file.metadata.row_group(group).total_byte_size)
            self._kept[key] = file.read_row_group(group, columns=[column]).column(0)
        self._kept.move_to_end(key)
        return self._kept[key][row - first[group]].as_py()

    def _make_room(self, num_bytes: int) -> None:
        held = sum(kept.nbytes for kept in self._kept.values())
        while self._kept and held + num_bytes > _MOST_BYTES:
            held -= self._kept.popitem(last=False)[1].nbytes


@lru_cache(maxsize=1)
def _columns(process: int) -> _Columns:
    """Give this process's own: open files are not shared with a forked worker."""
    return _Columns()
