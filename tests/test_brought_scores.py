"""Scores that a corpus brings go with the samples into the new shards, when a selection asked."""

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from support.kept import fields
from support.runs import Run, assert_one_message
from support.shards import write_caption_shard

from openqwen2vl.curation.samples import Sample, read_samples

KEEP = (
    "clip_l14_similarity_score >= 0.2 and metadata.width > 3 and words >= 2 "
    "and caption_frequency < 99 and sha256 != 'none'"
)


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    """Two shards, and beside them and apart tables with a row for each sample."""
    folder, number = tmp_path / "raw", 0
    rows: list[dict[str, Any]] = []
    for shard in ("00000", "00001"):
        write_caption_shard(folder / f"{shard}.tar", 6, seed=number)
        for item in read_samples(folder / f"{shard}.tar", "red"):
            assert isinstance(item, Sample)
            number += 1
            rows.append({"uid": item.uid, "clip_l14_similarity_score": number / 10})
    (tmp_path / "metadata").mkdir()
    table = pl.DataFrame(rows).sample(fraction=1.0, shuffle=True, seed=0)
    table = table.with_columns(
        width=pl.col("clip_l14_similarity_score").mul(10).round().cast(pl.Int64),
        sha256=pl.lit("a text, in place of the 32 bytes that a scorer gives"),
    )
    table.write_parquet(tmp_path / "metadata" / "part.parquet")
    return folder


def words(raw: Path, out: Path, *more: str, keep: str = KEEP) -> list[str]:
    return [
        "curate",
        f"input={{red: {raw}}}",
        f"tables={{red: {raw.parent / 'metadata'}}}",
        f"out={out}",
        f'+selection.sources.red={{input: red, keep: "{keep}"}}',
        "scorers=[image,text]",
        "scorers.image.sha256=false",
        "scorers.text.language=false",
        "duplicates.by=[uid]",
        "report=false",
        "workers=1",
        *more,
    ]


def test_what_was_asked_of_tables_stands_beside_what_was_computed(
    raw: Path, tmp_path: Path, call: Run
) -> None:
    code, _, stderr = call(*words(raw, tmp_path / "out"))
    assert code == 0, stderr
    made = fields(tmp_path / "out" / "shards" / "red")
    known = {
        row["uid"]: row
        for row in pl.read_parquet(raw.parent / "metadata" / "*").iter_rows(named=True)
    }
    assert len(made) == 9  # a width of 4 to 12
    for told in made:
        scores = dict(told["scores"])
        assert scores.pop("words") >= 2
        brought = known[told["uid"]]
        assert scores == {
            "clip_l14_similarity_score": brought["clip_l14_similarity_score"],
            "width": brought["width"],
            "sha256": brought["sha256"],
            "caption_frequency": 1,
        }
    # What de-duplication looks at keeps its own meaning.
    kept = pl.read_parquet(tmp_path / "out" / "kept" / "red.parquet")
    assert kept["width"].unique().to_list() == [64]
    assert "sha256" not in kept.columns
    assert {"width of metadata", "sha256 of metadata", "caption_frequency"} <= set(kept.columns)
    manifest = json.loads((tmp_path / "out" / "shards" / "red" / "manifest.json").read_text())
    assert set(manifest["scores"]) == {"words", *scores}


def test_what_was_not_asked_stays_where_it_is(raw: Path, tmp_path: Path, call: Run) -> None:
    for out, keep in {"one": "words >= 2", "two": KEEP}.items():
        code, _, stderr = call(*words(raw, tmp_path / out, keep=keep))
        assert code == 0, stderr
    assert all(set(told["scores"]) == {"words"} for told in fields(tmp_path / "one/shards/red"))
    columns = pl.read_parquet(tmp_path / "one" / "selection" / "red.parquet").columns
    assert "clip_l14_similarity_score" not in columns


def test_a_kept_table_of_before_is_told(raw: Path, tmp_path: Path, call: Run) -> None:
    out = tmp_path / "out"
    assert call(*words(raw, out))[0] == 0
    path = out / "kept" / "red.parquet"
    pl.read_parquet(path).drop("clip_l14_similarity_score").write_parquet(path)
    told = call(*words(raw, out, "only=reshard", "overwrite=true"))
    assert_one_message(told, "has no column clip_l14_similarity_score", "select and deduplicate")
