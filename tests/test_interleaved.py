import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packs import pack
from support.shards import SENTENCES, picture, write_tar

from openqwen2vl.formats.documents import IMAGE, ImageMark
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.interleaved import InterleavedRules, is_interleaved, parse_interleaved
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.rejects import REASONS, Unusable
from openqwen2vl.formats.tokens import train_tokenizer
from openqwen2vl.packing.reader import PackFolder

JPEG = picture(random.Random(0))
ANY_NUMBER = InterleavedRules(min_images=0, max_images=1000)


def parts_of(fields, num_images, **rules):
    return parse_interleaved(fields, num_images, InterleavedRules(**rules)).turn.parts


def reason(fields, num_images, **rules):
    with pytest.raises(Unusable) as verdict:
        parts_of(fields, num_images, **rules)
    assert verdict.value.reason in REASONS
    return verdict.value.reason


def text(words):
    return {"type": "text", "text": words}


def shown(parts):
    """The parts with a bar for an image."""
    return [part if isinstance(part, str) else "|" for part in parts]


# Pages as lists of texts and None for an image; every page says something.
pages = st.lists(st.one_of(st.none(), st.text(min_size=1).filter(str.strip)), min_size=1).filter(
    any
)


@given(pages)
def test_typed_parts_and_obelics_lists_give_the_same_document(page):
    num_images = page.count(None)
    typed = [{"type": "image"} if piece is None else text(piece) for piece in page]
    images = ["https://x" if piece is None else None for piece in page]
    expected = parse_interleaved({"parts": typed}, num_images, ANY_NUMBER)
    assert [None if isinstance(p, ImageMark) else p for p in expected.turn.parts] == page
    assert expected.images == tuple(range(num_images))
    assert parse_interleaved({"content": typed}, num_images, ANY_NUMBER) == expected
    for name in ("images", "image_info"):
        fields = {"texts": page, name: images}
        assert parse_interleaved(fields, num_images, ANY_NUMBER) == expected


@given(st.lists(st.text("abc", min_size=1), min_size=1, max_size=6), st.data())
def test_every_mmc4_image_stands_right_before_or_after_its_text(sentences, data):
    # Each sentence is told apart by its number.
    texts = [f"{sentence}{number}" for number, sentence in enumerate(sentences)]
    indices = data.draw(st.lists(st.integers(0, len(texts) - 1), max_size=9))
    fields = {
        "text_list": texts,
        "image_info": [{"matched_text_index": i, "image_name": f"{i}.png"} for i in indices],
    }
    for side in ("before", "after"):
        rules = InterleavedRules(min_images=0, mmc4_images=side)
        document = parse_interleaved(fields, len(indices), rules)
        parts = document.turn.parts
        assert " ".join(p for p in parts if isinstance(p, str)) == " ".join(texts)
        marks = [place for place, part in enumerate(parts) if part is IMAGE]
        assert sorted(document.images) == list(range(len(indices)))
        for place, image in zip(marks, document.images, strict=True):
            expected = texts[indices[image]]
            if side == "before":
                following = next(p for p in parts[place:] if isinstance(p, str))
                assert following.split(" ")[0] == expected
            else:
                before = next(p for p in reversed(parts[:place]) if isinstance(p, str))
                assert before.split(" ")[-1] == expected


def test_an_mmc4_page_in_full():
    infos = [{"matched_text_index": 2}, {"matched_text_index": 0}, {"matched_text_index": 2}]
    fields = {"text_list": ["One.", "Two.", "Three.", "Four."], "image_info": infos}
    document = parse_interleaved(fields, 3)
    assert shown(document.turn.parts) == ["|", "One. Two.", "|", "|", "Three. Four."]
    assert document.images == (1, 0, 2)
    after = parse_interleaved(fields, 3, InterleavedRules(mmc4_images="after"))
    assert shown(after.turn.parts) == ["One.", "|", "Two. Three.", "|", "|", "Four."]


@pytest.mark.parametrize(("num_images", "taken"), [(0, False), (1, True), (9, True), (10, False)])
def test_by_default_a_document_has_one_to_nine_images_as_in_the_paper(num_images, taken):
    fields = {"parts": [{"type": "image"}] * num_images + [text("words")]}
    if taken:
        assert len(parts_of(fields, num_images)) == num_images + 1
    else:
        assert reason(fields, num_images) == "image_count"


def test_trailing_images_are_kept_dropped_or_a_reason_to_reject():
    fields = {"parts": [{"type": "image"}, text("a"), {"type": "image"}, {"type": "image"}]}
    assert shown(parts_of(fields, 3)) == ["|", "a", "|", "|"]
    dropped = parse_interleaved(fields, 3, InterleavedRules(trailing_images="drop"))
    assert shown(dropped.turn.parts) == ["|", "a"]
    assert dropped.images == (0,)
    assert reason(fields, 3, trailing_images="reject") == "trailing_images"


def test_a_document_whose_images_are_all_at_its_end_is_text_alone_once_they_are_dropped():
    fields = {"parts": [text("a"), {"type": "image"}]}
    assert reason(fields, 1, trailing_images="drop") == "image_count"
    assert shown(parts_of(fields, 1, trailing_images="drop", min_images=0)) == ["a"]


def test_dropping_takes_the_images_that_stand_last_not_those_listed_last():
    infos = [{"matched_text_index": 1}, {"matched_text_index": 0}]
    fields = {"text_list": ["a", "b"], "image_info": infos}
    rules = InterleavedRules(mmc4_images="after", trailing_images="drop")
    assert parse_interleaved(fields, 2, rules).images == (1,)


