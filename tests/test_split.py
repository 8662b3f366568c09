from openqwen2vl.corpus.split import HELD_OUT_SHARE, is_held_out


def test_about_one_description_in_ten_is_held_out():
    share = sum(is_held_out(f"description {number}") for number in range(20_000)) / 20_000
    assert abs(share - HELD_OUT_SHARE) < 0.01


def test_the_split_is_the_same_as_ever():
    # Recorded: another answer would move pictures of earlier corpora across the split.
    held_out = [number for number in range(60) if is_held_out(f"the number {number}")]
    assert held_out == [1, 11, 12, 28, 52, 53, 54, 56, 59]
