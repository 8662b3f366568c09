"""Scores that new shards carry under one name or, where two scorers have it, under two."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.kept import fields, samples, write_kept, write_raw

from openqwen2vl.curation.resharding.columns import ScoreColumn
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.formats.errors import UserError


@pytest.fixture
def scored(tmp_path):
    """A raw shard, and scores of two scorers that have a column ``words``."""
    write_raw(tmp_path / "raw", [3])
    keys = [sample.key for sample in samples(tmp_path / "raw")]
    for number, place in enumerate(("text", "text2", "more/text")):
        path = tmp_path / place / "00000.parquet"
        path.parent.mkdir(parents=True)
        columns = {"key": keys, "words": [number] * 3, "letters": [10 + number] * 3}
        pq.write_table(pa.table(columns), path)
    return tmp_path


def run(scored, *columns, out="out"):
    kept = scored / "kept.parquet"
    write_kept(kept, samples(scored / "raw"), words=[7] * 3)
    keys = {"source": "tiny", "name": "tiny", "scores": columns}
    return reshard(ReshardRequest(kept=kept, input=scored / "raw", out=scored / out, **keys))


def test_a_name_that_two_scorers_have_is_told_by_its_place(scored):
    two = [ScoreColumn("words", scored / place) for place in ("text", "text2")]
    manifest = run(scored, *two, ScoreColumn("letters", scored / "text2"), ScoreColumn("words"))
    names = ("text.words", "text2.words", "letters", "kept.words")
    assert manifest.scores == names
    told = dict(zip(names, (0, 1, 11, 7), strict=True))
    assert [found["scores"] for found in fields(scored / "out")] == [told] * 3


def test_a_column_that_is_asked_for_twice_is_there_once(scored):
    twice = [ScoreColumn("words", scored / "text")] * 2
    assert run(scored, *twice).scores == ("words",)
    assert [found["scores"] for found in fields(scored / "out")] == [{"words": 0}] * 3


def test_labels_are_the_callers_and_decide_what_is_another_request(scored):
    run(scored, ScoreColumn("words", scored / "text", label="many"))
    assert [found["scores"] for found in fields(scored / "out")] == [{"many": 0}] * 3
    for column in (
        ScoreColumn("words", scored / "text"),
        ScoreColumn("letters", scored / "text", label="many"),
    ):
        with pytest.raises(UserError, match="other samples or settings"):
            run(scored, column)


def test_columns_that_no_label_tells_apart_are_told(scored):
    two = [ScoreColumn("words", scored / place) for place in ("text", "more/text")]
    with pytest.raises(UserError, match=r"two columns .* text\.words.*give one of them a label"):
        run(scored, *two)