def test_texts_of_white_space_alone_are_no_parts():
    assert shown(parts_of({"texts": [" \n", None, "a"], "images": [None, "x", None]}, 1)) == [
        "|",
        "a",
    ]


@pytest.mark.parametrize(
    ("fields", "num_images", "expected"),
    [
        ({"parts": 5}, 0, "bad_interleaved"),
        ({"parts": ["text"]}, 0, "bad_interleaved"),
        ({"parts": [{"type": "video"}]}, 0, "bad_interleaved"),
        ({"parts": [{"type": "text", "text": None}]}, 0, "bad_interleaved"),
        ({"texts": ["a"], "images": [None, "x"]}, 1, "bad_interleaved"),
        ({"texts": ["a"], "images": ["x"]}, 1, "bad_interleaved"),
        ({"texts": [None], "images": [None]}, 0, "bad_interleaved"),
        ({"texts": "a", "images": "x"}, 1, "bad_interleaved"),
        ({"text_list": ["a"]}, 0, "bad_interleaved"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": 1}]}, 1, "bad_interleaved"),
        ({"text_list": ["a"], "image_info": [{"matched_text_index": -1}]}, 1, "bad_interleaved"),
        ({"text_list": ["a"], "image_info": ["x.jpg"]}, 1, "bad_interleaved"),
        ({"text_list": [None], "image_info": []}, 0, "bad_interleaved"),
        ({"parts": [{"type": "image"}, text("a")]}, 2, "image_count"),
        ({"parts": [{"type": "image"}, text("a")]}, 0, "image_count"),
        ({"parts": [{"type": "image"}, text(" ")]}, 1, "missing_text"),
        ({"parts": []}, 0, "missing_text"),
    ],
)
def test_a_document_that_cannot_be_used_says_why(fields, num_images, expected):
    assert is_interleaved(fields)
    assert reason(fields, num_images) == expected


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"min_images": 3, "max_images": 2}, "min_images is 3 and max_images 2"),
        ({"min_images": -1}, "expected 0 <= min_images"),
        ({"trailing_images": "cut"}, "there are keep, drop, reject"),
        ({"mmc4_images": "random"}, "there are before, after"),
    ],
)
def test_rules_that_make_no_sense_are_told(wrong, message):
    with pytest.raises(ConfigError, match=message):
        InterleavedRules(**wrong)


def test_a_shard_of_pages_is_read_with_its_images_in_the_order_of_the_marks(tmp_path):
    mmc4 = {
        "text_list": ["a", "b"],
        "image_info": [{"matched_text_index": 1}, {"matched_text_index": 0}],
    }
    obelics = {"uid": "page", "texts": ["a", None], "images": [None, "https://x"]}
    files = {
        "m.0.jpg": JPEG + b"0",
        "m.1.JPG": JPEG + b"1",
        "m.json": json.dumps(mmc4).encode(),
        "o.json": json.dumps(obelics).encode(),
        "o.0.png": JPEG,
        "lost.json": json.dumps(obelics | {"uid": "lost"}).encode(),
    }
    write_tar(tmp_path / "0.tar", files)
    first, page, lost = read_raw_shard(tmp_path / "0.tar", "web")
    tar = (tmp_path / "0.tar").read_bytes()
    assert [tar[i.offset + i.size - 1 : i.offset + i.size] for i in first.images] == [b"1", b"0"]
    assert first.turns[0].role == "interleaved"
    assert (page.uid, page.turns[0].parts) == ("page", ("a", IMAGE))
    assert (lost.reason, lost.detail) == ("image_count", "1 images in the JSON, 0 with it")
    strict = InterleavedRules(trailing_images="reject")
    reasons = [getattr(i, "reason", None) for i in read_raw_shard(tmp_path / "0.tar", "w", strict)]
    assert reasons == [None, "trailing_images", "image_count"]


def test_pages_are_packed_whole_with_their_images_in_order(tmp_path):
    tokenizer = train_tokenizer(SENTENCES, 400)
    rng = random.Random(1)
    files, expected = {}, {}
    for number in range(12):
        page = [rng.choice((None, f"text {number}.{place}")) for place in range(7)] + ["end"]
        page[rng.randrange(7)] = None
        originals = [picture(rng) for _ in range(page.count(None))]
        fields = {"uid": f"page {number}", "texts": page}
        fields["images"] = ["x" if piece is None else None for piece in page]
        files[f"k{number}.json"] = json.dumps(fields).encode()
        files |= {f"k{number}.{k}.jpg": data for k, data in enumerate(originals)}
        lines = "\n".join("<|image_pad|>" if piece is None else piece for piece in page)
        expected[f"page {number}"] = (f"<s>{lines}<|im_end|>", originals)
    write_tar(tmp_path / "raw" / "0.tar", files)
    manifest = pack(tmp_path / "raw", tmp_path / "out", tokenizer)
    assert manifest.rejects == {}
    packs, found = PackFolder(tmp_path / "out"), {}
    for number in range(len(packs)):
        one = packs.read(number)
        images = iter(one.images)
        for document in one.documents:
            ids = one.ids[document["start"] : document["start"] + document["length"]]
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            found[document["uid"]] = (text, [next(images) for _ in range(document["images"])])
    assert found == expected


def test_image_places_may_hold_anything_but_null():
    assert reason({"texts": [None, "a"], "image_info": [5, None]}, 0) == "image_count"
