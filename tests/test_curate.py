"""`curate` from raw shards to new ones: nothing lost, nothing made twice, the same bytes anyhow."""

import json
import re
from collections import Counter
from pathlib import Path

import polars as pl
import pytest
from support.curated import STEPS, contents, curated, tree, words, write_sources
from support.runs import Run, assert_one_message

from openqwen2vl.curation import histograms
from openqwen2vl.curation.selection import spines
from openqwen2vl.curation.selection.uids import read_uids


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    return write_sources(tmp_path / "raw")


def test_every_sample_is_kept_once_or_dropped_with_a_reason(
    raw: Path, tmp_path: Path, call: Run
) -> None:
    out = tmp_path / "out"
    figures = curated(call, raw, out)
    funnels = figures["funnel"]
    for name, shards in (("red", 3), ("blue", 3)):
        told = funnels[name]
        assert told["delivered"] == {"samples": 9 * shards}
        assert told["unreadable"] == {"missing_image": shards}
        assert told["selection"] == {"selection": shards}
        lost = sum(sum(told[s].values()) for s in ("unreadable", "selection", "deduplicate"))
        assert told["kept"]["samples"] == told["delivered"]["samples"] - lost
        kept = pl.read_parquet(out / "kept" / f"{name}.parquet")
        dropped = [
            pl.read_parquet(out / "dropped" / f"{step}-{name}.parquet").select("shard", "key")
            for step in ("select", "deduplicate")
        ]
        rows = pl.concat([kept.select("shard", "key"), *dropped]).rows()
        assert len(rows) == len(set(rows)) == 8 * shards
        assert sum(contents(out / "shards" / name).values()) == len(kept)
    # The first and the last of each shard share a picture; one shard is in both sources.
    assert funnels["red"]["deduplicate"] == {"duplicate_image": 3}
    assert funnels["blue"]["deduplicate"] == {"duplicate_image": 3, "duplicate_uid": 6}
    sources = Counter(map(tuple, pl.read_parquet(out / "kept" / "red.parquet")["sources"]))
    assert sources == {("red",): 12, ("red", "blue"): 6}


def test_captions_and_bytes_are_those_delivered_and_scores_travel_along(
    raw: Path, tmp_path: Path, call: Run
) -> None:
    out = tmp_path / "out"
    curated(call, raw, out)
    given, found = contents(raw / "red"), contents(out / "shards" / "red")
    assert found <= given
    shard = sorted((out / "shards" / "blue").glob("*.tar"))[0]
    told = json.loads(re.search(rb'\{"uid".*?\}\}', shard.read_bytes())[0])
    assert told["url"] == "x"
    assert told["origin"]["source"] == "blue"
    assert set(told["scores"]) == {"words", "width"}
    assert told["scores"]["words"] >= 3


def test_workers_and_starting_again_change_no_byte(raw: Path, tmp_path: Path, call: Run) -> None:
    curated(call, raw, tmp_path / "one")
    expected = tree(tmp_path / "one")
    assert {name.split("/")[0] for name in expected} == set(STEPS)
    for step in ("score", "select", "deduplicate", "reshard"):
        curated(call, raw, tmp_path / "two", f"only={step}", "workers=2")
    assert tree(tmp_path / "two") == expected
    scored = tmp_path / "one" / "scores" / "red" / "image" / "00000.parquet"
    before = scored.stat().st_mtime_ns
    curated(call, raw, tmp_path / "one")
    assert scored.stat().st_mtime_ns == before
    assert tree(tmp_path / "one") == expected


