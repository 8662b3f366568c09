import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import pyarrow.parquet as pq
import pytest
from support.runs import environment
from support.samples import LengthScorer
from support.shards import picture, write_caption_shard, write_tar

from openqwen2vl.curation import score
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scorers.image import ImageScorer
from openqwen2vl.curation.scorers.text import TextScorer
from openqwen2vl.curation.scores import ScoreError, read_facts
from openqwen2vl.engine import resident
from openqwen2vl.engine.local import map_inline, map_shards
from openqwen2vl.formats.errors import ShardError


@pytest.fixture
def raw(tmp_path):
    for number in range(4):
        write_caption_shard(tmp_path / "raw" / f"{number:05d}.tar", 7, seed=number)
    jpeg = picture(random.Random(0))
    odd = {
        "a.jpg": b"no picture",
        "a.txt": b"a broken one",
        "b.txt": b"a half",
        "c.jpg": jpeg,
        "c.txt": b"http://a.com/b.jpg",
        "d.jpg": jpeg[:-30],
        "d.txt": b"a cut one",
    }
    write_tar(tmp_path / "raw" / "00004.tar", odd)
    return sorted((tmp_path / "raw").glob("*.tar"))


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in sorted(folder.rglob("*.parquet"))}


def state(folder):
    """What tells whether a file was written anew."""
    found = {path: path.stat() for path in sorted(folder.rglob("*.parquet"))}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def test_every_sample_that_can_be_read_has_a_row_with_scores_or_why_not(raw, tmp_path):
    paths = score_source(raw, "tiny", [ImageScorer(), TextScorer()], tmp_path / "scores")
    assert [p.relative_to(tmp_path).as_posix() for p in paths["text"]] == [
        f"scores/tiny/text/{number:05d}.parquet" for number in range(5)
    ]
    rows = pq.read_table(paths["image"][4]).to_pylist()
    assert [row["key"] for row in rows] == ["a", "c", "d"]
    assert [row["width"] for row in rows] == [None, 64, None]
    assert rows[1]["image_error"] is None
    assert "cannot identify image file" in rows[0]["image_error"]
    assert "0x" not in rows[0]["image_error"]
    assert "truncated" in rows[2]["image_error"]
    facts = read_facts(paths["image"][4])
    assert (facts.rejects, facts.errors) == ({"missing_image": 1}, 2)
    assert facts.scorer["name"] == "image"
    texts = pq.read_table(paths["text"][4]).to_pylist()
    assert [row["uid"] for row in texts] == [row["uid"] for row in rows]
    assert [row["bad_pattern"] for row in texts] == [None, "file_name", None]


def test_types_are_those_of_the_contract(raw, tmp_path):
    paths = score_source(raw, "tiny", [ImageScorer(), TextScorer()], tmp_path / "scores")
    told = {}
    for path in (paths["image"][0], paths["text"][0]):
        told |= {field.name: str(field.type) for field in pq.read_schema(path)}
    assert told == {
        "key": "string",
        "uid": "string",
        "width": "int32",
        "height": "int32",
        "aspect": "float",
        "bytes": "int64",
        "sha256": "fixed_size_binary[32]",
        "phash": "uint64",
        "blank_share": "float",
        "image_error": "string",
        "characters": "int32",
        "words": "int32",
        "unique_ratio": "float",
        "language": "string",
        "language_probability": "float",
        "bad_pattern": "string",
        "caption_hash": "uint64",
        "text_error": "string",
    }


@pytest.mark.slow
@pytest.mark.parametrize("workers", [2, 3])
def test_workers_and_company_do_not_change_a_byte(raw, tmp_path, workers):
    scorers = [ImageScorer(), TextScorer()]
    score_source(raw, "tiny", scorers, tmp_path / "together")
    for scorer in scorers:
        mapper = partial(map_shards, workers=workers)
        score_source(raw[::-1], "tiny", [scorer], tmp_path / "apart", mapper)
    assert files(tmp_path / "together") == files(tmp_path / "apart")


def test_batches_do_not_change_a_byte(raw, tmp_path):
    for size in (1, 3, 100):
        scorers = [ImageScorer(batch_size=size), TextScorer(batch_size=size, language=False)]
        score_source(raw, "tiny", scorers, tmp_path / str(size))
    assert files(tmp_path / "1") == files(tmp_path / "3") == files(tmp_path / "100")


def test_a_shard_that_has_its_scores_is_not_read_again(raw, tmp_path, monkeypatch):
    out, read = tmp_path / "scores", []
    reader = score.read_samples
    monkeypatch.setattr(
        score, "read_samples", lambda path, source: read.append(path.stem) or reader(path, source)
    )
    score_source(raw[:3], "tiny", [LengthScorer()], out)
    before = state(out)
    score_source(raw, "tiny", [LengthScorer(), LengthScorer(name="other")], out)
    assert read == [*("00000", "00001", "00002"), *(shard.stem for shard in raw)]
    score_source(raw, "tiny", [LengthScorer(), LengthScorer(name="other")], out)
    assert len(read) == 8
    assert {path: known for path, known in state(out).items() if path in before} == before


