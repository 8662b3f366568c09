"""Numbers and words: found in an output, normalised, compared."""

import math
from statistics import mean

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.evaluation.open_answers import candidates, edits, listed, matches, read_math
from openqwen2vl.evaluation.vqa import normalised, normalised_vqav2, soft_accuracy

CHOICE = {"question_type": "multi_choice", "answer_type": "text", "choices": ["12 cm", "a cat"]}
NUMBER = {"question_type": "free_form", "choices": [], "precision": 2}


@pytest.mark.parametrize(
    ("text", "answer", "right"),
    [
        ("12.5", "12.5", True),
        ("The answer is 12.5.", "12.5", True),
        ("so it is 1,234", "1234", True),
        ("12.501", "12.5", True),  # to two decimals
        ("= 3", "3", True),
        ("first 3\nthen 4", "3", True),  # no telling word: the whole output counts
        ("It is 3\nso 4", "3", True),  # each line gives one
        ("yes", "yes", True),
        ("Yes, of course", "yes", True),  # the answer within the text
        ("cat", "a", False),  # a lone letter must stand alone
        ("it is a thing", "a", True),
        ("13", "12", False),
        ("", "12", False),
        ("3 or 4", "4", True),
        ("答案是猫", "猫", False),
        ("这是 猫", "猫", True),
    ],
)
def test_words_and_numbers_of_mmmu(text, answer, right):
    assert matches(candidates(text), answer) is right


def test_a_list_of_answers_is_several():
    assert listed("['24/7', '3.43']") == ["24/7", "3.43"]
    assert listed("[sic]") == "[sic]"
    assert matches(candidates("about 3.429"), listed("['24/7', '3.43']"))
    assert not matches(candidates("about 3.5"), listed("['24/7', '3.43']"))


@pytest.mark.parametrize(
    ("text", "kind", "read"),
    [
        ("14", "integer", "14"),
        ("The answer is 14 of 20.", "integer", "14"),
        ("6 and then 14", "integer", "14"),
        ("1,234 people", "integer", "1234"),
        ("-3", "integer", "-3"),
        ("2007-2008", "integer", "2008"),
        ("none", "integer", None),
        ("inf", "integer", None),
        ("1.45", "float", "1.45"),
        ("Luca needs $1.454.", "float", "1.45"),
        ("1.4", "float", "1.4"),
        ("between [2007,2008]", "list", "[2007, 2008]"),
        ("2007, 2008", "list", "2007, 2008"),
        ("", "list", None),
    ],
)
def test_numbers_and_lists_of_mathvista(text, kind, read):
    assert read_math(text, {**NUMBER, "answer_type": kind}).value == read


@pytest.mark.parametrize("text", ["[{{}}]", "[{{}: 1}]", "[" + "(" * 9000 + "]"])
def test_a_list_that_python_cannot_make_is_a_text(text):
    fields = {**NUMBER, "answer_type": "list"}
    assert read_math(text, fields).value == text


@pytest.mark.parametrize(
    ("text", "read", "how"),
    [
        ("12 cm", "12 cm", "option text"),
        ("B", "a cat", "letter"),
        ("(a)", "12 cm", "(X)"),
        ("the answer is (B) a cat", "a cat", "(X)"),
        ("12cm", "12 cm", "nearest option"),
        ("cats", "a cat", "nearest option"),
        ("", None, "nothing"),
    ],
)
def test_choices_of_mathvista(text, read, how):
    found = read_math(text, CHOICE)
    assert (found.value, found.how) == (read, how)


@given(one=st.text(max_size=8), other=st.text(max_size=8))
def test_edits_are_a_distance(one, other):
    assert edits(one, other) == edits(other, one) <= max(len(one), len(other))
    assert (edits(one, other) == 0) is (one == other)
    assert edits(one + "x", other + "x") == edits(one, other)


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("", ""),
        ("The Cat", "cat"),
        ("two cats", "2 cats"),
        ("none", "0"),
        ("dont", "don't"),
        ("couldnt've", "couldn't've"),
        ("it's", "it 's"),
        ("1.45", "1.45"),
        ("5.", "5"),
        ("U.S.A.", "usa"),
        ("3,000", "3000"),
        ("black/white", "black white"),
        ("yes!", "yes"),
        ("12:30", "12:30"),
        ("A\nB", "b"),
        ("红色", "红色"),
    ],
)
def test_short_answers_are_normalised_as_evalai_does(text, normal):
    assert normalised(text) == normal


def test_vqav2_keeps_what_the_others_cut():
    assert normalised_vqav2("it's") == "it's"
    assert normalised_vqav2(" The\tdog ") == "dog"


def leave_one_out(answer: str, people: list[str]) -> float:
    """The challenge's words: each person in turn against the nine others."""
    scores = []
    for left_out in range(len(people)):
        others = [one for place, one in enumerate(people) if place != left_out]
        scores.append(min(1.0, others.count(answer) / 3))
    return mean(scores)


@given(people=st.lists(st.sampled_from("abc"), min_size=1, max_size=12))
def test_soft_accuracy_leaves_each_person_out_in_turn(people):
    for answer in "abcd":
        score = soft_accuracy(answer, people)
        assert math.isclose(score, leave_one_out(answer, people), abs_tol=1e-12)
        assert 0 <= score <= 1


def test_nobody_answered():
    assert soft_accuracy("a", []) == 0
