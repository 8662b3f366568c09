import sys
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.stats import binomtest

from openqwen2vl.evaluation import clusters as clusters_module
from openqwen2vl.evaluation.clusters import (
    Clusters,
    bootstrap_interval,
    cluster_rows,
    sign_flip,
)
from openqwen2vl.evaluation.statistics import (
    PairedTable,
    detectable,
    holm,
    mcnemar_tests,
    newcombe_interval,
)
from openqwen2vl.formats.errors import UserError

COUNTS = st.integers(0, 400)
# Seen in a published table: 3,106 both, 248 one alone, 434 the other alone, 589 neither.
SEEN = PairedTable(3106, 248, 434, 589)


def singles(sums: list[float]) -> Clusters:
    return Clusters(np.array(sums, np.float64), np.ones(len(sums), np.int64))


def copied_rows(
    generator: np.random.Generator, questions: int, effect: float = 0.0
) -> tuple[NDArray[np.float64], NDArray[np.str_]]:
    """Differences of 0/1 rows, two to six copies of each question answered mostly alike."""
    sizes = generator.integers(2, 7, size=questions)
    names = np.repeat(np.arange(questions).astype(str), sizes)
    drawn = generator.random(questions)
    lean = np.where(drawn < 0.2 + effect, 1.0, np.where(drawn > 0.8 + effect, -1.0, 0.0))
    kept = generator.random(len(names)) < 0.9
    return np.repeat(lean, sizes) * kept, names


def test_a_published_table_gives_its_figures_to_the_last_digit() -> None:
    tests = mcnemar_tests(SEEN)
    assert tests["mcnemar_exact"].statistic == 248
    assert tests["mcnemar_exact"].p == 1.0201377747523556e-12
    assert tests["chi2"].statistic == 50.72727272727273
    assert tests["chi2_corrected"].statistic == 50.183284457478
    assert tests["chi2"].p == pytest.approx(1.0613e-12, rel=1e-4)
    assert tests["chi2_corrected"].p == pytest.approx(1.4004e-12, rel=1e-4)
    assert tests["mcnemar_midp"].p == pytest.approx(7.985e-13, rel=1e-4)
    low, high = newcombe_interval(SEEN, 0.05)
    assert (round(100 * low, 2), round(100 * high, 2)) == (3.09, 5.41)


@given(COUNTS, COUNTS)
def test_the_exact_p_is_that_of_the_binomial_test_and_mid_p_is_smaller(b: int, c: int) -> None:
    tests = mcnemar_tests(PairedTable(1, b, c, 0))
    expected = binomtest(b, b + c).pvalue if b + c else 1.0
    assert tests["mcnemar_exact"].p == pytest.approx(expected, rel=1e-9, abs=1e-300)
    assert tests["mcnemar_midp"].p <= tests["mcnemar_exact"].p
    assert all(0 <= test.p <= 1 for test in tests.values())
    assert tests["chi2_corrected"].p >= tests["chi2"].p
    if b == c:
        assert all(test.p == 1 for name, test in tests.items() if name != "mcnemar_midp")


@given(COUNTS, COUNTS, COUNTS, COUNTS)
def test_newcombes_interval_holds_the_difference_and_turns_with_the_sides(
    both: int, a: int, b: int, neither: int
) -> None:
    table = PairedTable(both + 1, a, b, neither)
    low, high = newcombe_interval(table, 0.05)
    difference = (b - a) / table.rows
    assert -1 - 1e-9 <= low <= difference <= high <= 1 + 1e-9
    turned = newcombe_interval(PairedTable(both + 1, b, a, neither), 0.05)
    assert turned == pytest.approx((-high, -low), abs=1e-12)


def test_newcombes_interval_is_the_published_one() -> None:
    # Cavo 2012, in Fagerland, Lydersen, Laake, Statistical Analysis of Contingency Tables, 8.6.
    low, high = newcombe_interval(PairedTable(59, 6, 16, 80), 0.05)
    assert (round(low, 4), round(high, 4)) == (0.0046, 0.1186)


def test_rows_become_a_table() -> None:
    a, b = np.array([1.0, 1, 1, 0, 0, 0]), np.array([1.0, 0, 1, 1, 0, 0])
    assert PairedTable.of(a, b) == PairedTable(2, 1, 1, 2)