def test_scores_of_other_settings_are_told_before_anything_is_scored(raw, tmp_path):
    out = tmp_path / "scores"
    score_source(raw[3:], "tiny", [LengthScorer()], out)
    before = files(out)
    with pytest.raises(ScoreError, match="setting was 0 then, is 1 now"):
        score_source(raw, "tiny", [LengthScorer(setting=1)], out)
    assert files(out) == before
    score_source(raw, "tiny", [LengthScorer(setting=1)], out, overwrite=True)
    assert len(files(out)) == 5
    assert all(read_facts(path).scorer["setting"] == 1 for path in out.rglob("*.parquet"))


def test_a_shard_that_changed_is_told_or_scored_again(raw, tmp_path):
    out = tmp_path / "scores"
    score_source(raw, "tiny", [LengthScorer()], out)
    before = state(out)
    write_caption_shard(raw[2], 9, seed=9)
    with pytest.raises(ScoreError, match=r"00002\.tar had \d+ bytes then, \d+ now"):
        score_source(raw, "tiny", [LengthScorer()], out)
    paths = score_source(raw, "tiny", [LengthScorer()], out, overwrite=True)
    assert pq.read_table(paths["length"][2]).num_rows == 9
    after = state(out)
    assert [path.stem for path in after if after[path] != before[path]] == ["00002"]


def test_a_shard_that_changes_while_it_is_scored_leaves_no_scores(raw, tmp_path):
    class Meddler(LengthScorer):
        def score(self, samples):
            os.utime(raw[0])
            return super().score(samples)

    with pytest.raises(ShardError, match=r"00000\.tar changed while it was scored"):
        score_source(raw, "tiny", [Meddler()], tmp_path / "scores")
    assert files(tmp_path / "scores") == {}


def test_memory_that_ran_out_changes_no_byte(raw, tmp_path, caplog):
    score_source(raw, "tiny", [LengthScorer()], tmp_path / "fitting")
    score_source(raw, "tiny", [LengthScorer(most=3)], tmp_path / "onwards")
    assert "length ran out of memory on 4 samples at once; going on with 2" in caplog.text
    # Of the last shard three samples can be read, which fit until others did not.
    score_source(raw[::-1], "tiny", [LengthScorer(most=3)], tmp_path / "backwards")
    assert files(tmp_path / "onwards") == files(tmp_path / "fitting")
    assert files(tmp_path / "backwards") == files(tmp_path / "fitting")


def test_a_process_scores_with_one_scorer_and_keeps_none(raw, tmp_path):
    used = set()

    class Heavy(LengthScorer):
        def score(self, samples):
            used.add(id(self))
            return super().score(samples)

    def unpickled(function, jobs):
        """Give each job a scorer of its own, as one that comes from another process has."""
        for job in jobs:
            vars(job.tasks[0])["scorer"] = Heavy()
        return map_inline(function, jobs)

    score_source(raw, "tiny", [Heavy()], tmp_path / "scores", unpickled)
    assert len(used) == 1
    assert resident._kept == {}


@pytest.mark.parametrize("kind", ["shards", "scorers"])
def test_names_that_would_share_a_file_are_told(raw, tmp_path, kind):
    shards, scorers = raw[:1], [LengthScorer()]
    if kind == "shards":
        (tmp_path / "more").mkdir()
        shards = [*shards, shutil.copy(raw[0], tmp_path / "more" / raw[0].name)]
    else:
        scorers = [*scorers, LengthScorer(setting=2)]
    with pytest.raises(ScoreError, match=f"two {kind} are called"):
        score_source(shards, "tiny", scorers, tmp_path / "scores")


def test_a_scorer_that_takes_nothing_at_a_time_is_told(raw, tmp_path):
    with pytest.raises(ScoreError, match="batch_size of length is 0; it starts at 1"):
        score_source(raw, "tiny", [LengthScorer(batch_size=0)], tmp_path / "scores")


SLOW = """
import sys, time
from pathlib import Path
sys.path.insert(0, "tests")
from support.samples import LengthScorer
from openqwen2vl.curation.score import score_source

class Slow(LengthScorer):
    def score(self, samples):
        time.sleep(0.1)
        return super().score(samples)

shards = sorted(Path(sys.argv[1]).glob("*.tar"))
score_source(shards, "tiny", [Slow()], Path(sys.argv[2]))
"""


@pytest.mark.slow
def test_a_run_that_is_killed_goes_on_where_it_was(raw, tmp_path):
    for number in range(5, 40):
        write_caption_shard(raw[0].with_name(f"{number:05d}.tar"), 7, seed=number)
    words = [sys.executable, "-c", SLOW, raw[0].parent, tmp_path / "out"]
    shards = sorted(raw[0].parent.glob("*.tar"))
    score_source(shards, "tiny", [LengthScorer()], tmp_path / "unbroken")
    counts = []
    for kill in (2, 9):
        process = subprocess.Popen(words, env=environment(), cwd=os.path.dirname(__file__) + "/..")
        deadline = time.monotonic() + 60
        while len(state(tmp_path / "out")) < kill and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        counts.append(len(files(tmp_path / "out")))
    assert kill <= counts[1] < 40
    before = state(tmp_path / "out")
    score_source(shards, "tiny", [LengthScorer()], tmp_path / "out")
    assert files(tmp_path / "out") == files(tmp_path / "unbroken")
    after = state(tmp_path / "out")
    assert {path: after[path] for path in before} == before
    left = [p.name for p in (tmp_path / "out").rglob(".*") if not p.name.endswith(".lock")]
    assert left == []
