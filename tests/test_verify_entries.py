import mmap
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.shards import write_caption_shard, write_tar

from openqwen2vl.formats.corpora import read_shard
from openqwen2vl.formats.documents import Document
from openqwen2vl.formats.tar import header
from openqwen2vl.packing.proof.census import sizes_marks
from openqwen2vl.packing.proof.entries import list_plain, list_shard, num_turns

ENDINGS = st.sampled_from(["jpg", "txt", "json", "0.png", "1.JPG", "x", "10.webp", "json", "mp3"])
JSONS = st.sampled_from(
    [
        b'{"uid": "u"}',
        b'{"uid": 7}',
        b'{"uid": "\\ud800"}',
        b'{"uid": "\\u00e9"}',
        b"{",
        b"[]",
        b'{"a": [{}',
        b"{}]}",
        b'{"texts": ["a", null], "uid": "v"}',
        b'{"uid": "s", "messages": [{"role": "system"}, {"role": "user", "content": "x"}]}',
        b'{"conversations": [{"from": "human", "value": "?"}, {"from": "gpt", "value": "!"}]}',
        b'{"conversations": [{"from": "system", "value": "."}, {"from": "gpt", "value": "!"}]}',
        b'{"conversations": "x", "uid": ""}',
        b'{"uid": true, "uid": "last"}',
        b'{}]},"~|~",{}',
        b'{"a": "~|~"}',
        b"{},{}",
        b"",
    ]
)
NAMES = st.tuples(st.sampled_from(["a", "b", "__c", "", "d/e", "0" * 90]), ENDINGS, JSONS)


@given(
    files=st.lists(NAMES, max_size=12), cut=st.integers(0, 3000) | st.none(), alike=st.booleans()
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_the_fast_reader_finds_what_the_packers_reader_finds(
    tmp_path: Path, files: list[tuple[str, str, bytes]], cut: int | None, alike: bool
) -> None:
    path = tmp_path / "raw.tar"
    if alike:
        files = [(f"{i}", end, raw) for i in range(3) for _, end, raw in files[:3]]
    write_files(path, files, cut)
    expected = list(read_shard(path, ""))
    found = list_shard(path)
    assert found.keys == [item.key for item in expected]
    assert found.uids == [item.uid for item in expected]
    assert found.offsets is not None
    starts = np.cumsum([0, *found.counts]).tolist()
    images = list(zip(found.offsets.tolist(), found.sizes.tolist(), strict=True))
    for place, item in enumerate(expected):
        if isinstance(item, Document):
            mine = images[starts[place] : starts[place + 1]]
            assert mine == [(image.offset, image.size) for image in item.images]
            assert found.turns[place] == num_turns(item)


def write_files(path: Path, files: list[tuple[str, str, bytes]], cut: int | None) -> None:
    with path.open("wb") as tar:
        for stem, ending, raw in files:
            content = raw if ending == "json" else b"p" * len(raw)
            tar.write(header(f"{stem}.{ending}", len(content)) + content)
            tar.write(bytes(-len(content) % 512))
        tar.write(bytes(1024))
    if cut is not None:
        path.write_bytes(path.read_bytes()[:cut])


def test_plain_shards_take_the_fast_reader_and_others_do_not(tmp_path: Path) -> None:
    write_caption_shard(tmp_path / "plain.tar", 3)
    write_tar(tmp_path / "deep.tar", {"a/b.jpg": b"x", "a/b.txt": b"y"})
    for name, fast in (("plain.tar", True), ("deep.tar", False)):
        with (
            (tmp_path / name).open("rb") as file,
            mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            assert (list_plain(data, tmp_path / name) is not None) == fast


@given(st.lists(JSONS, min_size=1, max_size=6).map(lambda raws: raws * 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_samples_that_are_parsed_together_are_what_each_is_alone(
    tmp_path: Path, raws: list[bytes]
) -> None:
    path = tmp_path / "raw.tar"
    write_files(path, [(f"{i}", "json", raw) for i, raw in enumerate(raws)], None)
    expected = [(item.key, item.uid) for item in read_shard(path, "")]
    found = list_shard(path)
    assert list(zip(found.keys, found.uids, strict=True)) == expected


def test_a_size_below_nothing_is_damage(tmp_path: Path) -> None:
    block = bytearray(header("a.txt", 0))
    block[124:136] = b"-0000001000\0"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    (tmp_path / "raw.tar").write_bytes(bytes(block) + bytes(1024))
    assert list_shard(tmp_path / "raw.tar").keys == [""]


@given(st.lists(st.lists(st.integers(1, 2**33), max_size=3), max_size=8))
def test_marks_of_sizes_tell_lists_apart(lists: list[list[int]]) -> None:
    counts = np.array([len(sizes) for sizes in lists], np.int64)
    marks = sizes_marks(counts, np.array([size for sizes in lists for size in sizes], np.int64))
    told = {(tuple(sizes), mark) for sizes, mark in zip(lists, marks.tolist(), strict=True)}
    assert len(told) == len({sizes for sizes, _ in told}) == len({mark for _, mark in told})
    assert all((mark == 0) == (not sizes) for sizes, mark in told)


@pytest.mark.parametrize(
    "raws",
    [
        [b'{"a": [{}', b"{}]}", b'{"uid": "x"},{}'],
        # As the one above, by one who knows what parts the samples.
        [b'{"a":[{}', b'{}]},"~|~",{}', b"{}"],
    ],
)
def test_broken_samples_that_add_up_to_whole_ones_stay_broken(
    tmp_path: Path, raws: list[bytes]
) -> None:
    whole = [b'{"uid": "u"}', *raws]
    write_files(tmp_path / "s.tar", [(f"{i}", "json", raw) for i, raw in enumerate(whole)], None)
    expected = [item.uid for item in read_shard(tmp_path / "s.tar", "")]
    assert list_shard(tmp_path / "s.tar").uids == expected
