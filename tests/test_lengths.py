import json
import os
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.packs import contents, pack
from support.shards import (
    picture,
    tiny_tokenizer,
    write_caption_shard,
    write_conversation_shard,
    write_tar,
)

from openqwen2vl.engine.local import map_inline
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.interleaved import InterleavedRules
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.templates import encode_document, template
from openqwen2vl.packing import scan, space
from openqwen2vl.packing.bins import Limits
from openqwen2vl.packing.choose import OUTSIDE, Choice, choose
from openqwen2vl.packing.layout import plan_windows
from openqwen2vl.packing.lengths import IndexFile, Lengths, Stamp, reason_code
from openqwen2vl.packing.plan import (
    Selection,
    plan_packs,
    uid_fraction,
    uid_hash,
)
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import make_spec

JPEG = picture(random.Random(0))


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return tiny_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture
def raw(tmp_path):
    for number in range(2):
        write_caption_shard(tmp_path / "raw" / f"{number:05d}.tar", 20, seed=number)
    write_conversation_shard(tmp_path / "raw" / "00002.tar", 20, seed=2, max_images=2)
    return tmp_path / "raw"


@pytest.fixture
def tokenised(monkeypatch):
    """Count the documents that go to the tokenizer."""
    seen, encode = [], scan.encode_documents
    monkeypatch.setattr(
        scan, "encode_documents", lambda docs, *more: seen.extend(docs) or encode(docs, *more)
    )
    return seen


@pytest.mark.parametrize(
    "change",
    [
        {"grid": 6},
        {"context": 90},
        {"selection": Selection((0.2, 0.8), 0.3)},
        {"max_images": 2, "packer": "first_fit_decreasing"},
    ],
    ids=str,
)
def test_packing_the_same_corpus_otherwise_tokenises_nothing(
    raw, tokenizer, tmp_path, tokenised, change
):
    pack(raw, tmp_path / "first", tokenizer)
    assert len(tokenised) == 60
    pack(raw, tmp_path / "second", tokenizer, **change)
    assert len(tokenised) == 60
    pack(raw, tmp_path / "fresh", tokenizer, index=tmp_path / "other", **change)
    assert len(tokenised) == 120
    assert contents(tmp_path / "second") == contents(tmp_path / "fresh")


@pytest.mark.parametrize(
    "change",
    [{"template": "open_qwen2vl_v1"}, {"rules": InterleavedRules(max_images=3)}],
    ids=str,
)
def test_an_index_is_of_one_template_and_one_set_of_rules(
    raw, tokenizer, tmp_path, tokenised, change
):
    pack(raw, tmp_path / "first", tokenizer)
    pack(raw, tmp_path / "second", tokenizer, **change)
    assert len(tokenised) == 120


def test_only_a_raw_shard_that_changed_is_read_again(raw, tokenizer, tmp_path, tokenised):
    pack(raw, tmp_path / "first", tokenizer)
    write_caption_shard(raw / "00001.tar", 7, seed=9)
    pack(raw, tmp_path / "second", tokenizer)
    assert [d.shard for d in tokenised[60:]] == ["00001"] * 7
    os.utime(raw / "00000.tar", ns=(0, 0))
    pack(raw, tmp_path / "third", tokenizer)
    assert [d.shard for d in tokenised[67:]] == ["00000"] * 20


def test_a_damaged_index_file_is_made_again(raw, tokenizer, tmp_path, tokenised):
    pack(raw, tmp_path / "first", tokenizer)
    for path in sorted(tmp_path.glob(".lengths/*/*.parquet"))[:2]:
        path.write_bytes(path.read_bytes()[:100])
    pack(raw, tmp_path / "second", tokenizer)
    assert len(tokenised) == 100
    assert contents(tmp_path / "first") == contents(tmp_path / "second")