@pytest.mark.slow
def test_ray_gives_the_same_bytes(raw: Path, tmp_path: Path, call: Run) -> None:
    curated(call, raw, tmp_path / "local")
    curated(call, raw, tmp_path / "ray", "engine=ray", "workers=2")
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def test_the_page_shows_funnel_thresholds_and_samples(raw: Path, tmp_path: Path, call: Run) -> None:
    curated(call, raw, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    assert "selection: selection" in html
    assert "&gt;= 3</text>" in html  # the threshold, beside its line
    assert html.count("<img ") >= 12
    assert "<script" not in html
    assert "&lt;script&gt;" in html
    assert "histograms show" not in html


def test_the_page_says_when_histograms_show_a_part(
    raw: Path, tmp_path: Path, call: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spines, "SHARDS", 1)
    monkeypatch.setattr(histograms, "PIECES", 1)
    curated(call, raw, tmp_path / "out")
    html = (tmp_path / "out" / "report.html").read_text()
    told = re.search(r"; histograms show its first (\d+) of (\d+) samples", html)
    assert told is not None
    assert 0 < int(told[1]) < int(told[2])


def test_pictures_of_evaluations_go(raw: Path, tmp_path: Path, call: Run) -> None:
    seen = next(iter(contents(raw / "red")))[1]
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "q1.jpg").write_bytes(seen)
    words = f"contamination.against={{mine: {tmp_path / 'bench'}}}"
    told = curated(call, raw, tmp_path / "told", words, "contamination.drop=false")
    assert "contaminated" not in told["funnel"]["red"]["deduplicate"]
    assert sum(c["samples"] for c in told["deduplicate"]["contamination"].values()) > 0
    gone = curated(call, raw, tmp_path / "gone", words)
    assert gone["funnel"]["red"]["deduplicate"]["contaminated"] > 0
    pictures = {image for _, image, _ in contents(tmp_path / "gone" / "shards" / "red")}
    assert seen not in pictures


def test_a_source_of_tables_ends_as_a_list_of_uids(tmp_path: Path, call: Run) -> None:
    (tmp_path / "meta").mkdir()
    uids = [f"{number:032x}" for number in (5, 3, 9)]
    table = pl.DataFrame({"uid": uids, "clip_l14_similarity_score": [0.4, 0.1, 0.3]})
    table.write_parquet(tmp_path / "meta" / "00000.parquet")
    code, _, stderr = call(
        "curate",
        f"input={{medium: {tmp_path / 'meta'}}}",
        f"out={tmp_path / 'out'}",
        "+selection.sources.medium={input: medium, keep: 'clip_l14_similarity_score >= 0.3'}",
        "duplicates.by=[uid]",
        "json=true",
    )
    assert code == 0, stderr
    found = read_uids(tmp_path / "out" / "uids" / "medium.npy")
    assert [tuple(map(int, pair)) for pair in found.pairs] == [(0, 5), (0, 9)]


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("selection.sources.red.keep='wrods >= 3'", "did you mean 'words'"),
        ("selection.sources.red.keep=\"words >= 'a'\"", "is a string"),
        ("selection.sources.red.keep='words >='", "invalid syntax"),
        ("selection.sources.red.keep='words > 1000'", "nothing of red stays of 24 samples"),
        ("selection.sources.red.keep=words > 1000", "quotes"),
        ("selection.sources.red.input=rde", "did you mean 'red'"),
        ("only=sclect", "there are null, score, select"),
        ("engine=spark", "there are local, ray"),
        ("scorers=[image,txt]", "txt"),
        ("duplicates.by=[phash]", "expected some of"),
        ("duplicates.distnce=3", "did you mean 'distance'"),
        ("samples_per_shard=0", "it starts at 1"),
        ("input={red: /nope}", "no folder /nope"),
        ("input=/tmp", "there are tmp"),
        ("tables={rde: /nope}", "inputs are red, blue"),
        ("contamination.against={mine: /nope}", "/nope"),
    ],
)
def test_mistakes_get_one_message(
    raw: Path, tmp_path: Path, call: Run, override: str, said: str
) -> None:
    assert_one_message(call(*words(raw, tmp_path / "out", override)), said)


def test_selecting_without_scores_says_what_is_missing(
    raw: Path, tmp_path: Path, call: Run
) -> None:
    assert_one_message(call(*words(raw, tmp_path / "out", "only=select")), "'words'")
