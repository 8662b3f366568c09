import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.shards import picture, write_tar

from openqwen2vl.formats.captions import caption_turn, is_page, page_text
from openqwen2vl.formats.documents import IMAGE, Turn
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.rejects import Unusable

JPEG = picture(random.Random(0))


def page(text):
    return {"ground_truth": json.dumps({"gt_parse": {"text_sequence": text}})}


@given(st.text())
def test_the_text_of_a_page_is_read_out_of_its_json_within_json(text):
    assert is_page(page(text))
    assert page_text(page(text)) == text
    assert page_text({"ground_truth": json.loads(page(text)["ground_truth"])}) == text


@pytest.mark.parametrize(
    "truth",
    ["{broken", "[]", '{"gt_parse": 5}', '{"gt_parse": {}}', None, 5, page(7)["ground_truth"]],
)
def test_a_page_without_its_text_is_rejected(truth):
    with pytest.raises(Unusable) as verdict:
        page_text({"ground_truth": truth})
    assert verdict.value.reason == "bad_json"
    assert "text_sequence" in verdict.value.detail


def test_half_a_surrogate_pair_within_a_page_is_rejected():
    truth = '{"gt_parse": {"text_sequence": "\\ud800"}}'
    with pytest.raises(Unusable, match="UnicodeEncodeError"):
        page_text({"ground_truth": truth})


@pytest.mark.parametrize(
    ("num_images", "text", "reason"),
    [(0, "a", "missing_image"), (2, "a", "image_count"), (1, " \n", "empty_caption")],
)
def test_a_caption_has_one_image_and_a_text(num_images, text, reason):
    with pytest.raises(Unusable) as verdict:
        caption_turn(text, num_images, "k.txt")
    assert verdict.value.reason == reason


def test_pages_in_a_shard_are_captions(tmp_path):
    files = {
        "a.jpg": JPEG,
        "a.json": json.dumps(page("first line second line") | {"uid": "mine"}).encode(),
        "b.json": json.dumps(page("no picture")).encode(),
        "c.png": JPEG,
        "c.json": json.dumps(page(" ")).encode(),
    }
    write_tar(tmp_path / "0.tar", files)
    first, second, third = read_raw_shard(tmp_path / "0.tar", "synthdog")
    assert first.turns == (Turn("caption", (IMAGE, "first line second line")),)
    assert first.uid == "mine"
    assert (second.reason, third.reason) == ("missing_image", "empty_caption")