@pytest.mark.parametrize(
    ("counts", "told"),
    [((1, -2, 3, 4), "only_a is -2"), ((0, 0, 0, 0), "counts no rows")],
)
def test_an_impossible_table_is_refused(counts: tuple[int, int, int, int], told: str) -> None:
    with pytest.raises(UserError, match=told):
        PairedTable(*counts)


@pytest.mark.parametrize(
    ("questions", "points"),
    [
        (900, 3.7),
        (1164, 3.2),
        (1500, 2.9),
        (1000, 3.5),
        (765, 4.0),
        (217, 7.5),
        (3088, 2.0),
        (9000, 1.2),
        (14233, 0.9),
    ],
)
def test_the_detectable_difference_at_the_published_discordance(
    questions: int, points: float
) -> None:
    found = detectable(SEEN.discordant / SEEN.rows, questions)
    assert found is not None
    assert round(100 * found, 1) == points


def test_a_detectable_difference_is_found_four_times_of_five() -> None:
    n, discordance = 900, 0.156
    difference = detectable(discordance, n)
    assert difference is not None
    shares = [(discordance - difference) / 2, (discordance + difference) / 2, 1 - discordance]
    drawn = np.random.default_rng(0).multinomial(n, shares, size=20_000)
    chi2 = (drawn[:, 0] - drawn[:, 1]) ** 2 / (drawn[:, 0] + drawn[:, 1])
    assert 0.79 < (chi2 > 1.959964**2).mean() < 0.81


@pytest.mark.parametrize(("n", "seen"), [(20, 0.05), (20, 0.2), (60, 0.1), (217, 0.02)])
def test_no_more_than_differs_can_be_detected_and_the_exact_test_finds_it(
    n: int, seen: float
) -> None:
    difference = detectable(seen, n)
    assert difference is not None
    # All that differ speak for b, as they must where the models are further apart than was seen.
    assert difference > seen
    drawn = np.random.default_rng(0).binomial(n, difference, size=20_000)
    p = np.array([binomtest(0, int(k)).pvalue if k else 1.0 for k in range(n + 1)])
    assert 0.74 < (p[drawn] < 0.05).mean() < 0.81


def test_without_a_differing_question_or_with_too_few_nothing_can_be_detected() -> None:
    assert detectable(0.0, 900) is None
    # Five to nothing has p = 0.0625.
    assert all(detectable(share, n) is None for n in range(1, 6) for share in (0.1, 1.0))
    assert all(0 < (detectable(0.5, n) or 0) <= 1 for n in range(6, 12))


def test_what_copies_and_fractions_detect_is_what_their_questions_do() -> None:
    for lean in ([1.0] + [0.0] * 19, [1.0, -1.0, 1.0, 0, 0, 0] * 30):
        once = singles(lean)
        copied = Clusters(4 * once.sums, 4 * once.sizes)
        half = Clusters(once.sums / 2, once.sizes)
        num, found = len(lean), detectable(once.discordance, len(lean), size=once.size)
        assert found is not None
        assert once.size == 1.0
        assert detectable(copied.discordance, num, size=copied.size) == pytest.approx(found)
        assert detectable(half.discordance, num, size=half.size) == pytest.approx(found / 2)


def test_holm_multiplies_the_smallest_most_and_keeps_the_order() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_a_missing_library_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "statsmodels.stats.contingency_tables", None)
    with pytest.raises(UserError, match=r"needs statsmodels.*openqwen2vl\[report\]"):
        mcnemar_tests(SEEN)


def test_rows_are_summed_by_question() -> None:
    found = cluster_rows(np.array([0.3, -1.0, 0.6, 1.0]), np.array(["x", "y", "x", "z"]))
    assert found.sums.tolist() == [0.9, -1.0, 1.0]
    assert found.sizes.tolist() == [2, 1, 1]
    assert found.differing == 3
    assert found.difference == pytest.approx(0.9 / 4)
    assert found.discordance == pytest.approx(3 * (0.81 + 1 + 1) / 16)


@given(st.integers(0, 60), st.integers(0, 60))
def test_the_sign_flip_of_single_rows_is_the_exact_test(b: int, c: int) -> None:
    flipped = sign_flip(singles([-1.0] * b + [1.0] * c + [0.0]), 100, 0)
    exact = mcnemar_tests(PairedTable(0, b, c, 1))["mcnemar_exact"]
    assert flipped.p == pytest.approx(exact.p, rel=1e-9)
    assert flipped.statistic == c - b


