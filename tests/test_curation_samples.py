import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.shards import picture, write_caption_shard, write_conversation_shard, write_tar

from openqwen2vl.curation.samples import Sample, read_samples
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.errors import ShardError
from openqwen2vl.formats.raw import read_raw_shard
from openqwen2vl.formats.rejects import Reject

JPEG = picture(random.Random(0))


def read_files(folder, files):
    write_tar(folder / "00007.tar", files)
    return list(read_samples(folder / "00007.tar", "src"))


def test_a_pair_is_read_with_its_caption_its_bytes_and_what_its_json_says(tmp_path):
    fields = {"uid": "u1", "original_width": 640, "caption": "not this one"}
    files = {"k.jpg": JPEG, "k.txt": b" a cat\n", "k.json": json.dumps(fields).encode()}
    (sample,) = read_files(tmp_path, files)
    assert (sample.source, sample.shard, sample.key, sample.uid) == ("src", "00007", "k", "u1")
    assert sample.caption == " a cat\n"
    assert sample.fields == fields
    assert sample.read() == JPEG
    assert sample.image.extension == "jpg"


def test_a_pair_without_json_has_no_fields_and_a_uid_all_the_same(tmp_path):
    (sample,) = read_files(tmp_path, {"a/k.webp": JPEG, "a/k.txt": b"a cat"})
    assert (sample.uid, sample.fields) == ("00007/a/k", {})


def test_a_page_of_text_is_a_pair(tmp_path):
    truth = json.dumps({"gt_parse": {"text_sequence": "once upon"}})
    fields = json.dumps({"ground_truth": truth}).encode()
    (sample,) = read_files(tmp_path, {"k.jpg": JPEG, "k.json": fields})
    assert sample.caption == "once upon"


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"k.jpg": JPEG}, "missing_text"),
        ({"k.txt": b"a cat"}, "missing_image"),
        ({"k.jpg": b"", "k.txt": b"a cat"}, "missing_image"),
        ({"k.jpg": JPEG, "k.txt": b" \n"}, "empty_caption"),
        ({"k.jpg": JPEG, "k.txt": b"\xff\xfe"}, "bad_text"),
        ({"k.jpg": JPEG, "k.txt": b"a cat", "k.json": b"{"}, "bad_json"),
        ({"k.jpg": JPEG, "k.txt": b"a cat", "k.json": b"[]"}, "bad_json"),
        ({"k.jpg": JPEG, "k.png": JPEG, "k.txt": b"a cat"}, "image_count"),
    ],
)
def test_half_a_pair_is_a_reject(tmp_path, files, reason):
    (reject,) = read_files(tmp_path, files)
    assert isinstance(reject, Reject)
    assert (reject.key, reject.reason) == ("k", reason)


def test_what_is_no_pair_is_a_reject_that_says_what_it_is(tmp_path):
    parts = json.dumps({"texts": ["one", None, "two"], "images": [None, "k.0.jpg", None]}).encode()
    items = read_files(tmp_path, {"k.0.jpg": JPEG, "k.json": parts})
    write_conversation_shard(tmp_path / "talk.tar", 1, max_images=0)
    items += read_samples(tmp_path / "talk.tar", "src")
    assert {item.reason for item in items} == {"missing_text"}
    assert "interleaved document" in items[0].detail
    assert "conversation" in items[1].detail


def test_only_the_first_of_a_key_is_a_sample(tmp_path):
    files = {"a.jpg": JPEG, "a.txt": b"one", "b.jpg": JPEG, "b.txt": b"two"}
    write_tar(tmp_path / "00007.tar", files)
    whole = (tmp_path / "00007.tar").read_bytes()[:-1024]
    (tmp_path / "00007.tar").write_bytes(whole + (tmp_path / "00007.tar").read_bytes())
    items = list(read_samples(tmp_path / "00007.tar", "src"))
    assert [item.caption for item in items if isinstance(item, Sample)] == ["one", "two"]
    assert [item.reason for item in items if isinstance(item, Reject)] == ["duplicate_key"] * 2


@settings(max_examples=25, deadline=None)
@given(keep=st.floats(0, 1))
def test_a_shard_that_breaks_off_gives_its_whole_samples_and_one_reject(tmp_path_factory, keep):
    path = tmp_path_factory.mktemp("cut") / "00000.tar"
    write_caption_shard(path, 6)
    whole = list(read_samples(path, "src"))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * (len(data) - 1024))])
    *samples, last = read_samples(path, "src")
    assert (last.reason, last.key) == ("truncated_shard", "")
    # A sample whose last file is lost is either part of the rest or a half of its own.
    found = [item for item in samples if isinstance(item, Sample)]
    assert [s.key for s in found] == [s.key for s in whole[: len(found)]]
    assert all(s.read() == w.read() for s, w in zip(found, whole, strict=False))


def test_samples_are_the_captions_among_the_documents_in_their_order(tmp_path):
    path = tmp_path / "00000.tar"
    write_caption_shard(path, 9)
    documents = [d for d in read_raw_shard(path, "src") if isinstance(d, Document)]
    samples = list(read_samples(path, "src"))
    assert [(s.key, s.uid, s.caption, s.image) for s in samples] == [
        (d.key, d.uid, d.turns[0].text, d.images[0]) for d in documents
    ]


def test_a_shard_that_is_missing_or_goes_away_is_named(tmp_path):
    path = tmp_path / "00000.tar"
    with pytest.raises(ShardError, match=r"00000\.tar is missing"):
        list(read_samples(path, "src"))
    write_caption_shard(path, 2)
    sample = list(read_samples(path, "src"))[1]
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ShardError, match="was cut"):
        sample.read()
    path.unlink()
    with pytest.raises(ShardError, match="went away"):
        sample.read()
