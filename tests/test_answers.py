"""What each reader makes of an output; the tables are the rules."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from openqwen2vl.evaluation.answers import (
    read_candidates,
    read_first_character,
    read_leading_letter,
    read_letter,
    read_option,
    read_yes_no,
)

OPTIONS = {"A": "red", "B": "a cat", "C": "dark red", "D": "14"}
LETTERS = "ABCD"

# output: read_letter, first character, leading letter, read_option, read_candidates
CASES = {
    "": (None, None, None, None, None),
    "B": ("B", "B", "B", "B", "B"),
    " B\n": ("B", "B", "B", "B", "B"),
    "b": (None, "B", "B", None, None),
    "B.": ("B", "B", "B", "B", "B"),
    "(B)": ("B", None, "B", "B", "B"),
    "B)": ("B", "B", "B", "B", None),
    "B: a cat": ("B", "B", None, "B", None),
    "B. a cat": ("B", "B", "B", "B", "B"),
    "The answer is C": ("C", None, None, "C", "C"),
    "The answer is C.": ("C", None, None, "C", "C"),
    "Answer: C": ("C", "A", None, "C", "C"),
    # No letter stands alone in these: only the text of an option can be meant.
    "Answer: cat": (None, "A", None, None, None),
    "Answer: a cat": (None, "A", None, "B", None),
    "Cat": (None, "C", None, None, None),
    "The answer is Cat": (None, None, None, None, None),
    "NBA is it": (None, None, None, None, "A"),
    # Options by their text; "red" is within "dark red".
    "a cat": (None, "A", None, "B", None),
    "red": (None, None, None, "A", None),
    "dark red": (None, "D", None, None, None),
    "14": (None, None, None, "D", None),
    "It seems to be some kind of a cat": (None, None, None, "B", "B"),
    # Letters that are no option's.
    "E": (None, None, None, None, None),
    "(F)": (None, None, None, None, None),
    # Two answers.
    "A or B": ("A", "A", None, "A", "B"),
    "A, B": ("A", "A", None, "B", "B"),
    "(A) or (B)": ("B", None, None, "B", "B"),
    "The answer is B, not C": ("C", None, None, "C", "C"),
    # An article, and letters in other scripts.
    "A man with a cat": ("A", "A", None, "B", "A"),
    "A dog runs by": ("A", "A", None, "A", "A"),
    "答案是B": ("B", None, None, "B", "B"),
    "答案是B。": ("B", None, None, "B", None),
    "是红色的猫": (None, None, None, None, None),
    "1.45": (None, None, None, None, None),
    "I cannot say.": (None, None, None, None, None),
}


@pytest.mark.parametrize(("text", "read"), CASES.items())
def test_what_readers_of_choices_make_of_an_output(text, read):
    assert (
        read_letter(text, LETTERS).value,
        read_first_character(text, LETTERS).value,
        read_leading_letter(text, LETTERS).value,
        read_option(text.strip(), OPTIONS).value,
        read_candidates(text, OPTIONS).value,
    ) == read


def test_a_reader_says_by_which_rule():
    assert [
        read_letter(text, LETTERS).how
        for text in ("B", "B it is", "it is B", "i pick B now", "so (B) then", "is B, or so")
    ] == ["letter", "letter at start", "letter at end", "answer is X", "(X)", "X alone"]
    assert read_option("such a cat", OPTIONS).how == "option text"
    assert read_option("E", OPTIONS).how == "no such option"


def test_an_absent_option_is_none():
    """MMBench's files say ``nan`` where an option is absent; the word is within others."""
    assert read_option("a banana", {"A": "fruit", "B": "stone"}).value is None


@pytest.mark.parametrize(
    ("text", "plain", "stripped"),
    [
        ("yes", "yes", "yes"),
        (" No\n", "no", "no"),
        ("YES", "yes", "yes"),
        ("Yes.", None, "yes"),
        ("yes,", None, "yes"),
        ("Yes, it is", None, None),
        ("yes no", None, None),
        ("maybe", None, None),
        ("", None, None),
        ("是", None, None),
    ],
)
def test_yes_and_no(text, plain, stripped):
    assert read_yes_no(text).value == plain
    assert read_yes_no(text, ".,").value == stripped


@given(text=st.text())
def test_nothing_but_an_option_is_ever_read(text):
    for read in (
        read_letter(text, LETTERS),
        read_first_character(text, LETTERS),
        read_leading_letter(text, LETTERS),
        read_option(text, OPTIONS),
        read_candidates(text, OPTIONS),
    ):
        assert read.value is None or read.value in OPTIONS


@given(letter=st.sampled_from(LETTERS), around=st.sampled_from(["{}", "({})", "{}.", "{}) x y"]))
def test_a_letter_alone_is_read_as_it_stands(letter, around):
    assert read_letter(around.format(letter), LETTERS).value == letter