@settings(max_examples=40)
@given(st.lists(st.integers(-4, 4), min_size=1, max_size=10))
def test_the_sign_flip_counts_all_signs_out(sums: list[int]) -> None:
    totals = [np.dot(signs, sums) for signs in product([-1, 1], repeat=len(sums))]
    expected = np.mean([abs(total) >= abs(sum(sums)) for total in totals])
    found = sign_flip(singles([float(s) for s in sums]), 100, 0)
    assert found.p == pytest.approx(expected, rel=1e-9)


def test_drawn_signs_agree_with_all_signs(monkeypatch: pytest.MonkeyPatch) -> None:
    differences, names = copied_rows(np.random.default_rng(1), 300, effect=0.02)
    clusters = cluster_rows(differences, names)
    exact = sign_flip(clusters, 1, 0).p
    assert 0.01 < exact < 0.9
    monkeypatch.setattr(clusters_module, "_COUNTABLE", 0)
    drawn = sign_flip(clusters, 40_000, 0).p
    assert drawn == pytest.approx(exact, abs=0.01)
    # Half-right answers, which differ by one constant only.
    halves = Clusters(clusters.sums * 0.3, clusters.sizes)
    assert sign_flip(halves, 40_000, 0).p == drawn
    # All signs of one question reach what was seen.
    assert sign_flip(singles([0.3]), 100, 0).p == 1


def test_both_ways_of_resampling_give_the_interval_of_a_plain_loop() -> None:
    generator = np.random.default_rng(2)
    differences, names = copied_rows(generator, 600, effect=0.03)
    clusters = cluster_rows(differences, names)
    # Noise too small to matter makes all questions unlike, so that they are drawn one by one.
    unlike = Clusters(clusters.sums + generator.normal(0, 1e-7, 600), clusters.sizes)
    means = []
    for _ in range(4000):
        chosen = generator.integers(600, size=600)
        means.append(clusters.sums[chosen].sum() / clusters.sizes[chosen].sum())
    expected = np.quantile(means, [0.025, 0.975])
    for found in (clusters, unlike):
        assert bootstrap_interval(found, 10_000, 0, 0.05) == pytest.approx(expected, abs=0.004)
        assert bootstrap_interval(found, 500, 3, 0.05) == bootstrap_interval(found, 500, 3, 0.05)


def test_equal_answers_leave_room_for_questions_not_asked() -> None:
    low, high = bootstrap_interval(singles([0.0] * 100), 1000, 0, 0.05)
    # The exact upper limit for 0 of 100, as scipy gives it.
    assert high == -low == pytest.approx(binomtest(0, 100).proportion_ci().high)


@pytest.mark.parametrize("each", [1.0, -0.3])
def test_questions_that_all_say_the_same_do_not_give_an_interval_of_no_width(each: float) -> None:
    for num in (1, 12):
        sizes = np.arange(1, num + 1)
        low, high = bootstrap_interval(Clusters(each * sizes, sizes), 1000, 0, 0.05)
        unseen = binomtest(0, num).proportion_ci().high
        seen = (1 - unseen) * each
        assert (low, high) == pytest.approx((seen - unseen, seen + unseen))
        assert -1 <= low < each <= high <= 1


def test_the_clustered_interval_covers_where_the_naive_one_does_not() -> None:
    generator = np.random.default_rng(3)
    effect, sure, naive = 0.05, 0, 0
    # Questions lean to b with 0.25 and to a with 0.15; nine of ten copies follow.
    truth, trials = 2 * effect * 0.9, 2000
    for _ in range(trials):
        differences, names = copied_rows(generator, 150, effect)
        low, high = bootstrap_interval(cluster_rows(differences, names), 1000, 0, 0.05)
        sure += low <= truth <= high
        half = 1.96 * differences.std() / np.sqrt(len(differences))
        naive += abs(differences.mean() - truth) <= half
    assert 0.93 <= sure / trials <= 0.97
    assert naive / trials < 0.90


def test_copies_fool_the_naive_test_and_not_the_one_by_question() -> None:
    generator = np.random.default_rng(4)
    by_question, by_row, trials = 0, 0, 600
    for _ in range(trials):
        differences, names = copied_rows(generator, 150)
        by_question += sign_flip(cluster_rows(differences, names), 1000, 0).p < 0.05
        worse, better = int((differences < 0).sum()), int((differences > 0).sum())
        by_row += mcnemar_tests(PairedTable(0, worse, better, 1))["mcnemar_exact"].p < 0.05
    assert by_question / trials <= 0.06
    assert by_row / trials > 0.10
