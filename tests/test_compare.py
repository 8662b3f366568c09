import json
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.runs import Run, assert_one_message
from support.scored import HEAD, write_scores

from openqwen2vl.evaluation.comparison import (
    Settings,
    compare_pair,
    compare_table,
    correct_for_several,
)
from openqwen2vl.evaluation.conclusion import sentence
from openqwen2vl.evaluation.pairing import Pair, pair_scores
from openqwen2vl.evaluation.score_files import read_scores
from openqwen2vl.evaluation.statistics import PairedTable


def figures(told: tuple[int, str, str]) -> dict[str, Any]:
    code, out, err = told
    assert (code, err.strip()) == (0, "")
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def by_name(found: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in found["comparisons"]}


def test_a_table_gives_effect_interval_tests_and_words(call: Run) -> None:
    told = call("compare", "table=[3106,248,434,589]", "json=true")
    (one,) = figures(told)["comparisons"]
    assert one["tests"]["mcnemar_exact"] == {"p": 1.0201377747523556e-12, "statistic": 248}
    assert one["tests"]["chi2"]["statistic"] == 50.72727272727273
    assert one["tests"]["chi2_corrected"]["statistic"] == 50.183284457478
    assert one["difference"] == pytest.approx(4.2495, abs=1e-4)
    assert [round(limit, 2) for limit in one["interval"]] == [3.09, 5.41]
    assert one["interval_method"] == "Newcombe, rows as independent"
    assert (one["real"], one["below_detectable"]) == (True, False)
    out = told[1]
    assert out.index("+4.25") < out.index("McNemar, exact") < out.index("a real difference")
    assert "the counts do not say which rows are copies" in out


def test_copies_are_compared_by_question_and_each_benchmark_gets_its_sentence(
    tmp_path: Path, call: Run
) -> None:
    generator = np.random.default_rng(0)
    questions = np.arange(300).repeat(4)
    easy, lean = generator.random(300), generator.random((2, 300, 1))
    rows = (lean < easy[:, None] + np.array([0, 0.25])[:, None, None]).repeat(4, axis=2)
    soft = generator.choice([0, 0.3, 0.6, 0.9, 1.0], size=(2, 200))
    for side, name in enumerate("ab"):
        write_scores(tmp_path / name / "one", rows[side].ravel().astype(float), questions)
        write_scores(tmp_path / name / "two", soft[side], benchmark="textvqa")
    write_scores(tmp_path / "b" / "three", [1.0], benchmark="pope")
    told = call("compare", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}", "json=true")
    found = figures(told)
    one, two = by_name(found)["mmbench"], by_name(found)["textvqa"]
    assert (one["rows"], one["questions"], one["decided_by"]) == (1200, 300, "sign_flip")
    # Four equal copies of a question are one question.
    once = PairedTable.of(*rows[:, :, 0].astype(float))
    expected = compare_table(once, Settings())
    assert one["p"] == pytest.approx(expected.p, rel=1e-9)
    assert one["detectable"] == pytest.approx(expected.detectable)
    assert one["interval"] == pytest.approx(expected.interval, abs=0.8)
    assert one["tests"]["mcnemar_exact"]["p"] < one["p"] / 1e3
    assert one["p_holm"] == 2 * one["p"]
    assert (one["real"], two["real"]) == (True, False)
    assert (two["table"], list(two["tests"])) == (None, ["sign_flip"])
    assert found["not_compared"] == {"a": [], "b": ["pope"]}
    assert "textvqa: " in told[1]
    assert "not compared, only in b: pope" in told[1]


