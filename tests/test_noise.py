import random
from collections import Counter

import pytest

from openqwen2vl.corpus.noise import (
    CLEAN,
    CLEAN_SHARE,
    MISMATCHED,
    MISMATCHED_SHARE,
    file_name,
    noisy_caption,
    shouting,
    stock,
    truncated,
)

CAPTION = "a red circle at the top left and a blue square at the top right"


def drawn(number: int = 4000):
    rng = random.Random(0)
    return [noisy_caption(CAPTION, lambda: "another picture", rng) for _ in range(number)]


def test_faults_come_in_the_stated_shares():
    kinds = Counter(kind for _, kind in drawn())
    assert kinds[MISMATCHED] / 4000 == pytest.approx(MISMATCHED_SHARE, abs=0.03)
    assert kinds[CLEAN] / 4000 == pytest.approx(CLEAN_SHARE, abs=0.03)
    assert set(kinds) == {MISMATCHED, CLEAN, "file_name", "stock", "truncated", "shouting"}


def test_a_mismatched_caption_is_another_pictures_and_a_clean_one_is_untouched():
    texts = {kind: text for text, kind in drawn()}
    assert texts[MISMATCHED] == "another picture"
    assert texts[CLEAN] == CAPTION


def test_no_text_is_empty_even_for_a_short_caption():
    rng = random.Random(1)
    for fault in (file_name, stock, truncated, shouting):
        assert all(fault("one cat", rng).strip() for _ in range(200))


def test_truncated_captions_begin_like_the_true_one():
    text = truncated(CAPTION, random.Random(2))
    assert text.endswith("...")
    assert CAPTION.startswith(text[:-3])


def test_shouting_keeps_the_words_and_file_names_have_an_ending():
    assert CAPTION.upper() in shouting(CAPTION, random.Random(3))
    assert CAPTION in stock(CAPTION, random.Random(3))
    names = [file_name(CAPTION, random.Random(seed)) for seed in range(20)]
    assert all(name.rpartition(".")[2].lower() in ("jpg", "jpeg", "png") for name in names)
