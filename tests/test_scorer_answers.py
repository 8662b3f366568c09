"""What a judge says becomes a number from 0 to 100 or nothing, and never a wrong 0."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.curation.scorers.answers import read_score
from openqwen2vl.curation.scorers.numbers import (
    distribution,
    expected_value,
    needed_prefixes,
    number_tokens,
)

SCORES = {
    "85": 85,
    " 85": 85,
    "85.": 85,
    "85,": 85,
    "85;": 85,
    "85.0": 85,
    "**85**": 85,
    '"85"': 85,
    "(85)": 85,
    "- 85": 85,
    "# 85": 85,
    "85%": 85,
    "085": 85,
    "+85": 85,
    "0": 0,
    "7": 7,
    "100": 100,
    "100.": 100,
    "\n\n85": 85,
    "85\nThe caption names 3 birds.": 85,
    "85 because of 3 birds": 85,
    "Score: 85": 85,
    "Score: **85**": 85,
    "Score = 85": 85,
    "Score: 85 because of 3 birds": 85,
    "85/100": 85,
    "85 / 100": 85,
    "100/100": 100,
    "**92**/100": 92,
    "85 out of 100": 85,
    "I would say 85": 85,
    "CLIP2 gives 42": 42,
}
NO_SCORES = [
    "",
    " \n",
    "N/A",
    "eighty-five",
    "101",
    "1000",
    "1,000",
    "-5",
    "Score: -5",
    "85.5",
    "0.85",
    "85,5",
    "8/10",
    "8 out of 10",
    "80-90",
    "80 to 90",
    "80\u201390",
    "80 or 90",
    "between 0 and 100, 85",
    "On a scale of 0 to 100, I would say 85",
    "85th",
    "A4",
    "1.2.3",
    "The caption is good.\n85",
    "\u0668\u0665",
]


@pytest.mark.parametrize(("answer", "score"), SCORES.items())
def test_an_answer_with_one_number_is_read(answer: str, score: int) -> None:
    assert read_score(answer) == score


@pytest.mark.parametrize("answer", NO_SCORES)
def test_what_could_mean_something_else_is_no_score(answer: str) -> None:
    assert read_score(answer) is None


@pytest.mark.parametrize("number", range(101))
def test_every_score_is_read_with_and_without_reasons(number: int) -> None:
    assert read_score(f"{number}") == read_score(f"{number}\nbecause") == number
    assert read_score(f"{number}\n", finished=False) == number


@pytest.mark.parametrize("answer", ["10", "85.", "Score: 1", "I would say 8", "8 ", "12,"])
def test_a_number_that_was_cut_off_does_not_count(answer: str) -> None:
    assert read_score(answer) is not None
    assert read_score(answer, finished=False) is None
    assert read_score(f"{answer}\nb", finished=False) is not None


@given(st.text(max_size=40))
def test_no_text_breaks_the_reading(answer: str) -> None:
    for finished in (True, False):
        score = read_score(answer, finished)
        assert score is None or 0 <= score <= 100
    if read_score(answer) == 0:
        assert "0" in answer


DIGITS = number_tokens(lambda text: [int(digit) + 3 for digit in text])
WHOLE = number_tokens(lambda text: [int(text) + 3])
VOCABULARY = 110


def random_logits(
    prefixes: list[tuple[int, ...]], seed: int
) -> dict[tuple[int, ...], torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {prefix: 3 * torch.randn(2, VOCABULARY, generator=generator) for prefix in prefixes}


def test_split_digits_need_eleven_beginnings_and_whole_numbers_one() -> None:
    assert needed_prefixes(DIGITS) == [(), *((d + 3,) for d in range(1, 10)), (4, 3)]
    assert needed_prefixes(WHOLE) == [()]


@given(st.integers(0, 1000))
def test_split_digits_have_the_chances_of_all_101_strings(seed: int) -> None:
    logits = random_logits(needed_prefixes(DIGITS), seed)
    chances = {prefix: scores.double().softmax(1) for prefix, scores in logits.items()}

    def begins_with(text: str, row: int) -> float:
        ids = [int(digit) + 3 for digit in text]
        chance = 1.0
        for at, token in enumerate(ids):
            chance *= float(chances[tuple(ids[:at])][row, token])
        return chance

    found = distribution(DIGITS, logits)
    known = {str(number) for number in range(101)}
    for row in range(2):
        for number in range(101):
            longer = [f"{number}{digit}" for digit in range(10) if f"{number}{digit}" in known]
            wanted = begins_with(str(number), row) - sum(begins_with(t, row) for t in longer)
            assert float(found[row, number]) == pytest.approx(wanted, abs=1e-12)
    first = chances[()][:, 3:13].sum(1)
    torch.testing.assert_close(found.sum(1), first, atol=1e-12, rtol=1e-9)


def test_whole_numbers_have_the_chances_of_their_tokens() -> None:
    logits = random_logits([()], 0)
    wanted = logits[()].double().softmax(1)[:, 3:104]
    torch.testing.assert_close(distribution(WHOLE, logits), wanted)


def test_a_mixed_split_takes_the_longer_number_from_the_shorter() -> None:
    # 10 is a token of its own and 100 goes on from it; every other number is one token.
    split = [(number + 3,) if number < 100 else (13, 3) for number in range(101)]
    logits = random_logits(needed_prefixes(split), 1)
    ten, hundred = (distribution(split, logits)[0, number] for number in (10, 100))
    both = logits[()].double().softmax(1)[0, 13]
    assert float(ten + hundred) == pytest.approx(float(both))
    assert float(hundred / both) == pytest.approx(float(logits[(13,)].double().softmax(1)[0, 3]))


def test_the_expected_value_is_a_mean_over_what_is_a_number() -> None:
    chances = [0.0] * 101
    chances[40], chances[100] = 0.3, 0.1
    assert expected_value(chances, least=0.4) == pytest.approx(55)
    assert expected_value(chances, least=0.5) is None
    assert expected_value([0.0] * 101, least=0.0) is None
