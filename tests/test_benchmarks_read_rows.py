"""Rows of benchmark files that lack something: a question, an answer, a picture."""

import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.mini_benchmarks import MINI

from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.formats.errors import ImageError, ShardError


def rows_of(data):
    return MINI[data][1](random.Random(data))


@pytest.mark.parametrize(
    ("data", "change", "said"),
    [
        ("gqa", {"answer": None}, "row 0: answer is empty; is it a split whose answers are kept"),
        ("textvqa", {"answers": []}, "row 0: answers is empty; is it a split"),
        ("mmstar", {"question": " "}, "row 0: question is empty$"),
        ("realworldqa", {"A": "left", "B": "right"}, "row 0 has options in columns of their own"),
    ],
)
def test_what_could_not_be_asked_or_scored_is_told(tmp_path, data, change, said):
    path = tmp_path / f"{data}.parquet"
    rows = [{**row, **change} for row in rows_of(data)]
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ShardError, match=said):
        BENCHMARKS[data].read(path)


def test_what_is_null_in_a_list_of_pictures_is_none_of_them(tmp_path):
    rows = rows_of("mantis")
    rows[0]["images"], rows[1]["images"] = None, [None, *rows[1]["images"]]
    path = tmp_path / "mantis.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second, *_ = BENCHMARKS["mantis"].read(path).questions
    with pytest.raises(ImageError, match=r"row 0 has no picture"):
        first.images[0].read()
    assert [image.read() for image in second.images] == [p["bytes"] for p in rows[1]["images"][1:]]


def test_an_empty_cell_is_no_picture(tmp_path):
    rows = rows_of("pope")
    rows[0]["image"] = None
    path = tmp_path / "pope.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(ImageError, match=r"no picture 0 in image of row 0 .*: the cell is empty"):
        BENCHMARKS["pope"].read(path).questions[0].images[0].read()
