"""The bench of filtering: what it measures with is right, and it runs."""

import importlib
import json
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.runs import environment

from openqwen2vl.corpus import scenes
from openqwen2vl.corpus.split import is_held_out
from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.curation.scorers.clip import ClipScorer

BENCH = Path(__file__).parents[1] / "bench"
ARMS = {"unfiltered", "filtered", "oracle"}

Bench = Callable[[str], ModuleType]


@pytest.fixture(scope="module")
def bench() -> Iterator[Bench]:
    """Give the bench's modules by name: they import each other as scripts do."""
    sys.path.insert(0, str(BENCH))
    yield importlib.import_module
    sys.path.remove(str(BENCH))


def wordings(scene: scenes.Scene) -> set[str]:
    return {scenes.caption(scene, random.Random(number)) for number in range(50)}


def pairs(bench: Bench, folder: Path, count: int, held_out: bool = False) -> list[Sample]:
    corpus = bench("filtering_corpus")
    corpus.write_pairs(folder, "raw", 5, count, corpus.Web(0.5, 0.8), held_out)
    found = [item for path in sorted(folder.glob("*.tar")) for item in read_samples(path, "web")]
    assert all(isinstance(item, Sample) for item in found)
    return found


@pytest.mark.parametrize("held_out", [False, True])
def test_labels_of_pairs_are_true(bench: Bench, tmp_path: Path, held_out: bool) -> None:
    fates = Counter[str]()
    for number, sample in enumerate(pairs(bench, tmp_path, 300, held_out)):
        scene = scenes.draw_scene(random.Random(f"5/raw/{number}"), held_out)
        assert is_held_out(scene.description) is held_out
        fates[sample.fields["noise"]] += 1
        if sample.fields["noise"] == "clean":
            assert sample.caption in wordings(scene)
    assert set(fates) == {"clean", "mismatched", "file_name", "stock", "truncated", "shouting"}
    assert 125 <= fates["mismatched"] <= 175
    assert 90 <= fates["clean"] <= 150


def test_mismatched_captions_are_seldom_true(bench: Bench, tmp_path: Path) -> None:
    found = [
        sample.caption in wordings(scenes.draw_scene(random.Random(f"5/raw/{number}"), False))
        for number, sample in enumerate(pairs(bench, tmp_path, 400))
        if sample.fields["noise"] == "mismatched"
    ]
    assert sum(found) <= 0.03 * len(found)


def test_a_corpus_is_a_function_of_its_seed(bench: Bench, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        pairs(bench, tmp_path / folder, 20)
    names = [path.name for path in sorted((tmp_path / "one").iterdir())]
    assert names
    for name in names:
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_of_four_captions_one_is_true_and_all_are_alike(bench: Bench, tmp_path: Path) -> None:
    path = bench("filtering_corpus").write_questions(tmp_path, 3, 200)
    answers = Counter[int]()
    for number, line in enumerate(path.read_text().splitlines()):
        record = json.loads(line)
        scene = scenes.draw_scene(random.Random(f"3/which/{number}"), held_out=True)
        right = [option in wordings(scene) for option in record["options"]]
        assert right == [place == record["answer"] for place in range(4)]
        assert len(set(record["options"])) == 4
        assert len({len(option.split()) for option in record["options"]}) == 1
        assert (tmp_path / record["image"]).is_file()
        answers[record["answer"]] += 1
    assert set(answers) == {0, 1, 2, 3}
    assert max(answers.values()) < 80


@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
    st.lists(st.integers(0, 5), min_size=1, max_size=12),
)
def test_auc_is_the_share_of_pairs_in_order(
    bench: Bench, matched: list[int], mismatched: list[int]
) -> None:
    scores = np.array([*matched, *mismatched], float)
    labels = np.arange(len(scores)) < len(matched)
    expected = np.mean([(a > b) + 0.5 * (a == b) for a in matched for b in mismatched])
    assert bench("filtering_curation").auc(scores, labels) == pytest.approx(expected)


