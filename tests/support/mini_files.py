"""Rows with pictures as files in the forms that benchmarks are handed out in."""

import base64
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

DATA = Path(__file__).parents[1] / "data" / "benchmarks"
"""Holds the evaluated splits as files; ``support.mini_data`` writes them."""

Rows = list[dict[str, Any]]
PICTURE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def _parquet(path: Path, rows: Rows) -> None:
    def kind(column: str) -> pa.DataType | None:
        value = next((row[column] for row in rows if row[column] is not None), None)
        if _is_picture(value):
            return PICTURE
        if isinstance(value, list) and value and _is_picture(value[0]):
            return pa.list_(PICTURE)
        return None

    columns = {name: pa.array([row[name] for row in rows], type=kind(name)) for name in rows[0]}
    # Small row groups, as the hub's files have several.
    pq.write_table(pa.table(columns), path, row_group_size=5)


def _is_picture(value: Any) -> bool:
    return isinstance(value, dict) and "bytes" in value


def _tsv(path: Path, rows: Rows) -> None:
    lines = ["\t".join(rows[0])]
    for row in rows:
        lines.append("\t".join(_cell(value) for value in row.values()))
    path.write_text("\n".join(lines) + "\n")


def _cell(value: Any) -> str:
    if isinstance(value, bytes):
        value = {"bytes": value}
    if _is_picture(value):
        return base64.b64encode(value["bytes"]).decode()
    if isinstance(value, list) and value and _is_picture(value[0]):
        return str([base64.b64encode(item["bytes"]).decode() for item in value])
    text = "" if value is None else str(value)
    return '"' + text.replace('"', '""') + '"' if set(text) & set('"\t\n') else text


def _jsonl(path: Path, rows: Rows) -> None:
    lines = []
    for number, row in enumerate(rows):
        record = dict(row)
        for name, value in row.items():
            value = {"bytes": value} if isinstance(value, bytes) else value
            pictures = value if isinstance(value, list) else [value]
            if pictures and _is_picture(pictures[0]):
                names = [f"{number}-{name}-{item}.jpg" for item in range(len(pictures))]
                for file, picture in zip(names, pictures, strict=True):
                    (path.parent / file).write_bytes(picture["bytes"])
                record[name] = names if isinstance(value, list) else names[0]
        lines.append(json.dumps(record))
    path.write_text("\n".join(lines) + "\n")


WRITERS = {"parquet": _parquet, "tsv": _tsv, "jsonl": _jsonl}
