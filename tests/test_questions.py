import random
from collections import Counter, defaultdict

import pytest

from openqwen2vl.corpus.handwriting import draw_number, load_scans
from openqwen2vl.corpus.questions import NUM_OPTIONS, choice_questions, yes_no_question
from openqwen2vl.corpus.scenes import Crowd, Sign, Thing, Things, draw_scene

NUMBER = 6000


@pytest.fixture(scope="module")
def pictures():
    rng, scans = random.Random(0), load_scans()
    return [
        draw_number(rng, scans, False) if index % 8 == 0 else draw_scene(rng, False)
        for index in range(NUMBER)
    ]


@pytest.fixture(scope="module")
def questions(pictures):
    rng = random.Random(1)
    return [choice_questions(picture, rng)[0] for picture in pictures]


@pytest.fixture(scope="module")
def yes_no(pictures):
    rng = random.Random(2)
    return [yes_no_question(picture, rng) for picture in pictures]


def halves(items):
    return items[: NUMBER // 2], items[NUMBER // 2 :]


def test_options_are_four_different_ones_with_the_answer_among_them(questions):
    for question in questions:
        assert len(set(question.options)) == NUM_OPTIONS
        assert question.options[question.right] == question.answer


def test_the_place_of_the_answer_says_nothing(questions):
    places = Counter(question.right for question in questions)
    assert all(
        abs(places[place] / NUMBER - 1 / NUM_OPTIONS) < 0.025 for place in range(NUM_OPTIONS)
    )


@pytest.mark.parametrize("rule", [max, min])
def test_the_length_of_an_option_says_nothing(questions, rule):
    right = sum(rule(question.options, key=len) == question.answer for question in questions)
    assert abs(right / NUMBER - 1 / NUM_OPTIONS) < 0.025


def test_knowing_every_answer_to_a_wording_does_not_help_a_blind_guesser(questions):
    known, asked = halves(questions)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in known:
        answers[question.text][question.answer] += 1
    right = sum(
        max(question.options, key=lambda option: answers[question.text][option]) == question.answer
        for question in asked
    )
    # Three standard deviations of guessing among four options 3,000 times.
    assert abs(right / len(asked) - 1 / NUM_OPTIONS) < 0.025


def test_an_option_that_is_like_the_others_is_no_likelier(questions):
    # The option sharing most words with the rest: where wrong options are made from the answer,
    # that finds it.
    def likeness(question, option):
        others = [word for o in question.options if o != option for word in o.split()]
        return sum(others.count(word) for word in option.split())

    asked = [question for question in questions if question.topic in ("thing", "number")]
    right = sum(
        max(question.options, key=lambda o: likeness(question, o)) == question.answer
        for question in asked
    )
    assert abs(right / len(asked) - 1 / NUM_OPTIONS) < 0.05


def test_yes_and_no_are_equally_likely_for_a_known_wording(yes_no):
    known, asked = halves(yes_no)
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in known:
        answers[question.text][question.answer] += 1
    right = 0
    for question in asked:
        seen = answers[question.text]
        right += (seen["yes"] > seen["no"]) == (question.answer == "yes")
    assert abs(right / len(asked) - 0.5) < 0.03


def test_answers_are_true():
    thing = Thing("red", "star", "top left")
    truth = {"colour": "red", "shape": "star", "place": "top left", "thing": "a red star"}
    for question in choice_questions(Things((thing,), "grey"), random.Random(0)):
        assert question.answer == truth[question.topic]
    truth = {"count": "three", "colour": "blue", "shape": "circles"}
    for question in choice_questions(Crowd("blue", "circle", (0, 1, 2), "grey"), random.Random(0)):
        assert question.answer == truth[question.topic]
    truth = {"word": "cat", "colour": "green"}
    for question in choice_questions(Sign("cat", "green", "top", "grey"), random.Random(0)):
        assert question.answer == truth[question.topic]


def test_yes_no_answers_are_true():
    picture = Things((Thing("red", "star", "top left"),), "grey")
    for seed in range(60):
        question = yes_no_question(picture, random.Random(seed))
        said = (
            "red?" in question.text if question.topic == "colour" else "top left?" in question.text
        )
        assert said == (question.answer == "yes")
