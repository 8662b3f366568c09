"""What an ablation concludes: effects over seeds, corrected together, shared data, words."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import ttest_1samp
from support.scored import HEAD

from openqwen2vl.evaluation.ablation.effects import (
    Effect,
    agree,
    effects,
    least_over_seeds,
    seeds_p,
)
from openqwen2vl.evaluation.ablation.overlap import shared_documents, shared_sources
from openqwen2vl.evaluation.ablation.words import conclusions, sentence, verdict
from openqwen2vl.evaluation.clusters import cluster_rows, sign_flip
from openqwen2vl.evaluation.comparison import BOOTSTRAP, Settings, compare_pair
from openqwen2vl.evaluation.pairing import pair_scores
from openqwen2vl.evaluation.score_files import Scored
from openqwen2vl.formats.errors import UserError

ASKED = 200
FEW = Settings(draws=500)


def scored(right: float, seed: int, benchmark: str = "gqa", rows: int = ASKED) -> Scored:
    """Draw answers of which a share is right; hard questions are hard for everyone."""
    hard = np.random.default_rng(99).random(rows)
    noise = np.random.default_rng(seed).normal(0, 0.05, rows)
    correct = ((hard + noise) < right).astype(np.float64)
    names = np.array([f"q{number}" for number in range(rows)])
    head = {**HEAD, "benchmark": benchmark, "n": rows, "headline": "accuracy"}
    return Scored(None, head, names, names, correct)  # type: ignore[arg-type]


def test_one_seed_gives_what_compare_gives_and_holm_counts_every_comparison() -> None:
    base = [scored(0.5, 1, "gqa"), scored(0.5, 2, "pope")]
    other = [scored(0.62, 3, "gqa"), scored(0.52, 4, "pope")]
    third = [scored(0.50, 5, "gqa"), scored(0.44, 6, "pope")]
    found = effects({"a": {0: base}, "b": {0: other}, "c": {0: third}}, "a", FEW)
    assert [(one.mixture, one.benchmark) for one in found] == [
        ("b", "gqa"),
        ("b", "pope"),
        ("c", "gqa"),
        ("c", "pope"),
    ]
    alone = [compare_pair(p, FEW) for o in (other, third) for p in pair_scores(base, o).pairs]
    ps = [one.p for one in alone]
    assert [one.comparison.p for one in found] == ps
    assert [one.comparison.interval for one in found] == [one.interval for one in alone]
    # Holm by its definition: the k-th smallest times those that are left, never falling.
    highest, expected = 0.0, {}
    for rank, index in enumerate(np.argsort(ps)):
        highest = max(highest, min(1.0, ps[index] * (len(ps) - rank)))
        expected[index] = highest
    for index, one in enumerate(found):
        assert one.comparison.p_holm == pytest.approx(expected[index])
        assert one.of_models is (one.comparison.p_holm < FEW.alpha)
        assert not one.of_mixtures  # one seed
    assert found[0].of_models
    assert not found[2].of_models


def test_answers_under_several_seeds_are_clustered_by_question() -> None:
    base = {seed: [scored(0.5, seed)] for seed in (0, 1, 2)}
    other = {seed: [scored(0.6, 10 + seed)] for seed in (0, 1, 2)}
    (one,) = effects({"a": base, "b": other}, "a", FEW)
    assert one.comparison.questions == ASKED
    assert one.comparison.rows == 3 * ASKED
    assert one.comparison.interval_method == BOOTSTRAP
    assert one.by_seed == pytest.approx(
        [100 * (other[s][0].correct - base[s][0].correct).mean() for s in (0, 1, 2)]
    )
    assert one.comparison.difference == pytest.approx(np.mean(one.by_seed))
    sums = sum(other[s][0].correct - base[s][0].correct for s in (0, 1, 2))
    clusters = cluster_rows(np.asarray(sums), base[0][0].ids)
    assert one.comparison.p == pytest.approx(sign_flip(clusters, 500, 7).p)


def test_a_difference_whose_sign_changes_with_the_seed_is_not_shown() -> None:
    base = {seed: [scored(0.5, seed)] for seed in (0, 1)}
    other = {0: [scored(0.75, 10)], 1: [scored(0.45, 11)]}
    (one,) = effects({"a": base, "b": other}, "a", FEW)
    assert one.comparison.p_holm < FEW.alpha
    assert not one.of_models
    assert verdict(one) == "not shown"
    assert "the seeds disagree (+" in sentence(one, FEW)


def test_only_seeds_that_both_have_are_compared() -> None:
    base = {0: [scored(0.5, 0)]}
    others = {"b": {0: [scored(0.6, 1)], 1: [scored(0.9, 2)]}, "c": {1: [scored(0.9, 3)]}}
    found = effects({"a": base, **others}, "a", FEW)
    assert [(one.mixture, one.seeds) for one in found] == [("b", [0])]
    assert effects(others, "a", FEW) == []


def test_unlike_scores_are_refused() -> None:
    with pytest.raises(UserError, match="n is 200 in a and 100 in b"):
        effects({"a": {0: [scored(0.5, 0)]}, "b": {0: [scored(0.5, 0, rows=100)]}}, "a", FEW)


def test_seeds_that_were_asked_other_questions_are_not_joined() -> None:
    other = {**HEAD, "benchmark": "gqa", "n": ASKED, "file_hash": "beef"}
    base = {seed: [scored(0.5, seed)] for seed in (0, 1)}
    better = {seed: [scored(0.6, 10 + seed)] for seed in (0, 1)}
    for by_seed in (base, better):
        by_seed[1] = [replace(by_seed[1][0], head=other)]
    with pytest.raises(UserError, match=r"a: seed 0 \(a\) and seed 1 \(b\) .*(\n.*)*file_hash"):
        effects({"a": base, "b": better}, "a", FEW)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=4))
def test_seeds_agree_when_all_are_above_or_all_below(by_seed: list[float]) -> None:
    assert agree(by_seed) is (all(v > 0 for v in by_seed) or all(v < 0 for v in by_seed))


ids = st.lists(st.integers(0, 40), max_size=30)


@settings(max_examples=50)
@given(st.dictionaries(st.sampled_from("abcd"), ids, min_size=1))
def test_shared_documents_are_those_of_sets(held: dict[str, list[int]]) -> None:
    arrays: dict[str, NDArray[np.uint64]] = {k: np.array(v, np.uint64) for k, v in held.items()}
    found = shared_documents(arrays)
    assert len(found) == len(held) ** 2
    for (one, other), share in found.items():
        if one != other:
            mine, theirs = set(held[one]), set(held[other])
            assert share == (len(mine & theirs) / len(mine) if mine else 0)


def test_shared_sources_are_the_smaller_shares() -> None:
    tokens = {"a": {"x": 100.0}, "b": {"x": 30.0, "y": 10.0}, "c": {"y": 7.0, "z": 7.0}}
    found = shared_sources(tokens)
    assert found["a", "b"] == found["b", "a"] == pytest.approx(0.75)
    assert found["b", "c"] == pytest.approx(0.25)
    assert found["a", "c"] == 0
    assert found["b", "b"] == pytest.approx(1)


def effect(right: float, seed: int = 1) -> Effect:
    (one,) = effects({"a": {0: [scored(0.5, 0)]}, "b": {0: [scored(right, seed)]}}, "a", FEW)
    return one


def test_sentences_name_the_mixtures_the_size_and_what_it_means() -> None:
    told = sentence(effect(0.3), FEW)
    assert "b is " in told
    assert " points below a (95 % interval -" in told
    assert "a difference between these 2 trained models" in told
    told = sentence(effect(0.52), FEW)
    assert "not shown" in told
    assert "200 questions find " in told
    same = effect(0.5, seed=0)
    assert sentence(same, FEW).startswith("gqa: no difference shown: b and a are equally right")


def test_conclusions_count_what_is_shown_and_say_what_one_seed_means() -> None:
    first, *rest = conclusions([effect(0.3), effect(0.52)], FEW)
    assert first.startswith("1 of 2 differences from a are shown of the trained models")
    assert any("not mean that the mixtures are equal" in line for line in rest)
    assert any(line.startswith("One seed a mixture") for line in rest)
    assert conclusions([effect(0.52)], FEW)[0] == (
        "0 of 1 differences from a are shown of the trained models, at level 0.05."
    )
    (told,) = conclusions([], FEW)
    assert told.startswith("Nothing to compare: no other mixture has scores under a seed of the ")


def seeded(right: tuple[float, float], spread: float, seeds: int, draw: int) -> Effect:
    """Mixtures whose true scores are ``right``, each seed moving a model's own by ``spread``."""
    rng = np.random.default_rng(draw)
    levels = [np.clip(rng.normal(one, spread, seeds), 0, 1) for one in right]
    scores = {
        name: {s: [scored(float(level[s]), int(rng.integers(10**6)))] for s in range(seeds)}
        for name, level in zip("ab", levels, strict=True)
    }
    (one,) = effects(scores, "a", FEW)
    return one