def test_circular_asks_for_all_copies(tmp_path: Path, call: Run) -> None:
    clusters = ["x", "x", "y", "y"]
    a = write_scores(tmp_path / "a", [1, 1, 1, 0], clusters)
    b = write_scores(tmp_path / "b", [1, 1, 1, 1], clusters)
    found = figures(call("compare", f"a={a}", f"b={b}", "circular=true", "json=true"))
    (one,) = found["comparisons"]
    assert (one["rows"], one["a"], one["b"]) == (2, 50.0, 100.0)
    assert (
        "mmbench: compared is questions right in all copies, its usual figure is accuracy"
        in found["remarks"]
    )
    a = write_scores(tmp_path / "a", [1, 1, 1, 0], clusters, headline="circular")
    b = write_scores(tmp_path / "b", [1, 1, 1, 1], clusters, headline="circular")
    out = call("compare", f"a={a}", f"b={b}")[1]
    assert "the mean over rows, its usual figure is circular: set circular=true" in out
    assert f"a: {a}" in out
    assert "usual figure" not in call("compare", f"a={a}", f"b={b}", "circular=true")[1]


def test_rows_are_paired_by_id_whatever_their_order(tmp_path: Path) -> None:
    a = write_scores(tmp_path / "a", [1, 0, 1, 0.5], "wxyz")
    b = write_scores(tmp_path / "b", [0, 0, 1, 1], "wxyz")
    lines = b.read_text().splitlines()
    b.write_text("\n".join(reversed(lines)) + "\n")
    (pair,) = pair_scores([read_scores(a)], [read_scores(b)]).pairs
    assert (pair.b - pair.a).tolist() == [-1, 0, 0, 0.5]
    assert pair.clusters.tolist() == list("wxyz")


def test_predictions_and_lists_name_the_scores_beside_them(tmp_path: Path, call: Run) -> None:
    given = {}
    for name, right in (("a", [0, 1, 1]), ("b", [1, 1, 1])):
        folders = [write_scores(tmp_path / f"{name}{i}", right, benchmark=f"b{i}") for i in (1, 2)]
        given[name] = ",".join(str(rows.with_name("predictions.jsonl")) for rows in folders)
    told = call("compare", f"a=[{given['a']}]", f"b=[{given['b']}]", "json=true")
    assert list(by_name(figures(told))) == ["b1", "b2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"benchmark": "pope"}, "benchmark is mmbench in a and pope in b"),
        ({"protocol": "oqvl-paper"}, "protocol is standard in a and oqvl-paper in b"),
        ({"protocol_version": 2}, "protocol_version is 1 in a and 2 in b"),
        ({"file_hash": "dead"}, "file_hash is f00d in a and dead in b"),
        ({"template_hash": "beef"}, "template_hash is cafe in a and beef in b"),
        (
            {"decoding": {"max_new_tokens": 32, "greedy": True}},
            "decoding.max_new_tokens is 16 in a and 32 in b",
        ),
    ],
)
def test_unlike_scores_are_refused_with_what_parts_them(
    tmp_path: Path, call: Run, change: dict[str, object], message: str
) -> None:
    a = write_scores(tmp_path / "a", [1, 0])
    b = write_scores(tmp_path / "b", [1, 1], **change)
    told = call("compare", f"a={a}", f"b={b}")
    assert_one_message(told, message, "unlike scores are not compared")


def test_numbers_do_not_part_scores_but_are_told(tmp_path: Path, call: Run) -> None:
    told = "mmbench: a was reckoned in bfloat16, b in float32, which alone may change a few answers"
    a = write_scores(tmp_path / "a", [1, 0], dtype="bfloat16")
    b = write_scores(tmp_path / "b", [1, 1], dtype="float32")
    found = figures(call("compare", f"a={a}", f"b={b}", "json=true"))
    assert told in found["remarks"]
    # As heads said it at first.
    old = {"decoding": {**HEAD["decoding"], "dtype": "float32"}}
    old_b = write_scores(tmp_path / "old", [1, 1], **old)
    assert told in call("compare", f"a={a}", f"b={old_b}")[1]
    assert "reckoned" not in call("compare", f"a={b}", f"b={old_b}")[1]
    unsaid = write_scores(tmp_path / "unsaid", [1, 1])
    assert "b in numbers that its scores do not name" in call("compare", f"a={a}", f"b={unsaid}")[1]