def test_interval_over_seeds_is_students(bench: Bench) -> None:
    found = bench("filtering_statistics").over_seeds([1.0, 2.0, 3.0])
    # 4.303 is the 97.5 % quantile at two degrees of freedom.
    assert found["mean"] == pytest.approx(2.0)
    assert found["low"] == pytest.approx(2.0 - 4.303 / 3**0.5, abs=1e-3)
    assert found["high"] == pytest.approx(2.0 + 4.303 / 3**0.5, abs=1e-3)
    assert bench("filtering_statistics").over_seeds([1.0])["low"] is None


def test_interval_over_questions_has_the_spread_of_a_mean(bench: Bench) -> None:
    generator = np.random.default_rng(0)
    ours, theirs = (generator.random((3, 400)) < share for share in (0.6, 0.5))
    found = bench("filtering_statistics").over_questions(ours.tolist(), theirs.tolist())
    gains = (ours.astype(float) - theirs).mean(axis=0)
    half = 1.96 * gains.std() / 20
    assert found["mean"] == pytest.approx(gains.mean())
    assert found["low"] == pytest.approx(gains.mean() - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(gains.mean() + half, abs=0.1 * half)


def test_the_scorer_is_trained_without_labels(bench: Bench, tmp_path: Path) -> None:
    clip = bench("tiny_clip")
    samples = pairs(bench, tmp_path / "raw", 16)
    recipe = clip.ClipRecipe(steps=2, batch=8, lr=1e-3, seed=1)
    folders = {"labels": samples, "none": [replace(sample, fields={}) for sample in samples]}
    for name, given_samples in folders.items():
        clip.train_clip(given_samples, tmp_path / name, recipe)
    written = [(tmp_path / name / clip.WEIGHTS).read_bytes() for name in folders]
    assert written[0] == written[1]
    scores = ClipScorer(model=str(tmp_path / "labels"), device="cpu", threads=1).score(samples)
    assert all(-1 <= value <= 1 for value in scores["clip_similarity"])


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], list[str]]:
    out = tmp_path_factory.mktemp("bench") / "filtering.json"
    words = [sys.executable, BENCH / "filtering.py", "--quick", "--json", out]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return json.loads(out.read_text()), done.stdout.splitlines()


@pytest.mark.slow
def test_arms_are_what_curation_kept(quick: tuple[dict[str, Any], list[str]]) -> None:
    figures, _ = quick
    kept = figures["by_seed"][0]["kept"]
    assert set(figures["arms"]) == set(kept) == ARMS
    assert kept["unfiltered"] == 400
    assert kept["filtered"] == 160  # top(clip_similarity, 0.4)
    assert figures["arms"]["oracle"]["matched"] == [1.0]
    assert kept["oracle"] == round(400 * figures["arms"]["unfiltered"]["matched"][0])


@pytest.mark.slow
def test_arms_are_trained_alike_and_asked_the_same(
    quick: tuple[dict[str, Any], list[str]],
) -> None:
    figures, _ = quick
    budget = figures["settings"]["recipe"]["steps"] * figures["settings"]["recipe"]["context"]
    for arm in figures["by_seed"][0]["arms"].values():
        assert 0.8 * budget < arm["tokens"] <= budget
        assert len(arm["right"]) == 24
        assert sum(right for right, _ in arm["topics"].values()) == sum(arm["right"])
        assert 0 < arm["clean_loss"] < 10


@pytest.mark.slow
def test_the_last_line_is_the_headline(quick: tuple[dict[str, Any], list[str]]) -> None:
    figures, lines = quick
    assert lines[-1] == figures["headline"]
    assert "AUC" in lines[-1]
    assert set(figures["over_unfiltered"]) == ARMS - {"unfiltered"}
    assert all(0 <= value <= 1 for values in figures["auc"].values() for value in values)
