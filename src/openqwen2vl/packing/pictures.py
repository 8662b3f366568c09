"""Image bytes while packing: from files by offset, and from tables by way of a plain file."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow.compute as pc

from openqwen2vl.formats.cells import CellReader, is_cell
from openqwen2vl.formats.documents import ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.files import tell_full_disk
from openqwen2vl.formats.tar import BLOCK
from openqwen2vl.formats.written import decode_written, is_written, written_span
from openqwen2vl.packing.layout import Layout
from openqwen2vl.packing.lengths import IndexFile

Spilled = dict[tuple[str, int], ImageRef]
"""Where images of tables lie in a plain file, by their path and offset."""


class ImageBytes:
    """Reads image bytes by offset, base64 or table cell, keeping the last few files open."""

    _MOST_OPEN = 64

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._cells = CellReader()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def read(self, image: ImageRef) -> bytes:
        """Give the bytes of an image.

        Raises:
            ShardError: the file went away or changed since it was scanned.
        """
        if is_cell(image):
            return self._cells.read(image)
        data = bytearray(image.size)
        self.read_into(image, memoryview(data))
        return bytes(data)

    def read_into(self, image: ImageRef, place: memoryview) -> None:
        """Put the bytes of an image into a place of its size.

        Raises:
            ShardError: as of ``read``.
        """
        if is_cell(image):
            place[:] = self._cells.read(image)
            return
        if is_written(image):
            place[:] = self._decoded(image)
            return
        try:
            descriptor = self._descriptor(image.path)
        except FileNotFoundError as error:
            raise ShardError(f"{image.path} went away while it was being packed") from error
        found = os.preadv(descriptor, [place], image.offset)
        if found == image.size and image.offset == 0:
            # An image that begins a file is all of it: one that grew is another image.
            found = os.fstat(descriptor).st_size
        if found != image.size:
            raise ShardError(
                f"{image.path} changed while it was being packed: {found} bytes at "
                f"{image.offset} where there were {image.size}; run pack again"
            )

    def _decoded(self, image: ImageRef) -> bytes:
        path, size = written_span(image)
        letters = bytearray(size)
        self.read_into(ImageRef(path, image.offset, size, ""), memoryview(letters))
        try:
            data = decode_written(letters)
        except ValueError:
            data = b""
        if len(data) != image.size:
            raise ShardError(
                f"{path} changed while it was being packed: no base64 of {image.size} bytes at "
                f"{image.offset}; run pack again"
            )
        return data

    def _descriptor(self, path: str) -> int:
        descriptor = self._open.get(path)
        if descriptor is None:
            if len(self._open) >= self._MOST_OPEN:
                os.close(self._open.pop(next(iter(self._open))))
            descriptor = self._open[path] = os.open(path, os.O_RDONLY)
        return descriptor

    def close(self) -> None:
        """Close every file."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()
        self._cells.close()


def spill_cells(
    wanted: Sequence[tuple[Layout, Mapping[int, IndexFile]]], pictures: ImageBytes, path: Path
) -> Spilled:
    """Copy images that lie in tables into a plain file, each row group read once.

    Packs take documents in another order than the rows', which would have whole row groups read
    over and over.

    Args:
        wanted: documents of packed shards, and the index files that they are in.
        pictures: reads them.
        path: the plain file to write; its first block stays empty.

    Raises:
        ShardError: a table went away or changed.
        UserError: the disk is full.
    """
    files = {number: file for _, named in wanted for number, file in named.items()}
    spilled: Spilled = {}
    with tell_full_disk(path), path.open("wb") as plain:
        plain.write(bytes(BLOCK))
        for number, file in sorted(files.items()):
            rows = np.unique(
                np.concatenate([layout.rows[layout.files == number] for layout, _ in wanted])
            )
            table = file.read(["paths", "offsets", "sizes"]).take(rows)
            columns = (pc.list_flatten(column).to_pylist() for column in table.columns)
            for name, offset, size in zip(*columns, strict=True):
                image = ImageRef(name, offset, size, "")
                if is_cell(image) and (name, offset) not in spilled:
                    spilled[name, offset] = ImageRef(str(path), plain.tell(), size, "")
                    plain.write(pictures.read(image))
    return spilled