def test_what_is_shown_of_models_is_said_of_the_mixtures_only_when_the_seeds_say_so() -> None:
    clear = seeded((0.3, 0.8), 0.0, 3, 0)
    assert verdict(clear) == "mixtures"
    assert "a real difference between the mixtures (p over 3 seeds by Holm" in sentence(clear, FEW)
    one = replace(clear, p_over_seeds=0.2, of_mixtures=False)
    assert verdict(one) == "these models"
    assert "between these 6 trained models, not shown of the mixtures" in sentence(one, FEW)
    first, second, *_, last = conclusions([clear, one], FEW)
    assert first.startswith("1 of 2 differences from a are real ones of the mixtures")
    assert second.startswith("2 of 2 differences from a are shown of the trained models")
    assert last.startswith("3 seeds a mixture: ")
    assert "both must show the difference. That needs a difference 3.6 times its scatter" in last


def test_p_over_seeds_is_students() -> None:
    found = seeds_p([1.0, 2.0, 4.5])
    assert found == pytest.approx(ttest_1samp([1.0, 2.0, 4.5], 0).pvalue)
    assert seeds_p([2.0, 2.0]) == 0
    assert seeds_p([0.0, 0.0, 0.0]) == 1
    assert seeds_p([1.0, 2.0, 4.5], step=0.5) == found


