"""Local files of benchmarks in their public forms, parquet, TSV and JSONL, as plain rows."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.evaluation.locate import PICTURES, ROWS, Schema
from openqwen2vl.evaluation.pictures import CellImage, FileImage, NoImage
from openqwen2vl.evaluation.questions import ImageSource
from openqwen2vl.evaluation.tsv import read_tsv
from openqwen2vl.formats.errors import ShardError

_ROWS = 256


@dataclass(frozen=True)
class Record:
    """One row of a file.

    Attributes:
        values: the columns asked for that are there, under the schema's names.
        images: the pictures of each column of them.
        place: file and row, for messages.
        number: the row's, counted through all files from 0.
    """

    values: Mapping[str, Any]
    images: Mapping[str, tuple[ImageSource, ...]]
    place: str
    number: int = 0

    @property
    def pictures(self) -> tuple[ImageSource, ...]:
        """Those of the first column that has any; one that is missing when none has."""
        return next((found for found in self.images.values() if found), (NoImage(self.place),))


def read_records(files: Sequence[Path], schema: Schema) -> Iterator[Record]:
    """Read rows without their pictures.

    Raises:
        ShardError: a file cannot be read or lacks a column; the message names those there are.
    """
    readers = {".parquet": _parquet, ".tsv": _tsv}
    number = 0
    for path in files:
        apart, form = _pictures_apart(path, schema), schema
        if apart is not None:
            form = replace(schema, columns=(*schema.columns, str(schema.picture_id)), images=())
        try:
            for record in readers.get(path.suffix, _jsonl)(path, form):
                images = record.images if apart is None else _joined(record, apart, schema)
                yield replace(record, number=number, images=images)
                number += 1
        except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
            said = (str(error).splitlines() or [type(error).__name__])[0]
            raise ShardError(f"{path} cannot be read ({said}); fetch it again") from error


@dataclass(frozen=True)
class _Names:
    """The columns of a file: schema's name to the file's own, and those of pictures."""

    values: dict[str, str]
    images: tuple[str, ...]


def _names(path: Path, there: Sequence[str], schema: Schema) -> _Names:
    values, missing = {}, []
    for column in schema.columns:
        either = column.split("|")
        own = next((name for name in either if name in there), None)
        if own is None:
            missing.append(" or ".join(either))
        else:
            values[either[0]] = own
    alike = [one.split("|") for one in schema.images]
    images = tuple(
        next(n for n in names if n in there) for names in alike if set(names) & set(there)
    )
    if not images and schema.images:
        missing.append(f"pictures in {' or '.join(schema.images[0].split('|'))}")
    if missing:
        raise ShardError(
            f"{path} lacks {', '.join(missing)}; it has the columns {', '.join(there)}"
        )
    values.update({name: name for name in schema.optional if name in there})
    return _Names(values, images)


def _parquet(path: Path, schema: Schema) -> Iterator[Record]:
    with pq.ParquetFile(path) as file:
        arrow = file.schema_arrow
        names = _names(path, arrow.names, schema)
        # Only of lists must the cells be looked at, to know how many pictures a row has.
        lists = [name for name in names.images if _is_list(arrow.field(name).type)]
        columns = sorted({*names.values.values(), *lists})
        row = 0
        for batch in file.iter_batches(_ROWS if not lists else 16, columns=columns):
            table = {own: batch[own].to_pylist() for own in names.values.values()}
            for number in range(batch.num_rows):
                images = {}
                for name in names.images:
                    many = _many(batch[name][number]) if name in lists else 1
                    cells = (CellImage(str(path), name, row, item) for item in range(many))
                    images[name] = tuple(cells)
                values = {name: table[own][number] for name, own in names.values.items()}
                yield Record(values, images, f"{path}, row {row}")
                row += 1


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _many(cell: pa.ListScalar) -> int:
    """Count the pictures of a list; what is null in it is none, as when it is read."""
    items = cell.values
    return 0 if items is None else len(items) - items.null_count


def _tsv(path: Path, schema: Schema) -> Iterator[Record]:
    names: _Names | None = None
    for number, row in enumerate(
        read_tsv(path, [n for one in schema.images for n in one.split("|")])
    ):
        names = names or _names(path, [*row.values, *row.images], schema)
        values = {name: row.values[own] for name, own in names.values.items()}
        images = {name: row.images[name] for name in names.images}
        yield Record(values, images, f"{path}, row {number}")
    if names is None:
        raise ShardError(f"{path} holds no row")


def _jsonl(path: Path, schema: Schema) -> Iterator[Record]:
    names: _Names | None = None
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path}, line {number}"
            try:
                record = json.loads(line)
            except json.JSONDecodeError as error:
                raise ShardError(f"{place} is no JSON ({error}); fetch the file again") from error
            if not isinstance(record, dict):
                raise ShardError(f"{place} is {type(record).__name__}; expected an object")
            names = names or _names(path, list(record), schema)
            missing = [own for own in names.values.values() if own not in record]
            if missing:
                raise ShardError(f"{place} lacks {', '.join(missing)}")
            images = {name: _files(record.get(name), path.parent, place) for name in names.images}
            values = {name: record[own] for name, own in names.values.items()}
            yield Record(values, images, place)
    if names is None:
        raise ShardError(f"{path} holds no line")


def _files(value: Any, folder: Path, place: str) -> tuple[ImageSource, ...]:
    """Give the pictures that a line names, relative to its file."""
    if value is None:
        return ()
    items = value if isinstance(value, list) else [value]
    for item in items:
        if not isinstance(item, str):
            raise ShardError(f"{place}: a picture is {type(item).__name__}; expected its path")
        if not (folder / item).is_file():
            raise ShardError(f"{place}: there is no picture {folder / item}")
    return tuple(FileImage(str(folder / item)) for item in items)


def _pictures_apart(path: Path, schema: Schema) -> dict[str, CellImage] | None:
    """Give the pictures that lie in files of their own by their ids; None: they lie in the rows."""
    if schema.picture_id is None or not path.parent.name.endswith(ROWS):
        return None
    folder = path.parent.with_name(path.parent.name.replace(ROWS, PICTURES))
    found: dict[str, CellImage] = {}
    for file in sorted(folder.glob("*.parquet")):
        try:
            ids = pq.read_table(file, columns=["id"]).column("id").to_pylist()
        except (pa.ArrowException, OSError) as error:
            raise ShardError(f"{file} cannot be read ({error}); fetch it again") from error
        found.update({str(name): CellImage(str(file), "image", n) for n, name in enumerate(ids)})
    if not found:
        raise ShardError(f"{folder} holds no pictures for {path}; fetch it")
    return found


def _joined(
    record: Record, apart: Mapping[str, CellImage], schema: Schema
) -> dict[str, tuple[ImageSource, ...]]:
    wanted = str(record.values[schema.picture_id or ""])
    if wanted not in apart:
        raise ShardError(f"{record.place}: there is no picture {wanted} in the files of pictures")
    return {"image": (apart[wanted],)}