def test_an_index_holds_documents_and_rejects_in_the_shards_order(tokenizer, tmp_path):
    files = {"a.jpg": JPEG, "a.txt": b"a cat", "b.txt": b"no picture", "c.jpg": JPEG}
    write_tar(tmp_path / "raw" / "0.tar", {**files, "c.txt": b"word " * 500})
    pack(tmp_path / "raw", tmp_path / "out", tokenizer)
    (path,) = tmp_path.glob(".lengths/*/*.parquet")
    lengths = Lengths.read(IndexFile(path, "0", Stamp("", 0, 0), ""))
    first, reject, last = read_raw_shard(tmp_path / "raw" / "0.tar", "tiny")
    assert lengths.reason.tolist() == [0, reason_code("missing_image"), 0]
    for row, item in ((0, first), (2, last)):
        code = encode_document(item, tokenizer, template("qwen2_5"))
        assert (lengths.num_ids[row], lengths.num_images[row]) == (len(code.ids), 1)
        assert lengths.hashes[row] == uid_hash(item)
        assert lengths.image_bytes[row] == 512 + -(-len(JPEG) // 512) * 512
    for row, item in enumerate((first, reject, last)):
        assert lengths.part[row] == uid_fraction(item.uid, "part")
        assert lengths.validation[row] == uid_fraction(item.uid, "validation")


def test_an_index_of_a_listing_sees_that_its_images_come_and_change(tokenizer, tmp_path, tokenised):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPEG)
    talk = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello"}]
    entries = [{"image": f"{name}.jpg", "conversations": talk} for name in "ab"]
    (tmp_path / "data.json").write_text(json.dumps(entries))

    def packed(name):
        pack(tmp_path / "data.json", tmp_path / name, tokenizer, image_root=tmp_path / "images")
        return sorted(PackFolder(tmp_path / name).read(0).images, key=len)

    assert packed("one") == [JPEG]
    (tmp_path / "images" / "b.jpg").write_bytes(JPEG)
    assert packed("two") == [JPEG, JPEG]
    (tmp_path / "images" / "a.jpg").write_bytes(JPEG + b"more")
    assert packed("three") == [JPEG, JPEG + b"more"]
    seen = len(tokenised)
    packed("four")
    assert len(tokenised) == seen


def test_an_index_that_cannot_be_kept_is_one_sentence(raw, tokenizer, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"the length index cannot be kept in .* give index=DIR"):
        pack(raw, tmp_path / "out", tokenizer, index=tmp_path / "file")


def made_up(rows):
    """An index of rows (ids, images, uid, why it is left out, whether it has a key)."""
    columns = list(zip(*rows, strict=True)) or [[]] * 5
    fractions = [
        [
            uid_fraction(uid, salt) if key else np.nan
            for uid, key in zip(columns[2], columns[4], strict=True)
        ]
        for salt in ("part", "validation")
    ]
    return Lengths(
        IndexFile(None, "0", Stamp("0.tar", 0, 0), ""),
        np.array(columns[0], np.int32),
        np.array(columns[1], np.int32),
        np.array(columns[1], np.int64) * 1024,
        np.arange(len(rows), dtype=np.uint64),
        *(np.array(values, np.float64) for values in fractions),
        np.zeros(len(rows), bool),
        np.array(columns[3], np.int8),
    )


ROWS = st.lists(
    st.tuples(
        st.integers(1, 99), st.integers(0, 5), st.text(), st.sampled_from([0, 0, 3]), st.booleans()
    ),
    max_size=30,
)