def test_seeds_that_agree_by_rounding_do_not_prove_a_difference() -> None:
    assert seeds_p([5.0, 5.0], step=5.0) == pytest.approx(0.128, abs=0.001)
    assert seeds_p([0.0, 0.0], step=5.0) == 1
    rng = np.random.default_rng(0)
    # Equal mixtures of 20 questions: differences are whole multiples of 5 points.
    drawn = 5 * np.round(rng.normal(0, 5.0, (4000, 2)) / 5)
    assert np.mean([seeds_p(one.tolist(), step=5.0) < 0.05 for one in drawn]) < 0.05
    assert np.mean([seeds_p(one.tolist()) < 0.05 for one in drawn]) > 0.05


def test_what_seeds_can_show_is_where_their_test_begins_to() -> None:
    for seeds, comparisons in ((2, 1), (3, 20), (6, 14)):
        values = np.arange(seeds) / np.arange(seeds).std(ddof=1)
        values = values - values.mean()
        least = least_over_seeds(seeds, comparisons, 0.05)
        assert seeds_p((values + 1.001 * least).tolist()) * comparisons < 0.05
        assert seeds_p((values + 0.999 * least).tolist()) * comparisons > 0.05


def test_p_over_seeds_is_below_its_level_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    found = np.array([seeds_p(rng.normal(0, 2.0, 3).tolist()) for _ in range(4000)])
    assert 0.04 < np.mean(found < 0.05) < 0.06


@pytest.mark.slow
def test_equal_mixtures_whose_seeds_scatter_often_differ_as_models_and_seldom_as_mixtures() -> None:
    draws = 30
    found = [seeded((0.5, 0.5), 0.08, 3, draw) for draw in range(draws)]
    # Three standard errors above the level.
    most = 0.05 + 3 * (0.05 * 0.95 / draws) ** 0.5
    assert np.mean([one.of_mixtures for one in found]) < most
    assert np.mean([one.of_models for one in found]) > most


def test_few_differing_questions_make_a_rough_interval() -> None:
    base = {seed: [scored(0.5, 0)] for seed in (0, 1)}
    changed = base[0][0].correct.copy()
    changed[np.flatnonzero(changed == 0)[:4]] = 1
    other = {seed: [replace(base[0][0], correct=changed)] for seed in (0, 1)}
    (one,) = effects({"a": base, "b": other}, "a", FEW)
    assert "so few questions differ (4) that the interval is rough" in sentence(one, FEW)
    assert "rough" not in sentence(effect(0.3), FEW)
