"""Steps of `curate` build on each other, or say that they cannot."""

import os
from pathlib import Path

import polars as pl
import pytest
from support.curated import contents, curated, tree, words, write_source, write_sources
from support.runs import Run, assert_one_message

from openqwen2vl.packing.locks import only_writer


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "raw")


@pytest.fixture
def out(raw: Path, tmp_path: Path, call: Run) -> Path:
    curated(call, raw, tmp_path / "out")
    return tmp_path / "out"


STRICTER = "selection.sources.red.keep='words >= 8'"


@pytest.mark.parametrize(
    ("change", "step", "said"),
    [
        ([STRICTER], "deduplicate", "what to keep changed since the step select"),
        ([STRICTER], "reshard", "what to keep changed since the step select"),
        (["duplicates.by=[uid]"], "reshard", "duplicates changed since the step deduplicate"),
        (["duplicates.distance=0"], "reshard", "duplicates changed since the step deduplicate"),
    ],
)
def test_a_step_does_not_build_on_other_settings(
    raw: Path, out: Path, call: Run, change: list[str], step: str, said: str
) -> None:
    before = tree(out)
    assert_one_message(call(*words(raw, out, *change, f"only={step}")), said)
    assert tree(out) == before


def test_shards_that_changed_after_they_were_scored_are_not_selected(
    raw: Path, out: Path, call: Run
) -> None:
    write_source(raw / "red", 3, 8, seed=9)
    assert_one_message(call(*words(raw, out, "only=select")), "changed after")
    assert_one_message(call(*words(raw, out, "only=reshard")), "inputs changed since the step")


def test_scores_of_two_settings_do_not_mix(raw: Path, out: Path, call: Run) -> None:
    shard = raw / "red" / "00002.tar"
    mine = out / "scores" / "red" / "text" / "00002.parquet"
    mine.unlink()
    alone = raw.parent / "alone"
    alone.mkdir()
    os.link(shard, alone / shard.name)
    other = [w for w in words(raw, out, "only=score") if not w.startswith(("input=", "scorers."))]
    other += [f"input={{red: {alone}}}", "scorers.text.language=true"]
    other = [w.replace("input: blue", "input: red") for w in other]
    code, _, stderr = call(*other)
    assert code == 0, stderr
    assert_one_message(call(*words(raw, out, "only=select")), "other settings or weights")


def test_all_sources_are_selected_or_none(raw: Path, out: Path, call: Run) -> None:
    before = tree(out)
    nothing = "selection.sources.blue.keep='words > 1000'"
    assert_one_message(call(*words(raw, out, STRICTER, nothing)), "nothing of blue stays")
    assert tree(out) == before


def test_shards_of_sources_that_are_no_longer_chosen_do_not_stay_unseen(
    raw: Path, out: Path, call: Run
) -> None:
    renamed = [w.replace("sources.blue=", "sources.green=") for w in words(raw, out)]
    assert_one_message(call(*renamed), "holds blue, which this selection does not make")
    code, _, stderr = call(*renamed, "overwrite=true")
    assert code == 0, stderr
    assert {path.name for path in (out / "shards").iterdir()} == {"red", "green"}
    assert {path.stem for path in (out / "kept").iterdir()} == {"red", "green"}


def test_two_runs_do_not_share_a_folder(raw: Path, out: Path, call: Run) -> None:
    with only_writer(out):
        assert_one_message(call(*words(raw, out)), "another process is writing")


def test_duplicates_may_stay(raw: Path, tmp_path: Path, call: Run) -> None:
    figures = curated(call, raw, tmp_path / "out", "duplicates=null")
    assert all(not told["deduplicate"] for told in figures["funnel"].values())
    kept = pl.read_parquet(tmp_path / "out" / "kept" / "red.parquet")
    assert sum(contents(tmp_path / "out" / "shards" / "red").values()) == len(kept) == 21


def test_a_scorer_may_look_at_some_inputs_only(raw: Path, tmp_path: Path, call: Run) -> None:
    blind = "selection.sources.blue.keep=all"
    few = "scorer_inputs={text: [red]}"
    curated(call, raw, tmp_path / "out", blind, few, "duplicates.by=[uid,image]")
    assert not (tmp_path / "out" / "scores" / "blue" / "text").exists()
    assert (tmp_path / "out" / "scores" / "red" / "text").exists()


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("overwrite=no", "overwrite is 'no'; expected true or false"),
        ("blur=no", "expected true or false"),
        ("workers=abc", "workers is 'abc'"),
        ("workers=-1", "expected at least 0 and 1"),
        ("num_gpus=1", "which only Ray deals out"),
        ("num_gpus=1.5", "expected a whole number, or a share of one GPU"),
        ("seed=abc", "expected a whole number"),
        ("window=1.5", "expected a whole number"),
        ("samples_per_shard=abc", "expected a whole number"),
        ("duplicates.by=null", "expected a list"),
        ("duplicates.by=uid", "expected a list"),
        ("selection.lists=null", "expected names with values"),
        ("tables=/tmp", "expected names with values"),
        ("contamination.against=/tmp", "expected names with values"),
        ("selection.lists={dfn: /nope.npy}", "+selection.lists.KEY"),
        ("+selection.lists.dfn=/nope.npy", "no file /nope.npy"),
        ("+selection.sources={../evil: {input: red, keep: all}}", "is to name a folder"),
        ("scorer_inputs={text: [rde]}", "scorer_inputs speaks of rde"),
        ("scorers=[text]", "has no column 'width'"),
    ],
)
def test_more_mistakes_get_one_message_before_anything_is_scored(
    raw: Path, tmp_path: Path, call: Run, override: str, said: str
) -> None:
    assert_one_message(call(*words(raw, tmp_path / "new", override)), said)
    assert not (tmp_path / "new" / "scores").exists()


def test_duplicates_by_bytes_need_the_hashes(raw: Path, tmp_path: Path, call: Run) -> None:
    changes = ("scorers=[text]", "selection.sources.blue.keep=all")
    said = "duplicates by image need sha256"
    assert_one_message(call(*words(raw, tmp_path / "new", *changes)), said)


def test_a_file_for_out_and_damaged_figures_are_told(raw: Path, tmp_path: Path, call: Run) -> None:
    (tmp_path / "file").touch()
    assert_one_message(call(*words(raw, tmp_path / "file")), "give another out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "curation.json").write_text("[]")
    assert_one_message(call(*words(raw, tmp_path / "out")), "holds no figures of steps")