def test_all_that_parts_scores_is_in_one_message_and_the_model_does_not_part_them(
    tmp_path: Path, call: Run
) -> None:
    told = "mmbench: a and b are answers of one and the same model"
    a = write_scores(tmp_path / "a", [1, 0])
    b = write_scores(tmp_path / "b", [1, 1], model_hash="2")
    assert told not in figures(call("compare", f"a={a}", f"b={b}", "json=true"))["remarks"]
    assert told in figures(call("compare", f"a={a}", f"b={a}", "json=true"))["remarks"]
    write_scores(tmp_path / "a" / "two", [1, 0], benchmark="pope")
    write_scores(tmp_path / "b" / "two", [1, 0], benchmark="pope", protocol="oqvl-paper")
    write_scores(tmp_path / "b", [1, 1, 1], file_hash="dead")
    told = call("compare", f"a={tmp_path / 'a'}", f"b={tmp_path / 'b'}")
    assert_one_message(told, "pope: protocol", "mmbench: file_hash", "mmbench: n is 2 in a and 3")


ROW = {"id": "q9", "cluster": "1", "correct": 1}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        (json.dumps(ROW) + '\n{"id": "q1", "clu', "line 2 is cut off"),
        ("nonsense\n" + json.dumps(ROW), "line 1 is not JSON"),
        ("3\n", "line 1 lacks id, cluster, correct"),
        (json.dumps({**ROW, "correct": 1.5}) + "\n", "correct is 1.5"),
        (json.dumps({**ROW, "correct": "1"}) + "\n", "correct is '1'"),
        ('{"id": "q1", "cluster": "1", "correct": NaN}\n', "correct is nan"),
        (2 * (json.dumps(ROW) + "\n"), "holds the id 'q9' 2 times"),
        (json.dumps(ROW) + "\n", "holds 1 rows where scores.json beside it says 2"),
    ],
)
def test_a_broken_file_of_rows_is_told(tmp_path: Path, call: Run, text: str, message: str) -> None:
    a = write_scores(tmp_path / "a", [1, 0])
    b = write_scores(tmp_path / "b", [1, 1])
    b.write_text(text)
    assert_one_message(call("compare", f"a={a}", f"b={b}"), message)


def test_rows_that_do_not_match_are_told(tmp_path: Path, call: Run) -> None:
    a, b = (write_scores(tmp_path / name, [1, 0, 1]) for name in "ab")
    whole = b.read_text()
    b.write_text(whole.replace('"q1"', '"other"'))
    told = call("compare", f"a={a}", f"b={b}")
    assert_one_message(told, "1 only in a (such as 'q1'), 1 only in b (such as 'other')")
    b.write_text(whole.replace('"cluster": "1"', '"cluster": "7"'))
    told = call("compare", f"a={a}", f"b={b}")
    assert_one_message(told, "row 'q1' is a copy of question '1'")


