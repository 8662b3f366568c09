import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openqwen2vl.curation.scorers.caption_rules import RULES, bad_pattern, normalized, rules_hash

HITS = {
    "no_letters": [
        "",
        "12345",
        "!!! ???",
        "2014-05-12 10:33:07",
        "\U0001f600 \u2764",
        "1 / 3",
        "70-410",
        "___",
    ],
    "file_name": [
        "IMG_1234.jpg",
        "sunset over the lake.JPEG",
        "wp-content-uploads-hero-2.webp",
        "logo (1).png",
        "https://a.example/pictures/cat.gif",
    ],
    "camera_number": [
        "IMG_1234",
        "DSC00012",
        "DSCN 0417",
        "P1010023",
        "image 12",
        "Photo #04",
        "Screenshot 2019-04-03 at 10.22.01 PM",
        "WhatsApp Image 2020-01-02 at 12.00.01",
        "IMG_1234-edited",
        "Picture 03 (2)",
    ],
    "camera_maker": [
        "OLYMPUS DIGITAL CAMERA",
        "KODAK Digital Still Camera",
        "SONY DSC",
        "SAMSUNG CSC",
        "Exif_JPEG_PICTURE",
        "Processed with VSCO with f2 preset",
    ],
    "placeholder": [
        "Image not available",
        "No image",
        "Photo coming soon",
        "Sorry, this image is no longer available.",
        "Thumbnail",
        "product image 3",
        "Default Image",
        "featured image",
        "no photo available",
        "Profile photo",
    ],
    "no_value": ["null", "undefined", "N/A", "Untitled", "untitled 2", "[object Object]", "NaN"],
    "hash": [
        "3f2a9c0d1b4e5f60",
        "550e8400-e29b-41d4-a716-446655440000",
        "d41d8cd98f00b204e9800998ecf8427e_b",
    ],
    "code": ["AB-12345", "wbx2041_k", "B08N5WRWNW"],
    "date": ["12 May 2014", "Monday, June 3rd, 2013", "Sept. 2009", "May 5, 2011 at 10:20 am"],
    "copyright": ["\u00a9 2014 John Smith", "(c) Smith & Sons", "Copyright Smith 2011"],
    "dimensions": ["1024x768", "300 \u00d7 250 px", "wallpaper 1920 x 1080"],
    "price": ["$19.99", "from \u20ac 5,00", "Sale: $10 now $5", "Only 25 USD!", "\u00a33.50 each"],
    "interface": [
        "Click",
        "Read more",
        "Next \u00bb",
        "View larger image",
        "Facebook",
        "Follow us on X",
    ],
    "url": [
        "more on http://a.example",
        "see www.a-b.example for it",
        "cats at shop.com/cats today",
    ],
    "email": ["write to anna.b@example.org for prints"],
    "html": [
        "<b>Red</b> sofa",
        "salt &amp; pepper",
        "a house<br/>by the sea",
        '<img src="x"> boat',
    ],
    "template": ["hello {{ name }}", "${title} of the page", "[caption id=3] a dog"],
    "percent_code": ["red%20sofa%20in%20room"],
    "mojibake": ["caf\u00c3\u00a9 in Paris", "the dog\u00e2\u20ac\u2122s ball", "a \ufffd house"],
    "placeholder_phrase": ["red sofa, image not available", "Blue lamp - photo coming soon"],
    "stock": [
        "Red apple on white, royalty-free",
        "woman with laptop stock photo",
        "Old bridge (Shutterstock)",
        "lake - Getty Images",
    ],
    "rights": ["A lake. All rights reserved."],
    "shop": ["Red sofa - buy now", "free shipping on lamps", "lamp, add to cart"],
    "product_code": ["red sofa SKU: 88-124", "Item No. 4711b chair", "lamp, model number X-200"],
    "interface_phrase": [
        "A red sofa (click to enlarge)",
        "sofa, view full-size",
        "Click here for sofas",
    ],
    "repeated_character": ["wooooow a cat", "======= sofa", "dog....."],
    "repeated_word": ["sofa sofa sofa sofa", "sale, sale, sale, SALE in town"],
    "endless_word": ["a picture of " + "ab_" * 20],
}

