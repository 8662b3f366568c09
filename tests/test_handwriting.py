import random
import sys

import numpy as np
import pytest

from openqwen2vl.corpus.handwriting import (
    MOST_DIGITS,
    Number,
    Scans,
    caption,
    draw_number,
    load_scans,
    other_numbers,
    render,
)
from openqwen2vl.corpus.split import is_held_out
from openqwen2vl.formats.errors import UserError


@pytest.fixture(scope="module")
def scans() -> Scans:
    return load_scans()


def test_all_scans_are_there(scans):
    assert scans.ink.shape == (1797, 8, 8)
    assert scans.ink.dtype == np.uint8
    assert set(scans.digits) == set(range(10))


def test_numbers_are_made_of_scans_that_show_their_digits(scans):
    rng = random.Random(0)
    for _ in range(200):
        number = draw_number(rng, scans, held_out=False)
        assert number.text == "".join(str(scans.digits[index]) for index in number.scans)
        assert 1 <= len(number.text) <= MOST_DIGITS


def test_held_out_numbers_use_scans_that_training_never_shows(scans):
    trained, asked = random.Random(1), random.Random(2)
    seen = {i for _ in range(3000) for i in draw_number(trained, scans, False).scans}
    held_out = {i for _ in range(500) for i in draw_number(asked, scans, True).scans}
    assert seen.isdisjoint(held_out)
    assert max(seen) < min(held_out)


def test_held_out_values_of_several_digits_never_occur_in_training(scans):
    rng = random.Random(3)
    for held_out in (False, True):
        values = {draw_number(rng, scans, held_out).text for _ in range(500)}
        sides = {is_held_out(f"the number {value}") for value in values if len(value) > 1}
        assert sides == {held_out}


def test_other_numbers_are_as_long_and_from_the_same_side():
    rng = random.Random(4)
    for text in ("7", "11", "47", "123"):
        others = other_numbers(rng, text, 3)
        assert len({text, *others}) == 4
        assert {len(other) for other in others} == {len(text)}
        if len(text) > 1:
            sides = {is_held_out(f"the number {value}") for value in (text, *others)}
            assert len(sides) == 1


def test_a_picture_is_paper_with_darker_ink(scans):
    number = draw_number(random.Random(5), scans, False)
    picture = np.asarray(render(number, scans, random.Random(6)).convert("L"))
    assert np.median(picture) > 200
    assert 0.005 < (picture < 140).mean() < 0.4


def test_the_caption_names_the_number():
    assert "407" in caption(Number("407", (1, 2, 3)), random.Random(0))


def test_missing_scikit_learn_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(UserError, match=r"pip install 'openqwen2vl\[demo\]'"):
        load_scans()
