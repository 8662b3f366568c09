import os
import pickle

import numpy as np
import pytest
from support.packs import pack
from support.shards import tiny_tokenizer, write_caption_shard, write_conversation_shard

from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.packing import reader
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.reader import PackFolder


@pytest.fixture
def folder(tmp_path):
    write_caption_shard(tmp_path / "raw" / "00000.tar", 20)
    write_conversation_shard(tmp_path / "raw" / "00001.tar", 20, max_images=2)
    pack(tmp_path / "raw", tmp_path / "packs", tiny_tokenizer(tmp_path / "t"), packs_per_shard=3)
    return tmp_path / "packs"


def same(a, b):
    return (
        np.array_equal(a.ids, b.ids)
        and np.array_equal(a.targets, b.targets)
        and (a.documents, a.images) == (b.documents, b.images)
    )


def test_the_arrays_say_what_each_pack_holds(folder):
    packs = PackFolder(folder)
    spec = packs.manifest.spec
    for number in range(len(packs)):
        one = packs.read(number)
        marks = int((one.ids == spec.special.image).sum())
        assert marks == len(one.images) == packs.images[number]
        assert len(one.ids) + marks * (spec.tokens_per_image - 1) == packs.tokens[number]
        assert (one.targets[:, 1] - one.targets[:, 0]).sum() == packs.targets[number]
        assert len(one.documents) == packs.documents[number]
        assert one.ids.dtype == np.int64
        assert one.targets.shape[1] == 2


def test_a_pickled_folder_reads_the_same_packs(folder):
    packs = PackFolder(folder)
    first = packs.read(0)
    assert same(pickle.loads(pickle.dumps(packs)).read(0), first)


def test_a_forked_process_opens_files_of_its_own(folder):
    packs = PackFolder(folder)
    packs.read(0)
    mine = set(packs._files[1].values())
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        good = len(packs.read(0).ids) > 0 and not mine & set(packs._files[1].values())
        os.write(writing, b"1" if good else b"0")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(reading, 1) == b"1"
    assert set(packs._files[1].values()) == mine


def test_few_shards_stay_open_however_many_are_read(folder, monkeypatch):
    packs = PackFolder(folder)
    assert len(packs.manifest.shards) > 3
    monkeypatch.setattr(reader, "_LEAST_OPEN", 2)
    monkeypatch.setattr(reader.resource, "getrlimit", lambda _: (3 * reader._PART_OPEN, -1))
    before = len(os.listdir("/proc/self/fd"))
    first = [packs.read(number) for number in range(len(packs))]
    again = [packs.read(number) for number in reversed(range(len(packs)))]
    assert len(os.listdir("/proc/self/fd")) - before == 3
    assert all(same(a, b) for a, b in zip(first, reversed(again), strict=True))


def test_a_missing_shard_is_told_when_the_folder_is_opened(folder):
    (folder / "packed-000001.tar").unlink()
    with pytest.raises(ShardError, match=r"packed shard .*packed-000001\.tar is missing"):
        PackFolder(folder)


def test_a_shortened_shard_is_told_with_both_sizes(folder):
    path = folder / "packed-000001.tar"
    size = path.stat().st_size
    os.truncate(path, size - 1)
    with pytest.raises(ShardError, match=f"has {size - 1} bytes, the manifest says {size}"):
        PackFolder(folder)


def test_a_shard_that_shrinks_while_it_is_open_is_told(folder):
    packs = PackFolder(folder)
    os.truncate(folder / "packed-000000.tar", 600)
    with pytest.raises(ShardError, match="ends within pack 0"):
        packs.read(0)


def test_a_damaged_pack_is_told(folder):
    packs = PackFolder(folder)
    with (folder / "packed-000000.tar").open("r+b") as file:
        file.seek(512)
        file.write(b"\0\0")
    with pytest.raises(ShardError, match="is damaged in pack 0"):
        packs.read(0)


def test_an_index_of_another_run_is_told(folder, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "t")
    pack(tmp_path / "raw", tmp_path / "other", tokenizer, selection=Selection((0.0, 0.5)))
    (folder / "index.parquet").write_bytes((tmp_path / "other" / "index.parquet").read_bytes())
    with pytest.raises(ShardError, match=r"the index holds .* packs, the manifest"):
        PackFolder(folder)


@pytest.mark.parametrize("name", ["index.parquet", "uids.npy"])
def test_a_missing_or_damaged_side_file_is_told(folder, name):
    for content in (b"nonsense", None):
        (folder / name).unlink() if content is None else (folder / name).write_bytes(content)
        with pytest.raises((ShardError, PackError), match="run pack again"):
            PackFolder(folder).uid_hashes()


def test_a_pack_beyond_the_last_is_an_index_error(folder):
    packs = PackFolder(folder)
    for number in (-1, len(packs)):
        with pytest.raises(IndexError, match=f"pack {number} of {len(packs)}"):
            packs.read(number)


def test_an_empty_validation_split_has_no_packs(folder, tmp_path):
    tokenizer = tiny_tokenizer(tmp_path / "t")
    out = tmp_path / "held"
    pack(tmp_path / "raw", out, tokenizer, selection=Selection(validation=1e-9))
    packs = PackFolder(out / "validation")
    assert len(packs) == packs.manifest.counts.packs == 0
    assert len(packs.uid_hashes()) == 0