@settings(deadline=None, max_examples=50)
@given(ROWS, st.floats(0, 0.5), st.floats(0.5, 1), st.floats(0, 0.9), st.none() | st.integers(1, 4))
def test_rows_are_chosen_as_their_documents_would_be(tokenizer, rows, low, high, share, most):
    rows = [(*row[:4], row[4] or not row[3]) for row in rows]
    selection = Selection((low, high) if low < high else (0.0, 1.0), share)
    spec = make_spec(tokenizer, 60, 3, "qwen2_5")
    found = choose(made_up(rows), spec, selection, most)
    for row, (ids, images, uid, reason, key) in enumerate(rows):
        split = selection.split(uid) if key else "train"
        names = {OUTSIDE: None, 0: "train", 1: "validation"}
        assert names[int(found.split[row])] == split
        length = ids + images * 8
        assert found.lengths[row] == length
        expected = reason or (
            reason_code("too_many_images") if most is not None and images > most else 0
        )
        if not reason and length > 60:
            expected = reason_code("too_long")
        assert found.reason[row] == expected


DOCUMENTS = st.lists(
    st.lists(st.tuples(st.integers(1, 50), st.booleans()), max_size=30), min_size=1, max_size=8
)


@settings(deadline=None, max_examples=50)
@given(DOCUMENTS, st.integers(1, 60), st.integers(1, 5))
def test_windows_planned_apart_are_the_plan_of_the_whole(shards, window, packs_per_shard):
    lengths = [np.array([d[0] for d in shard], np.int32) for shard in shards]
    kept = [np.array([d[1] for d in shard], bool) for shard in shards]
    images = [np.ones(len(shard), np.int32) for shard in shards]
    keys = {"window": window, "packs_per_shard": packs_per_shard, "packer": "auto"}
    choices = [
        Choice(None, n, i, i, i, np.zeros(len(n), np.int8), np.where(k, 0, 1).astype(np.int8))
        for n, i, k in zip(lengths, images, kept, strict=True)
    ]
    found = plan_windows(choices, "train", Limits(50), map_inline, **keys)
    expected = plan_packs(lengths, images, kept, Limits(50), **keys)
    layouts = [layout for each in found for layout in each.layouts]
    assert [layout.first for layout in layouts] == [shard.first for shard in expected.shards]
    for layout, shard in zip(layouts, expected.shards, strict=True):
        pairs = list(zip(layout.files.tolist(), layout.rows.tolist(), strict=True))
        bounds = zip(layout.starts, layout.starts[1:], strict=False)
        assert [tuple(pairs[a:b]) for a, b in bounds] == list(shard.packs)


def test_packs_that_would_not_fit_are_refused_before_one_is_written(
    raw, tokenizer, tmp_path, monkeypatch
):
    usage = space.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda _: usage._replace(free=9000))
    with pytest.raises(UserError, match=r"need about \d+ KB and .*out has 9 KB free; free some"):
        pack(raw, tmp_path / "out", tokenizer)
    assert not list((tmp_path / "out").glob("packed-*"))


def test_the_space_that_packs_need_is_told_within_a_tenth(raw, tokenizer, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("openqwen2vl.packing.writer.check_space", lambda _, size: told.append(size))
    manifest = pack(raw, tmp_path / "out", tokenizer)
    written = sum(shard.bytes for shard in manifest.shards)
    assert written <= told[0] <= 1.2 * written


def test_interleaved_rules_are_followed_and_noted(tokenizer, tmp_path):
    parts = [{"type": "text", "text": "one"}, {"type": "image"}, {"type": "text", "text": "two"}]
    pages = {"a": parts, "b": [*parts, {"type": "image"}], "c": parts[:1]}
    files = {}
    for key, page in pages.items():
        files[f"{key}.json"] = json.dumps({"parts": page}).encode()
        for number in range(sum(part["type"] == "image" for part in page)):
            files[f"{key}.{number}.jpg"] = JPEG
    write_tar(tmp_path / "raw" / "0.tar", files)
    rules = InterleavedRules(min_images=0, max_images=2, trailing_images="reject")
    manifest = pack(tmp_path / "raw", tmp_path / "out", tokenizer, rules=rules)
    assert manifest.rejects == {"trailing_images": 1}
    assert PackFolder(tmp_path / "out").manifest.interleaved == rules
