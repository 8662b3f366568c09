"""The mini benchmarks that lie here as files are those that the generator draws."""

import base64
import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.mini_benchmarks import mini_rows
from support.mini_data import files
from support.mini_files import DATA, WRITERS

MOST_BYTES = 1_500_000


def is_picture(value: Any) -> bool:
    return isinstance(value, bytes) and value[:3] == b"\xff\xd8\xff"


def assert_same(one: Any, other: Any) -> None:
    """Texts and numbers alike; pictures to the eye, since JPEG's last bits are the library's."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_same(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for pair in zip(one, other, strict=True):
            assert_same(*pair)
    elif is_picture(one):
        seen = [np.asarray(Image.open(io.BytesIO(data)), np.int16) for data in (one, other)]
        assert seen[0].shape == seen[1].shape
        assert np.abs(seen[0] - seen[1]).mean() < 2
    else:
        assert one == other


def content(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        rows: list[dict[str, Any]] = pq.read_table(path).to_pylist()
        return rows
    with path.open(newline="") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    return [{**row, "image": base64.b64decode(row["image"])} for row in table]


@pytest.mark.parametrize(("data", "split", "form", "path"), files(), ids=lambda v: str(v)[-40:])
def test_a_file_is_what_the_generator_draws(
    data: str, split: str, form: str, path: Path, tmp_path: Path
) -> None:
    there = content(path)
    assert 12 <= len(there) <= 20
    WRITERS[form](tmp_path / path.name, mini_rows(data, split))
    assert_same(there, content(tmp_path / path.name))


def test_there_are_no_other_files_and_they_are_small() -> None:
    found = [path for path in DATA.rglob("*") if path.is_file()]
    assert sorted(found) == sorted([DATA / "README.md", *(path for *_, path in files())])
    assert sum(path.stat().st_size for path in found) < MOST_BYTES
