"""docs/evaluation.md names what the benchmarks want, and nothing that they do not."""

from pathlib import Path

import pytest

from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.benchmarks.known import BENCHMARKS
from openqwen2vl.evaluation.protocols import PROTOCOLS

PAGE = (Path(__file__).parents[1] / "docs" / "evaluation.md").read_text()
ROWS = {
    name.strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]]
    for line in PAGE.partition("| name |")[2].partition("\n\n")[0].splitlines()[2:]
    for name in line.split("|")[1].split(",")
}
HEADLINES = {
    line.split("|")[1].strip(" `"): [cell.strip() for cell in line.split("|")[2:-1]]
    for line in PAGE.partition("| benchmark | headline")[2].partition("\n\n")[0].splitlines()[2:]
}
PLAIN = [one for one in BENCHMARKS.values() if not one.name.endswith("shot")]


def test_every_benchmark_is_there_and_no_other() -> None:
    assert list(ROWS) == [one.name for one in PLAIN]
    shots = {one.name.rpartition("_")[0] for one in BENCHMARKS.values()} - {""}
    asked = PAGE.partition("also come as `NAME_0shot`")[0].splitlines()[-1]
    assert {name for name in shots if f"{name}_8shot" in BENCHMARKS} == {
        name for name in ROWS if f"`{name}`" in asked
    }


@pytest.mark.parametrize("one", PLAIN, ids=lambda one: one.name)
def test_files_and_columns_are_those_that_are_read(one: Benchmark) -> None:
    data, split, counts, columns, pictures = ROWS[one.name]
    schema = one.schema
    assert data == f"`{schema.data}`"
    assert split.split(",")[0] in schema.splits
    assert counts.split(" or ") == [str(count) for count in schema.counts]
    for column in (*schema.columns, *schema.images):
        told = f"{columns} {pictures}"
        if schema.picture_id and column in schema.images:
            told += " image"
        first = column.split("|")[0]
        # Of a row of columns the first and the last are named.
        between = first[:-1] in ("choice_", "image_") and first[-1] not in "a1d7"
        assert between or first in told, column


@pytest.mark.parametrize("one", BENCHMARKS.values(), ids=lambda one: one.name)
def test_headlines_are_those_of_the_scores(one: Benchmark) -> None:
    told = dict(zip(PROTOCOLS, HEADLINES.get(one.name, HEADLINES["all others"]), strict=True))
    for protocol, text in told.items():
        if protocol in one.protocols:
            assert text.startswith(f"`{one.headline[protocol]}`")
        else:
            assert text.startswith("not defined")
