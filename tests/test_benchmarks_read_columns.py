"""Files with each option in a column, as VLMEvalKit writes them."""

import random

import pytest
from support.mini_benchmarks import MINI, write_mini
from support.mini_files import WRITERS

from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.evaluation.protocols import protocol
from openqwen2vl.formats.errors import ShardError

PROTOCOLS = [protocol("standard"), protocol("oqvl-paper")]


def rows_of(data):
    split, make = MINI[data]
    return make(random.Random(f"{data}/{split}"))


def ai2d_in_columns():
    for number, row in enumerate(rows_of("ai2d")):
        options = dict(zip("ABCD", row["options"], strict=True))
        kept = {"question": row["question"], "image": row["image"], "category": "foodWeb"}
        yield {"index": number, **kept, **options, "answer": "ABCD"[int(row["answer"])]}


def mmstar_in_columns():
    for row in rows_of("mmstar"):
        question, shown = row["question"].split("\nOptions: ")
        options = dict(part.split(": ") for part in shown.split(", "))
        kept = {name: row[name] for name in ("index", "image", "answer", "category")}
        yield {**kept, "question": question, **options, "l2-category": row["l2_category"]}


IN_COLUMNS = {"ai2d": ai2d_in_columns, "mmstar": mmstar_in_columns}


@pytest.mark.parametrize("data", IN_COLUMNS)
@pytest.mark.parametrize("form", WRITERS)
def test_options_in_columns_make_the_same_questions(tmp_path, data, form):
    one = BENCHMARKS[data]
    listed = one.read(write_mini(tmp_path / "listed", data)).questions
    path = tmp_path / f"{data}.{form}"
    WRITERS[form](path, list(IN_COLUMNS[data]()))
    columns = one.read(path).questions
    assert [question.id for question in columns] == [question.id for question in listed]
    for here, there in zip(columns, listed, strict=True):
        assert here.fields == there.fields
        for words in PROTOCOLS:
            assert one.prompt(here, words).text == one.prompt(there, words).text
        assert [image.read() for image in here.images] == [image.read() for image in there.images]


def test_a_row_with_fewer_options_has_fewer(tmp_path):
    rows = list(ai2d_in_columns())
    rows[0] |= {"C": "nan", "D": "", "answer": "B"}
    WRITERS["tsv"](tmp_path / "ai2d.tsv", rows)
    first, second, *_ = BENCHMARKS["ai2d"].read(tmp_path).questions
    assert list(first.fields["options"]) == ["A", "B"]
    assert list(second.fields["options"]) == ["A", "B", "C", "D"]


def test_a_question_that_shows_its_options_keeps_them(tmp_path):
    rows = list(mmstar_in_columns())
    rows[0]["question"] += "\nOptions: A: sun, B: moon"
    WRITERS["tsv"](tmp_path / "mmstar.tsv", rows)
    first, *_ = BENCHMARKS["mmstar"].read(tmp_path).questions
    assert first.fields["question"] == rows[0]["question"]


def test_a_letter_without_a_column_is_told(tmp_path):
    rows = [{**row, "answer": "E"} for row in ai2d_in_columns()]
    WRITERS["tsv"](tmp_path / "ai2d.tsv", rows)
    with pytest.raises(ShardError, match=r"row 0: the answer is 'E'; the options are A, B, C, D"):
        BENCHMARKS["ai2d"].read(tmp_path)


def test_a_file_with_neither_names_both_layouts(tmp_path):
    rows = [{k: v for k, v in row.items() if k not in "ABCD"} for row in ai2d_in_columns()]
    WRITERS["tsv"](tmp_path / "ai2d.tsv", rows)
    with pytest.raises(ShardError, match=r"lacks options or A"):
        BENCHMARKS["ai2d"].read(tmp_path)