def test_scores_that_are_not_there_or_do_not_say_enough_are_told(tmp_path: Path, call: Run) -> None:
    a, b = (write_scores(tmp_path / name, [1, 0]) for name in "ab")
    assert_one_message(call("compare", f"a={a}", f"b={tmp_path / 'no'}"), "no scored.jsonl at")
    head = b.with_name("scores.json")
    head.write_text(json.dumps({"n": 2}))
    told = call("compare", f"a={a}", f"b={b}")
    assert_one_message(told, "lacks benchmark, protocol, protocol_version, file_hash, decoding")
    head.write_text("{")
    assert_one_message(call("compare", f"a={a}", f"b={b}"), "scores.json is not JSON")
    head.unlink()
    assert_one_message(call("compare", f"a={a}", f"b={b}"), "that do not say their protocol")
    twice = f"[{a},{a}]"
    assert_one_message(call("compare", f"a={twice}", f"b={twice}"), "by protocol standard twice")
    others = [write_scores(tmp_path / f"{i}", [1, 0], benchmark=f"b{i}") for i in (1, 2)]
    told = call("compare", f"a={a}", f"b=[{others[0]},{others[1]}]")
    assert_one_message(told, "share no benchmark: a has mmbench; b has b1, b2")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["table=[1,-2,3,4]"], "only_a is -2"),
        (["table=[1,2,3]"], "expected four whole numbers"),
        (["table=[1,2,3,x]"], "expected four whole numbers"),
        (["table=[0,0,0,0]"], "counts no rows"),
        ([], "a and b, or table="),
        (["a=x"], "b: must be given"),
        (["a=x", "b=y", "table=[1,2,3,4]"], "table is given beside a or b"),
        (["table=[1,2,3,4]", "alpha=2"], "alpha is 2"),
        (["table=[1,2,3,4]", "draws=many"], "draws is 'many'"),
        (["table=[1,2,3,4]", "draws=7"], "draws is 7"),
        (["table=[1,2,3,4]", "circular=1"], "circular is 1"),
        (["table=[1,2,3,4]", "circular=true"], "a table has no copies"),
    ],
)
def test_what_cannot_be_meant_is_refused(call: Run, words: list[str], message: str) -> None:
    assert_one_message(call("compare", *words), message)


def test_a_missing_library_is_one_message(call: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("contingency_tables", "proportion", "multitest"):
        monkeypatch.setitem(sys.modules, f"statsmodels.stats.{name}", None)
    assert_one_message(call("compare", "table=[1,2,3,4]"), "pip install 'openqwen2vl[report]'")


def test_sentences_say_what_is_real_and_what_could_be_seen() -> None:
    def said(*counts: int, among: int = 1) -> str:
        found = compare_table(PairedTable(*counts), Settings(), "mantis")
        many = correct_for_several([found, *[replace(found, p=1.0)] * (among - 1)])
        return sentence(many[0], Settings())

    assert "b is 4.25 points above a" in said(3106, 248, 434, 589)
    assert "a real difference, not below the 1.67 points" in said(3106, 248, 434, 589)
    assert "a is 4.25 points above b" in said(3106, 434, 248, 589)
    assert "a real difference, but below the" in said(400, 60, 87, 353)
    assert "no real difference shown; it is below the 7.38 points" in said(84, 17, 16, 100)
    told = said(400, 60, 87, 353, among=5)
    assert "p = 0.032 alone but 0.16 among all benchmarks compared): no real difference" in told
    assert "both at 50.00 %" in said(5, 5, 5, 5)
    told = said(100, 0, 0, 117)
    assert "equally right on each of 217 questions (95 % interval -0.91 to 0.91)" in told
    assert "no real difference shown; 5 questions could not show any." in said(0, 0, 5, 0)


def test_few_differing_questions_make_a_rough_interval() -> None:
    a, b = np.zeros(40), np.zeros(40)
    b[:3] = 1.0
    pair = Pair("mmbench", "standard", a, b, np.arange(20).repeat(2).astype(str))
    assert "so few questions differ (2)" in sentence(compare_pair(pair, Settings()), Settings())


def test_names_are_not_taken_for_markup(tmp_path: Path, call: Run) -> None:
    a, b = (write_scores(tmp_path / name, [1, 0], benchmark="x[red]y[/]") for name in "ab")
    assert call("compare", f"a={a}", f"b={b}")[1].count("x[red]y[/]") == 5


def test_a_hundred_thousand_rows_take_seconds() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.choice([0, 0.3, 0.6, 0.9, 1.0], size=(2, 100_000))
    names = np.arange(25_000).repeat(4).astype(str)
    started = time.process_time()
    compare_pair(Pair("vqa", "standard", a, b, names), Settings())
    assert time.process_time() - started < 20
