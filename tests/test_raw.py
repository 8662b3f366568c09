import json
import random

import pytest
from support.shards import picture, write_caption_shard, write_conversation_shard, write_tar

from openqwen2vl.formats.documents import IMAGE, Document
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.rejects import REASONS, Reject
from openqwen2vl.formats.tar import END, header, padded

JPEG = picture(random.Random(0))
ANSWERED = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]


def read(path):
    return list(read_raw_shard(path, "src"))


def read_files(tmp_path, files):
    write_tar(tmp_path / "00007.tar", files)
    return read(tmp_path / "00007.tar")


def verdicts(items):
    return {item.key: item.reason for item in items if isinstance(item, Reject)}


def test_a_caption_shard_gives_a_document_for_each_pair(tmp_path):
    path = tmp_path / "00000.tar"
    write_caption_shard(path, 5, captions=[f"caption {i}" for i in range(5)])
    documents = read(path)
    assert [d.turns[0].text for d in documents] == [f"caption {i}" for i in range(5)]
    assert all(len(d.uid) == 32 and d.source == "src" and d.shard == "00000" for d in documents)
    (image,) = documents[2].images
    data = path.read_bytes()[image.offset : image.offset + image.size]
    assert data[:2] == b"\xff\xd8"
    assert data[-2:] == b"\xff\xd9"


def test_a_pair_without_json_is_named_by_shard_and_key(tmp_path):
    (document,) = read_files(tmp_path, {"0001.png": JPEG, "0001.txt": b"a cat"})
    assert document.uid == "00007/0001"
    assert document.images[0].extension == "png"


def test_conversations_keep_the_order_of_their_numbered_images(tmp_path):
    turns = [{"from": "human", "value": "<image>" * 11}, ANSWERED[1]]
    files = {f"k.{i}.jpg": JPEG + bytes([i]) for i in (10, 2, 0, 1, 3, 4, 5, 6, 7, 8, 9)}
    files["k.json"] = json.dumps({"conversations": turns}).encode()
    (document,) = read_files(tmp_path, files)
    tar = (tmp_path / "00007.tar").read_bytes()
    assert [tar[i.offset + i.size - 1] for i in document.images] == list(range(11))


def test_a_conversation_shard_is_read(tmp_path):
    path = tmp_path / "c.tar"
    write_conversation_shard(path, 20, max_images=3)
    documents = read(path)
    assert all(isinstance(d, Document) for d in documents)
    assert {len(d.images) for d in documents} == {0, 1, 2, 3}


def test_files_of_one_sample_need_not_stand_together(tmp_path):
    files = {"a.jpg": JPEG, "b.jpg": JPEG, "a.txt": b"one", "b.txt": b"two"}
    assert [d.turns[0].text for d in read_files(tmp_path, files)] == ["one", "two"]


def test_each_bad_sample_is_rejected_for_its_reason_and_the_rest_is_read(tmp_path):
    files = {
        "good.jpg": JPEG,
        "good.txt": b"fine",
        "a.jpg": JPEG,
        "a.txt": b" \n",
        "b.txt": b"no picture",
        "c.jpg": JPEG,
        "d.jpg": JPEG,
        "d.txt": b"\xff\xfe",
        "e.jpg": JPEG,
        "e.txt": b"x",
        "e.json": b"{broken",
        "f.jpg": JPEG,
        "f.txt": b"x",
        "f.json": b"[1]",
        "g.jpg": b"",
        "g.txt": b"x",
        "h.json": json.dumps({"conversations": ANSWERED}).encode(),
        "i.json": json.dumps({"conversations": ANSWERED[:1]}).encode(),
        "i.jpg": JPEG,
        "j.0.jpg": JPEG,
        "j.1.jpg": JPEG,
        "j.txt": b"two pictures",
        "k.json": json.dumps({"conversations": 5}).encode(),
        "notes.md": b"not a sample",
        "__meta__.json": b"{}",
    }
    items = read_files(tmp_path, files)
    assert [i.key for i in items if isinstance(i, Document)] == ["good"]
    assert verdicts(items) == {
        "a": "empty_caption",
        "b": "missing_image",
        "c": "missing_text",
        "d": "bad_text",
        "e": "bad_json",
        "f": "bad_json",
        "g": "missing_image",
        "h": "image_count",
        "i": "no_answer",
        "j": "image_count",
        "k": "bad_conversation",
    }
    assert set(verdicts(items).values()) <= set(REASONS)


def test_the_image_word_in_a_caption_is_text(tmp_path):
    (document,) = read_files(tmp_path, {"a.jpg": JPEG, "a.txt": b"an <image> of <|im_end|>"})
    assert document.turns[0].parts == (IMAGE, "an <image> of <|im_end|>")


