"""TSV files with pictures as base64 in their cells, of which only the places are read."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from openqwen2vl.evaluation.pictures import EncodedImage, encoded_items
from openqwen2vl.evaluation.questions import ImageSource
from openqwen2vl.formats.errors import ShardError

_REFERENCE = 64  # letters; a picture's cell of no more is the index of a row with the same picture


@dataclass(frozen=True)
class TsvRow:
    """One row: texts by column, and the pictures of each column of them."""

    values: dict[str, str]
    images: dict[str, tuple[ImageSource, ...]]


@dataclass(frozen=True)
class _Cell:
    """Where a picture's cell lies, and the row that it refers to instead, if it does."""

    path: str
    offset: int
    size: int
    many: int
    refers: str | None

    @property
    def images(self) -> tuple[ImageSource, ...]:
        return tuple(
            EncodedImage(self.path, self.offset, self.size, item) for item in range(self.many)
        )


def read_tsv(path: Path, image_columns: Sequence[str]) -> Iterator[TsvRow]:
    """Read a TSV as VLMEvalKit writes it, with quoted cells that may hold newlines.

    Args:
        path: the file; its first row names the columns.
        image_columns: those of base64, of a list of it, or of the ``index`` of a row whose
            picture is shared.

    Raises:
        ShardError: a row has another number of cells than the first.
    """
    rows = list(_rows(path, image_columns))
    by_index = {values["index"]: cells for values, cells in rows if "index" in values}
    for values, cells in rows:
        images = {}
        for column, cell in cells.items():
            shared = by_index.get(cell.refers or "", {}).get(column, cell)
            images[column] = shared.images
        yield TsvRow(values, images)


def _rows(
    path: Path, image_columns: Sequence[str]
) -> Iterator[tuple[dict[str, str], dict[str, _Cell]]]:
    header: list[str] | None = None
    for start, raw in _raw_rows(path):
        spans = _spans(raw)
        if header is None:
            header = [_text(raw[a:b]).removeprefix("\ufeff") for a, b in spans]
            continue
        if len(spans) != len(header):
            raise ShardError(
                f"{path} at byte {start}: {len(spans)} cells; the first row names {len(header)}"
            )
        values, cells = {}, {}
        for column, (a, b) in zip(header, spans, strict=True):
            if column in image_columns:
                cells[column] = _cell(path, start + a, raw[a:b])
            else:
                values[column] = _text(raw[a:b])
        yield values, cells


def _raw_rows(path: Path) -> Iterator[tuple[int, bytes]]:
    """Give each row with its first byte's place; a quoted cell may go on over lines."""
    start, kept = 0, b""
    with path.open("rb") as file:
        for line in file:
            kept += line
            if kept.count(b'"') % 2 == 0:
                if kept.strip():
                    yield start, kept.rstrip(b"\r\n")
                start, kept = start + len(kept), b""
    if kept:
        raise ShardError(f"{path} ends inside a quoted cell; fetch it again")


def _spans(raw: bytes) -> list[tuple[int, int]]:
    spans, start, place, quotes = [], 0, 0, 0
    for part in raw.split(b"\t"):
        place += len(part)
        quotes += part.count(b'"')
        if quotes % 2 == 0:
            spans.append((start, place))
            start = place + 1
        place += 1
    return spans


def _text(cell: bytes) -> str:
    text = cell.decode()
    if len(text) > 1 and text[0] == text[-1] == '"':
        text = text[1:-1].replace('""', '"')
    return text


def _cell(path: Path, offset: int, raw: bytes) -> _Cell:
    text = raw.decode()
    try:
        many = len(encoded_items(text))
    except ValueError:
        many = 1  # told when it is read
    refers = _text(raw) if len(text) <= _REFERENCE and not text.startswith("[") else None
    return _Cell(str(path), offset, len(raw), max(many, 1), refers)
