"""The pictures of evaluation files, in the forms that benchmarks are handed out in."""

import ast
import base64
import binascii
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq

from openqwen2vl.formats.cells import pictures
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.raw import IMAGE_EXTENSIONS
from openqwen2vl.formats.rejects import Unusable
from openqwen2vl.formats.tar import TruncatedTarError, members

_IMAGES = tuple(f".{name}" for name in IMAGE_EXTENSIONS)
_ENDINGS = (*_IMAGES, ".tar", ".parquet", ".tsv")
_ROWS = 32  # converted together; their pictures are in memory at a time
_REFERENCE = 64  # letters; a TSV's cell of no more is the index of a row with the same picture
_BLOCK = 1 << 26  # bytes of a TSV read at a time; a row must fit


@dataclass(frozen=True)
class BenchmarkPicture:
    """One picture.

    Attributes:
        file: its file, from the benchmark's folder on.
        row: the row of a table, or the picture's number within a tar; 0 for a file of its own.
        data: its bytes; None when the file has none that can be read.
    """

    file: str
    row: int
    data: bytes | None


def benchmark_pictures(path: Path) -> Iterator[BenchmarkPicture]:
    """Read all pictures of a file, or of every file under a folder, in the order of their names.

    Taken are pictures as files; tars of them; parquet with columns of bytes named ``image...``
    or structs of ``bytes`` and ``path``, or lists of these (as data hubs serve them, MMMU's
    ``image_1`` to ``image_7`` and MathVista's ``decoded_image`` among them); and TSV with a column
    ``image`` of base64, a list of it, or the index of a row that has the same picture (MMBench,
    VLMEvalKit).

    Raises:
        ShardError: there is no such path or no such file under it, a file breaks off, or a table
            has no column of pictures.
    """
    for file in _files(path):
        name = file.name if file == path else str(file.relative_to(path))
        ending = file.suffix.lower()
        try:
            if ending == ".tar":
                found = _tar(file)
            elif ending == ".parquet":
                found = _parquet(file)
            elif ending == ".tsv":
                found = _tsv(file)
            else:
                found = iter([(0, file.read_bytes() or None)])
            for row, data in found:
                yield BenchmarkPicture(name, row, data)
        except (pa.ArrowException, OSError, TruncatedTarError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ShardError(f"evaluation file {file} cannot be read ({said})") from error


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix.lower() in _ENDINGS:
        return [path]
    if not path.exists():
        raise ShardError(f"no evaluation file or folder {path}; check the path")
    found = sorted(
        file for file in path.rglob("*") if file.suffix.lower() in _ENDINGS and file.is_file()
    )
    if not found:
        raise ShardError(
            f"{path} holds no pictures; expected files ending in {', '.join(_ENDINGS)}"
        )
    return found


def _tar(path: Path) -> Iterator[tuple[int, bytes | None]]:
    if path.stat().st_size == 0:
        raise TruncatedTarError("is empty")
    with (
        path.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
    ):
        named = (m for m in members(data) if m.name.lower().endswith(_IMAGES))
        for number, member in enumerate(named):
            yield number, data[member.offset : member.offset + member.size] or None


def _parquet(path: Path) -> Iterator[tuple[int, bytes | None]]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        columns = [field.name for field in schema if _is_pictures(field.name, field.type)]
        if not columns:
            raise ShardError(
                f"evaluation file {path} has the columns {', '.join(schema.names)}; expected "
                "bytes in image, or structs of bytes and path"
            )
        row = 0
        for batch in file.iter_batches(_ROWS, columns=columns):
            for number in range(batch.num_rows):
                for column in columns:
                    yield from _cell(batch[column][number].as_py(), row)
                row += 1


def _is_pictures(name: str, kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _is_pictures(name, kind.value_type)
    if pa.types.is_struct(kind):
        index = kind.get_field_index("bytes")
        return index >= 0 and _is_bytes(kind.field(index).type)
    return name.startswith("image") and _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _cell(value: object, row: int) -> Iterator[tuple[int, bytes | None]]:
    """Read a cell; an image in a list that has no bytes is told, one that is null is not there."""
    for item in value if isinstance(value, list) else [value]:
        if item is not None:
            try:
                yield from ((row, picture.data) for picture in pictures(item))
            except Unusable:
                yield row, None


def _tsv(path: Path) -> Iterator[tuple[int, bytes | None]]:
    reader = pv.open_csv(
        path,
        pv.ReadOptions(block_size=_BLOCK, use_threads=False),
        pv.ParseOptions(delimiter="\t", newlines_in_values=True),
    )
    if "image" not in reader.schema.names:
        raise ShardError(
            f"evaluation file {path} has the columns {', '.join(reader.schema.names)}; expected "
            "base64 in image"
        )
    row = 0
    for batch in reader:
        for value in batch["image"]:
            yield from _encoded(value.as_py(), row)
            row += 1


def _encoded(value: object, row: int) -> Iterator[tuple[int, bytes | None]]:
    text = value.strip() if isinstance(value, str) else ""
    if text.startswith("["):
        try:
            texts = [str(item) for item in ast.literal_eval(text)]
        except (ValueError, SyntaxError):
            texts = [text]
    else:
        texts = [text] if len(text) > _REFERENCE else []
    for item in texts:
        try:
            yield row, base64.b64decode(item, validate=True) or None
        except binascii.Error:
            yield row, None
