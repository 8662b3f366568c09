"""What an ablation concludes: effects over seeds, corrected together, shared data, words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from support.scored import HEAD

from openqwen2vl.evaluation.ablation.effects import Effect, agree, effects
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
        assert one.real is (one.comparison.p_holm < FEW.alpha)
    assert found[0].real
    assert not found[2].real


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


def test_a_difference_whose_sign_changes_with_the_seed_is_not_called_real() -> None:
    base = {seed: [scored(0.5, seed)] for seed in (0, 1)}
    other = {0: [scored(0.75, 10)], 1: [scored(0.45, 11)]}
    (one,) = effects({"a": base, "b": other}, "a", FEW)
    assert one.comparison.p_holm < FEW.alpha
    assert not one.real
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
    assert "a real difference" in told
    told = sentence(effect(0.52), FEW)
    assert "not shown" in told
    assert "200 questions find " in told
    same = effect(0.5, seed=0)
    assert sentence(same, FEW).startswith("gqa: no difference shown: b and a are equally right")


def test_conclusions_count_what_is_real_and_say_what_one_seed_means() -> None:
    first, *rest = conclusions([effect(0.3), effect(0.52)], FEW)
    assert first.startswith("1 of 2 differences from a are real")
    assert any("not mean that the mixtures are equal" in line for line in rest)
    assert any(line.startswith("One seed a mixture") for line in rest)
    assert conclusions([], FEW) == ["Nothing to compare: only one mixture has scores."]
