"""A scorer that fails leaves no scores that would count as made: a new start scores them."""

from dataclasses import dataclass

import pyarrow.parquet as pq
import pytest
from support.samples import LengthScorer, samples_of

from openqwen2vl.curation.limits import LEAST_SAMPLES
from openqwen2vl.curation.score import score_source
from openqwen2vl.curation.scores import ScoreError, list_scores, read_facts
from openqwen2vl.formats.errors import ImageError


def shards_of(folder, *captions):
    paths = [folder / f"{number:05d}.tar" for number in range(len(captions))]
    for path, some in zip(paths, captions, strict=True):
        samples_of(path, captions=some)
    return paths


def test_a_scorer_that_breaks_down_leaves_the_other_shards_to_a_new_start(tmp_path):
    words = [["fair"] * 3, ["fair", "boom", "fair"], ["boom"] * 3]
    raw, out = shards_of(tmp_path / "raw", *words), tmp_path / "scores"
    with pytest.raises(RuntimeError, match=r"failed twice on 00001 of .*tiny/00001.*'boom'"):
        score_source(raw, "tiny", [LengthScorer()], out)
    assert [path.stem for path in list_scores(out / "tiny" / "length")] == ["00000"]

    class Mended(LengthScorer):
        def score(self, samples):
            return {"length": [4.0] * len(samples)}

    paths = score_source(raw, "tiny", [Mended()], out)["length"]
    assert all(pq.read_table(path)["length"].to_pylist() == [4.0] * 3 for path in paths)


@dataclass
class Wanting(LengthScorer):
    """Tells of ``bad`` captions that they cannot be scored, or raises what says so."""

    raises: bool = False

    def score(self, samples):
        bad = [sample.caption == "bad" for sample in samples]
        if self.raises and any(bad):
            raise ImageError("cannot be decoded")
        told = ["no number in the answer" if is_bad else None for is_bad in bad]
        return {"length": [None if is_bad else 1.0 for is_bad in bad], "length_error": told}


@pytest.mark.parametrize("raises", [False, True])
def test_a_shard_of_which_most_could_not_be_scored_stops_the_run(tmp_path, raises):
    half = LEAST_SAMPLES // 2
    words = [
        ["bad"] * (LEAST_SAMPLES - 1),
        ["bad"] * half + ["fair"] * half,
        ["bad"] * (half + 1) + ["fair"] * (half - 1),
    ]
    raw, out = shards_of(tmp_path / "raw", *words), tmp_path / "scores"
    scorer = Wanting(raises=raises)
    said = r"length could not score 51 of the 100 samples of .*00002\.tar, the first, 00000, since"
    with pytest.raises(ScoreError, match=said):
        score_source(raw, "tiny", [scorer], out)
    paths = list_scores(out / "tiny" / "length")
    assert [read_facts(path).errors for path in paths] == [LEAST_SAMPLES - 1, half]
