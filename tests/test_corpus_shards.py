import hashlib
import json
import tarfile

from openqwen2vl.corpus.shards import Sample, write_raw_shard

SAMPLES = [
    Sample("u0", b"picture 0", 84, 90, "a caption"),
    Sample("u1", b"picture 1", 85, 91, None, {"conversations": [{"from": "human", "value": "?"}]}),
]


def contents(path):
    with tarfile.open(path) as tar:
        return {member.name: tar.extractfile(member).read() for member in tar}


def test_a_shard_has_img2datasets_layout(tmp_path):
    assert write_raw_shard(tmp_path / "00003.tar", SAMPLES) == 2
    files = contents(tmp_path / "00003.tar")
    assert list(files) == [
        "000030000.jpg",
        "000030000.txt",
        "000030000.json",
        "000030001.jpg",
        "000030001.json",
    ]
    assert files["000030000.txt"] == b"a caption"
    record = json.loads(files["000030000.json"])
    assert record["uid"] == "u0"
    assert record["caption"] == "a caption"
    assert (record["width"], record["original_height"]) == (84, 90)
    assert record["sha256"] == hashlib.sha256(b"picture 0").hexdigest()


def test_extra_fields_stand_in_the_json_and_a_conversation_has_no_caption(tmp_path):
    write_raw_shard(tmp_path / "00000.tar", SAMPLES)
    record = json.loads(contents(tmp_path / "00000.tar")["000000001.json"])
    assert record["conversations"] == [{"from": "human", "value": "?"}]
    assert "caption" not in record


def test_writing_again_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        write_raw_shard(tmp_path / name / "00000.tar", SAMPLES)
    assert (tmp_path / "a/00000.tar").read_bytes() == (tmp_path / "b/00000.tar").read_bytes()