def test_a_truncated_shard_gives_what_is_whole_and_says_what_is_lost(tmp_path):
    path = tmp_path / "t.tar"
    write_caption_shard(path, 6)
    whole = read(path)
    cut = whole[4].images[0].offset + 100
    path.write_bytes(path.read_bytes()[:cut])
    *documents, rest = read(path)
    assert [d.uid for d in documents] == [d.uid for d in whole[:4]]
    assert (rest.reason, rest.key, rest.uid) == ("truncated_shard", "", "t")
    assert "t.tar ends at byte" in rest.detail
    assert "4 documents before that are whole" in rest.detail


def test_a_sample_that_the_cut_goes_through_is_part_of_what_is_lost(tmp_path):
    path = tmp_path / "t.tar"
    write_tar(path, {"a.jpg": JPEG, "a.txt": b"whole", "b.jpg": JPEG, "b.txt": b"y" * 600})
    path.write_bytes(path.read_bytes()[: -1024 - 600])
    first, rest = read(path)
    assert first.key == "a"
    assert rest.reason == "truncated_shard"


@pytest.mark.parametrize("content", [b"", b"\x1f\x8b not a tar" * 100])
def test_an_empty_file_or_another_format_is_one_reject(tmp_path, content):
    (tmp_path / "x.tar").write_bytes(content)
    (rest,) = read(tmp_path / "x.tar")
    assert rest.reason == "truncated_shard"


def test_a_missing_shard_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"raw shard .*gone\.tar is missing"):
        read(tmp_path / "gone.tar")


def test_a_missing_or_empty_folder_is_named(tmp_path):
    with pytest.raises(ShardError, match=r"no folder .*gone"):
        raw_shards(tmp_path / "gone")
    with pytest.raises(ShardError, match=r"holds no \.tar"):
        raw_shards(tmp_path)


def test_shards_come_by_name(tmp_path):
    for name in ("b", "a", "c"):
        (tmp_path / f"{name}.tar").touch()
    assert [path.stem for path in raw_shards(tmp_path)] == ["a", "b", "c"]


def write_members(path, members):
    """Write a tar in which a name may come more than once."""
    with path.open("wb") as tar:
        for name, content in members:
            tar.write(header(name, len(content)))
            tar.write(content.ljust(padded(len(content)), b"\0"))
        tar.write(END)


def test_a_second_sample_of_a_key_is_rejected_under_a_uid_of_its_own(tmp_path):
    sample = [("a.jpg", JPEG), ("a.txt", b"one")]
    other = [("b.jpg", JPEG), ("b.txt", b"two")]
    write_members(tmp_path / "d.tar", [*sample, *other, *sample, ("a.txt", b"three")])
    first, between, second, third = read(tmp_path / "d.tar")
    assert [d.turns[0].text for d in (first, between)] == ["one", "two"]
    assert (second.reason, second.key, second.uid) == ("duplicate_key", "a", "d/a#2")
    assert (third.reason, third.key, third.uid) == ("duplicate_key", "a", "d/a#3")
    assert second.detail == "sample 2 of the key a in d.tar"


def test_a_uid_that_the_second_sample_shares_stays_with_the_first(tmp_path):
    sample = [("a.jpg", JPEG), ("a.txt", b"one"), ("a.json", b'{"uid": "mine"}')]
    write_members(tmp_path / "d.tar", [*sample, *sample])
    first, second = read(tmp_path / "d.tar")
    assert first.uid == "mine"
    assert second.uid == "d/a#2"


def test_files_of_other_kinds_do_not_part_a_sample(tmp_path):
    others = [("a.npy", b"x"), ("a.npy", b"x")]
    write_members(tmp_path / "d.tar", [*others, ("a.jpg", JPEG), *others, ("a.txt", b"fine")])
    (document,) = read(tmp_path / "d.tar")
    assert document.turns[0].text == "fine"


@pytest.mark.parametrize("ending", ["JPG", "Jpeg", "PNG", "WebP"])
def test_endings_may_be_written_in_capitals(tmp_path, ending):
    files = {f"a.{ending}": JPEG, "a.TXT": b"a cat", "a.Json": b'{"uid": "mine"}'}
    (document,) = read_files(tmp_path, files)
    assert (document.uid, document.turns[0].text) == ("mine", "a cat")
    assert document.images[0].extension == ending.lower()


def test_images_and_captions_that_lack_each_other_are_told_apart(tmp_path):
    items = read_files(tmp_path, {"a.jpg": JPEG, "b.txt": b"words", "c.json": b"{}"})
    assert [(i.key, i.reason, i.detail) for i in items] == [
        ("a", "missing_text", "a has no .txt and no .json with a document"),
        ("b", "missing_image", "b.txt is a caption without an image"),
        ("c", "missing_text", "c has no .txt and no .json with a document"),
    ]