MISSES = [
    "a dog",
    "dog",
    "7 dwarfs",
    "how to save a picture as .png or .jpg files",
    "photo of 12 monkeys",
    "image 12 of the series: a red barn",
    "a page from a book",
    "Figure skating in 2010",
    "an Olympus digital camera on a table",
    "the Sony DSC on a tripod",
    "a default user interface",
    "a photo of a logo",
    "profile of a woman in a hat",
    "unknown soldier's tomb",
    "the null hypothesis drawn on a board",
    "the test match at Lord's",
    "Boeing 747",
    "a4 paper",
    "route 66",
    "deadbeefcafe",
    "facade",
    "May",
    "march on Washington, August 28, 1963",
    "june bug on a leaf",
    "a copyright lawyer at work",
    "1024 children in a stadium",
    "4 x 4 truck on sand",
    "a $5 bill on a table",
    "shoes for $19.99 at the market",
    "a click beetle",
    "next to the house",
    "a girl shares her lunch",
    "a shop on the corner",
    "@anna at the beach",
    "two cats @ home",
    "<PERSON> at the premiere",
    "I <3 this place",
    "x < y and y > z",
    "salt & pepper",
    "a {curly} brace",
    "100% wool",
    "50% off, then 20% more",
    "S\u00e3o Paulo at night",
    "\u00e2ge d'or, ch\u00e2teau",
    "stock of photos in a drawer",
    "woodstock photographs",
    "a stockade",
    "the Getty museum",
    "all rights and wrongs",
    "a best man",
    "free delivery man with parcels"[5:],
    "model of a ship",
    "an item number on a door"[3:7] + "s on a door",
    "part of 12 pictures",
    "cool bookkeeper",
    "wait...",
    "100000000 stars",
    "a very, very, very old oak",
    "New York, New York",
    "Llanfairpwllgwyngyllgogerychwyrndrobwllllantysil",
    "\u4e00\u53ea\u732b\u5750\u5728\u6c99\u53d1\u4e0a" * 8,
    "\u043a\u043e\u0442 \u043d\u0430 \u0434\u0438\u0432\u0430\u043d\u0435",
]


@pytest.mark.parametrize(
    ("name", "caption"), [(name, caption) for name, found in HITS.items() for caption in found]
)
def test_a_rule_meets_what_it_is_for(name, caption):
    assert bad_pattern(normalized(caption)) == name


@pytest.mark.parametrize("caption", MISSES)
def test_no_rule_meets_a_fair_caption(caption):
    assert bad_pattern(normalized(caption)) is None


def test_every_rule_has_hits_of_its_own():
    assert set(HITS) == set(RULES)


@given(st.text())
def test_normalizing_again_changes_nothing_for_plain_texts(text):
    once = normalized(text)
    assert once == once.strip()
    assert "  " not in once
    if text.isascii():
        assert normalized(once) == once == " ".join(text.lower().split())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("A  Cat\n", "a cat"),
        ("\uff21 \uff43at", "a cat"),
        ("Stra\u00dfe", "STRASSE"),
        ("caf\u00e9", "cafe\u0301"),
        ("a\u00a0cat", "a cat"),
    ],
)
def test_captions_that_look_alike_are_normalized_alike(first, second):
    assert normalized(first) == normalized(second)


PIECES = [*"a1 .,-_/:$%<>{}()!@&[]#\u20ac\u00d7", "from ", "not ", "image ", "www.", "may ", "<a "]


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.sampled_from(PIECES), min_size=1, max_size=6), st.sampled_from(["", "~", "a", "1"])
)
def test_no_caption_takes_long(pieces, last):
    caption = normalized("".join(pieces) * (20_000 // len(pieces)) + last)
    begin = time.process_time()
    bad_pattern(caption)
    assert time.process_time() - begin < 0.5


def test_another_rule_gives_another_hash(monkeypatch):
    before = rules_hash()
    assert len(before) == 16
    monkeypatch.setitem(bad_pattern.__globals__["_ANYWHERE"], "stock", r"\bstock photo\b")
    assert rules_hash() != before
