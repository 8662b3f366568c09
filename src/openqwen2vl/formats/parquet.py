"""Parquet files of documents with the images' bytes beside them, as data hubs serve them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.formats.captions import caption_turn
from openqwen2vl.formats.cells import Picture, cell_path, image_extension, pictures
from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.interleaved import DEFAULT_RULES, InterleavedRules
from openqwen2vl.formats.layouts import Laid, lay_out
from openqwen2vl.formats.listing import image_file
from openqwen2vl.formats.rejects import Reject, Unusable
from openqwen2vl.formats.sample_json import parse_sample, sample_uid

_CAPTIONS = ("caption", "text")
_SPOKEN = ("conversations", "messages", "texts", "ground_truth", *_CAPTIONS)
_IMAGES = ("images", "image", "jpg")
_ROWS = 64  # converted together; their pictures are in memory at a time


@dataclass(frozen=True)
class ParquetShard:
    """One parquet file, and the folder that image paths in it start from, if it has any."""

    path: Path
    image_root: Path | None = None


def parquet_shards(path: Path, image_root: Path | None = None) -> list[ParquetShard]:
    """List the parquet files of a folder by name, or give the one file.

    Raises:
        ShardError: there is no such file or folder, no ``.parquet`` in it, or ``image_root`` is
            given and is no folder.
    """
    if image_root is not None and not image_root.is_dir():
        raise ShardError(f"image_root is {image_root}, which is no folder; check the path")
    if path.is_dir():
        found = sorted(path.glob("*.parquet"))
        if not found:
            raise ShardError(f"{path} holds no .parquet; check the path")
    elif path.is_file():
        found = [path]
    else:
        raise ShardError(f"no file or folder {path}; check the path of the parquet files")
    return [ParquetShard(file, image_root) for file in found]


def read_parquet_shard(
    shard: ParquetShard, source: str, rules: InterleavedRules = DEFAULT_RULES
) -> Iterator[Document | Reject]:
    """Read the rows of a file, a few at a time.

    The turns are in a column ``conversations`` or ``messages``, as lists or as JSON, or in
    ``texts``: a list of ``user`` and ``assistant`` as FineVision has it, whose images all come
    first, or an interleaved document's, with nulls at the places of its images. The text of a
    page is in ``ground_truth``, a caption in ``caption`` or ``text``. Images are in ``images``,
    ``image`` or ``jpg``: bytes, a struct of ``bytes`` and ``path``, a path under the image root, or
    a list of them. A row's key is its number, which ``ImageRef.offset`` of its images repeats.

    Args:
        shard: the file; one that cannot be read, or a row group of it, is a ``Reject``.
        source: the name to give the documents.
        rules: which interleaved documents are taken.

    Raises:
        ShardError: the file is missing, or has none of these columns.
    """
    for item, _ in read_parquet_items(shard, source, rules):
        yield item


def read_parquet_items(
    shard: ParquetShard,
    source: str,
    rules: InterleavedRules = DEFAULT_RULES,
    also: Sequence[str] = (),
) -> Iterator[tuple[Document | Reject, dict[str, Any]]]:
    """Read rows as ``read_parquet_shard`` does; beside each what its cells hold but for images.

    The fields are those of the columns that it was read from, and of the columns ``also`` that
    the file has; FineVision's pairs of ``user`` and ``assistant`` are ``messages`` there, as the
    JSON of a sample could have them. Those of a reject are empty.

    Raises:
        ShardError: the file is missing, or has no column to read.
    """
    try:
        file = pq.ParquetFile(shard.path)
    except FileNotFoundError as error:
        raise ShardError(f"parquet file {shard.path} is missing") from error
    except (pa.ArrowException, OSError) as error:
        yield _rest(shard, source, f"cannot be opened: {_first_line(error)}"), {}
        return
    with file:
        columns = _columns(shard, file.schema_arrow.names, also)
        first = 0
        for group in range(file.metadata.num_row_groups):
            end = first + file.metadata.row_group(group).num_rows
            row = first
            try:
                for batch in file.iter_batches(_ROWS, row_groups=[group], columns=columns):
                    for number in range(batch.num_rows):
                        yield _read_row(batch, number, row, shard, source, rules)
                        row += 1
            except (pa.ArrowException, OSError) as error:
                detail = f"cannot be read from row {row} to {end - 1}: {_first_line(error)}"
                yield _rest(shard, source, detail), {}
            first = end


def holds_images_and_conversations(path: Path) -> tuple[bool, bool]:
    """Tell what a file's rows are read as, by its columns alone.

    Returns:
        Whether a column holds images' bytes, rather than their paths, or none; and whether the
        rows are conversations.

    Raises:
        ShardError: it cannot be opened.
    """
    try:
        schema = pq.read_schema(path)
    except (pa.ArrowException, OSError) as error:
        raise ShardError(f"{path} cannot be opened: {_first_line(error)}") from error
    shows = any(_has_bytes(schema.field(name).type) for name in _IMAGES if name in schema.names)
    return shows, _converses(schema)


def _converses(schema: pa.Schema) -> bool:
    spoken = next((name for name in _SPOKEN if name in schema.names), None)
    if spoken != "texts":
        return spoken in ("conversations", "messages")
    kind = schema.field("texts").type
    is_list = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    return bool(is_list and pa.types.is_struct(kind.value_type))


def _has_bytes(kind: pa.DataType) -> bool:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _has_bytes(kind.value_type)
    if pa.types.is_struct(kind):
        number = kind.get_field_index("bytes")
        return number >= 0 and _has_bytes(kind.field(number).type)
    return kind in (pa.binary(), pa.large_binary())


def _columns(shard: ParquetShard, names: list[str], also: Sequence[str]) -> list[str]:
    """Choose the columns to read, each once."""
    spoken = [name for name in _SPOKEN if name in names]
    if not spoken:
        raise ShardError(
            f"{shard.path} has the columns {', '.join(names)}; expected one of {', '.join(_SPOKEN)}"
        )
    images = [name for name in _IMAGES if name in names][:1]
    there = [name for name in ("uid", *spoken[:1], *images, *also) if name in names]
    return list(dict.fromkeys(there))


def _rest(shard: ParquetShard, source: str, detail: str) -> Reject:
    name = shard.path.stem
    return Reject(source, name, "", name, "truncated_shard", f"{shard.path.name} {detail}")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read_row(
    batch: pa.RecordBatch,
    number: int,
    row: int,
    shard: ParquetShard,
    source: str,
    rules: InterleavedRules,
) -> tuple[Document | Reject, dict[str, Any]]:
    name, key = shard.path.stem, f"{row:09d}"
    uid = f"{name}/{key}"
    try:
        fields = _fields(batch, number, key)
        uid = sample_uid(fields, uid)
        cells = {
            column: batch[column][number].as_py()
            for column in _IMAGES
            if column in batch.schema.names
        }
        images = tuple(
            _ref(picture, column, item, row, shard)
            for column, cell in cells.items()
            for item, picture in enumerate(pictures(cell))
        )
        fields = _spoken(fields, len(images))
        laid = _lay_out(fields, cells, images, rules)
    except Unusable as verdict:
        return Reject(source, name, key, uid, verdict.reason, verdict.detail), {}
    return Document(source, name, key, uid, *laid), fields


def _lay_out(
    fields: dict[str, Any],
    cells: dict[str, Any],
    images: tuple[ImageRef, ...],
    rules: InterleavedRules,
) -> Laid:
    """Read the turns that a row holds."""
    if fields.get("texts") is not None:
        # What stands at an image's place does not matter, as long as it is something.
        places = next((cell for cell in cells.values() if isinstance(cell, list)), [])
        fields = fields | {"images": [None if cell is None else True for cell in places]}
    laid = lay_out(fields, images, rules)
    if laid is not None:
        return laid
    for column in _CAPTIONS:
        if isinstance(fields.get(column), str):
            return (caption_turn(fields[column], len(images), column),), images
    raise Unusable("missing_text", "the row has no conversation, page or caption")


def _spoken(fields: dict[str, Any], num_images: int) -> dict[str, Any]:
    """Give FineVision's dialogue as ``messages``; anything else as it is."""
    texts = fields.get("texts")
    if not (isinstance(texts, list) and texts and all(isinstance(text, dict) for text in texts)):
        return fields
    rest = {name: value for name, value in fields.items() if name != "texts"}
    return {**rest, "messages": _dialogue(texts, num_images)}


