import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.packs import pack
from support.runs import Run, assert_one_message
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard, write_tar

from openqwen2vl.commands._inspect_page import KINDS, build_page, read_pieces
from openqwen2vl.formats.tokens import IGNORE_INDEX, load_tokenizer
from openqwen2vl.packing.batch import expand
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.summary import document_lengths, histogram, spread, summarise
from openqwen2vl.pages.bars import Bar, Segment, bars, strip

NASTY = '<script>alert("1")</script> & café 日本語 <|im_end|>'


class Outline(HTMLParser):
    """Every tag with its attributes, and the text between tags."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> PackFolder:
    root = tmp_path_factory.mktemp("inspect")
    captions = [NASTY, *(f"a cat, {i} dogs" for i in range(9))]
    write_caption_shard(root / "raw" / "00000.tar", 10, captions=captions)
    write_conversation_shard(root / "raw" / "00001.tar", 10, max_images=2)
    files = {"bad.jpg": b"no picture", "bad.txt": b"a broken picture"}
    files["bad.json"] = json.dumps({"uid": "<b>uid</b>"}).encode()
    write_tar(root / "raw" / "00002.tar", files)
    pack(root / "raw", root / "packs", tiny_tokenizer(root / "tokenizer"))
    return PackFolder(root / "packs")


def page(folder: PackFolder, with_text: bool = True) -> str:
    tokenizer = load_tokenizer(str(folder.path.parent / "tokenizer")) if with_text else None
    return build_page(folder, summarise(folder), range(len(folder)), tokenizer, 32).html()


def test_what_documents_say_never_becomes_markup(folder: PackFolder) -> None:
    html = page(folder)
    outline = Outline(html)
    tags = {tag for tag, _ in outline.tags}
    assert not tags & {"script", "link", "iframe", "object"}
    assert "<b>uid</b>" not in html
    assert NASTY.replace("<|im_end|>", "") in outline.text
    assert "<b>uid</b>" in outline.text


def test_the_page_needs_nothing_but_itself(folder: PackFolder) -> None:
    html = page(folder)
    for _, attributes in Outline(html).tags:
        assert "href" not in attributes
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:").startswith("data:")
    assert "@import" not in html
    assert not re.search(r"url\(", html)


def test_every_picture_has_words_and_there_are_as_many_as_the_packs_hold(
    folder: PackFolder,
) -> None:
    pictures = [attributes for tag, attributes in Outline(page(folder)).tags if tag == "img"]
    assert len(pictures) == folder.manifest.counts.images
    assert all(attributes["alt"] for attributes in pictures)


def test_a_picture_that_cannot_be_read_is_told(folder: PackFolder) -> None:
    assert "masked: an image cannot be decoded" in Outline(page(folder)).text


def test_without_a_tokenizer_ids_are_shown_and_the_way_to_text(folder: PackFolder) -> None:
    text = Outline(page(folder, with_text=False)).text
    assert "give tokenizer=PATH_OR_NAME" in text
    ids = folder.read(0).ids
    plain = [i for i in ids.tolist() if i > 10][:5]
    assert " ".join(map(str, plain[:2])) in text


@pytest.mark.parametrize("with_text", [True, False])
def test_pieces_are_the_row_without_gap_and_targets_are_the_labels(
    folder: PackFolder, with_text: bool
) -> None:
    tokenizer = load_tokenizer(str(folder.path.parent / "tokenizer")) if with_text else None
    spec = folder.manifest.spec
    for number in range(len(folder)):
        row = expand(folder.read(number), spec, 16)
        asked = []
        place = 0
        for document in range(len(row.documents)):
            places = np.flatnonzero(row.document_ids == document)
            for piece in read_pieces(row, places, spec, tokenizer):
                assert piece.first == place
                size = spec.tokens_per_image if piece.kind == "image" else len(piece.ids)
                assert set(piece.ids) <= set(row.input_ids[place : place + size].tolist())
                if piece.kind == "target":
                    asked += range(place, place + size)
                place += size
        assert place == row.tokens
        # A label stands one place before the token that it asks for.
        assert asked == (np.flatnonzero(row.labels != IGNORE_INDEX) + 1).tolist()


def test_text_is_whole_again_when_the_pieces_are_joined(folder: PackFolder) -> None:
    tokenizer = load_tokenizer(str(folder.path.parent / "tokenizer"))
    spec = folder.manifest.spec
    texts = []
    for number in range(len(folder)):
        row = expand(folder.read(number), spec, 16)
        for document in range(len(row.documents)):
            places = np.flatnonzero(row.document_ids == document)
            pieces = read_pieces(row, places, spec, tokenizer)
            texts.append("".join(p.text for p in pieces if p.kind in KINDS and p.kind != "image"))
    assert f"<s>\n{NASTY}<|im_end|>" in texts


def test_the_summary_adds_up(folder: PackFolder) -> None:
    summary = summarise(folder)
    counts = folder.manifest.counts
    assert summary.sampled == counts.packs
    assert sum(one.count for one in summary.lengths) == counts.documents
    assert sum(one.count for one in summary.images) == counts.packs
    assert summary.sources == {"tiny": 1.0}
    assert summary.pad_share == pytest.approx(1 - folder.manifest.fill)
    spec = folder.manifest.spec
    for number in range(len(folder)):
        lengths = document_lengths(folder.read(number), spec.special.image, spec.tokens_per_image)
        assert lengths.sum() == folder.tokens[number]


@given(st.lists(st.integers(0, 10**6), min_size=1), st.integers(1, 40))
def test_a_histogram_counts_every_value_once(values: list[int], most: int) -> None:
    bins = histogram(values, most)
    assert len(bins) <= most + 1
    assert sum(one.count for one in bins) == len(values)
    assert bins[0].count
    assert bins[-1].count
    assert [one.low for one in bins[1:]] == [one.high + 1 for one in bins[:-1]]
    for one in bins:
        assert one.count == sum(one.low <= value <= one.high for value in values)


@given(st.integers(0, 2000), st.integers(1, 300))
def test_a_sample_is_spread_from_first_to_last(total: int, count: int) -> None:
    numbers = spread(total, count)
    assert len(numbers) == min(total, count)
    assert numbers == sorted(set(numbers))
    assert all(0 <= number < total for number in numbers)
    if total and count > 1:
        assert (numbers[0], numbers[-1]) == (0, total - 1)


def test_bars_and_strips_escape_their_words() -> None:
    html = bars([Bar(NASTY, 2.0, NASTY), Bar("none", 0.0, "0")])
    html += strip([Segment(0.25, "target", True), Segment(0.75, "pad")], NASTY)
    outline = Outline(html)
    assert "script" not in {tag for tag, _ in outline.tags}
    widths = re.findall(r"width:([\d.]+)%", html)
    assert list(map(float, widths)) == [100.0, 0.0, 25.0, 75.0]
    assert bars([]) == '<div class="bars"></div>'


def test_the_command_writes_the_page_and_ends_with_json(
    folder: PackFolder, call: Run, tmp_path: Path
) -> None:
    out = tmp_path / "page.html"
    told = call("inspect", f"packs={folder.path}", f"out={out}", "count=2", "json=true")
    assert told[0] == 0, told[2]
    figures = json.loads(told[1].splitlines()[-1])
    assert figures["packs"] == len(folder)
    assert (figures["shown"], figures["page"]) == (min(2, len(folder)), str(out))
    assert out.read_text().startswith("<!doctype html>")
    assert "tokens of a document" in told[1]
    words = ("inspect", f"packs={folder.path}", f"out={out}", "count=1")
    out.write_text("something else")
    assert_one_message(call(*words), f"{out} exists; set overwrite=true, or give another out=")
    assert out.read_text() == "something else"
    assert call(*words, "overwrite=true")[0] == 0
    assert out.read_text().startswith("<!doctype html>")


def test_mistakes_are_told(folder: PackFolder, call: Run, tmp_path: Path) -> None:
    words = ("inspect", f"packs={folder.path}", f"out={tmp_path}/page.html")
    assert_one_message(call(*words, "first=999"), f"first is 999, but {folder.path} holds")
    assert_one_message(call(*words, "count=0"), "count is 0")
    tiny_tokenizer(tmp_path / "other", 300)
    told = call(*words, f"tokenizer={tmp_path}/other")
    assert_one_message(told, f"was packed with tokenizer {folder.manifest.spec.tokenizer_hash}")
    assert not (tmp_path / "page.html").exists()