def _dialogue(texts: list[dict[str, Any]], num_images: int) -> list[dict[str, Any]]:
    """Give FineVision's pairs of question and answer as chat messages."""
    messages: list[dict[str, Any]] = []
    for pair in texts:
        parts = [{"type": "image"}] * (0 if messages else num_images)
        question = [*parts, {"type": "text", "text": pair.get("user")}]
        messages.append({"role": "user", "content": question})
        messages.append({"role": "assistant", "content": pair.get("assistant")})
    return messages


def _fields(batch: pa.RecordBatch, number: int, key: str) -> dict[str, Any]:
    """Give what a row says, without its images; empty cells count as columns that are not there."""
    fields: dict[str, Any] = {}
    for column in batch.schema.names:
        if column in _IMAGES:
            continue
        try:
            value = batch[column][number].as_py()
        except UnicodeDecodeError as error:
            raise Unusable("bad_text", f"{column} of row {key} is not UTF-8") from error
        if isinstance(value, str) and column in ("conversations", "messages"):
            raw = f'{{"{column}": {value}}}'.encode()
            value = parse_sample(raw, f"{column} of row {key}").get(column)
        if value is not None:
            fields[column] = value
    return fields


def _ref(picture: Picture, column: str, item: int, row: int, shard: ParquetShard) -> ImageRef:
    if picture.data is not None:
        address = cell_path(shard.path, column, item)
        return ImageRef(address, row, len(picture.data), image_extension(picture.data))
    if shard.image_root is None:
        raise Unusable(
            "missing_image", f"the row has only the path {picture.path}; image_root is not given"
        )
    return image_file(str(picture.path), shard.image_root)
