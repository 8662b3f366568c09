import json
import random
import tarfile
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.packs import contents, documents_of, ledger, pack
from support.shards import (
    picture,
    write_caption_shard,
    write_mixed_corpus,
)

from openqwen2vl.engine.local import map_shards
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.packing import shards as packed_shards
from openqwen2vl.packing.plan import Selection, uid_fraction
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

JPEG = picture(random.Random(0))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_mixed_corpus(tmp_path_factory.mktemp("raw"))


def keys(items):
    return sorted((d["shard"], d["key"]) for d in items)


def test_every_document_is_in_exactly_one_pack(raw, tokenizer, tmp_path):
    manifest = pack(raw, tmp_path, tokenizer)
    found = documents_of(tmp_path)
    expected = [d for path in raw_shards(raw) for d in read_raw_shard(path, "tiny")]
    assert keys(found) == sorted((d.shard, d.key) for d in expected)
    assert {d["uid"] for d in found} == {d.uid for d in expected}
    assert manifest.counts.documents == len(expected) == 150
    assert manifest.counts.images == sum(len(d.images) for d in expected)
    assert ledger(tmp_path) == []


def test_the_manifest_counts_what_the_packs_hold(raw, tokenizer, tmp_path):
    manifest = pack(raw, tmp_path, tokenizer)
    packs = PackFolder(tmp_path)
    assert manifest.counts.packs == len(packs) >= manifest.lower_bound
    assert manifest.counts.tokens == packs.tokens.sum()
    assert manifest.counts.targets == packs.targets.sum()
    assert manifest.fill == pytest.approx(packs.tokens.mean() / 256)
    assert manifest.max_documents == packs.documents.max()
    assert manifest.max_images == packs.images.max()
    assert (packs.tokens <= 256).all()


def test_images_keep_their_bytes_and_their_document(raw, tokenizer, tmp_path):
    pack(raw, tmp_path, tokenizer)
    originals = {}
    for path in raw_shards(raw):
        data = path.read_bytes()
        for document in read_raw_shard(path, "tiny"):
            originals[document.uid] = [data[i.offset : i.offset + i.size] for i in document.images]
    packs = PackFolder(tmp_path)
    for number in range(len(packs)):
        pack_read = packs.read(number)
        images = iter(pack_read.images)
        for document in pack_read.documents:
            mine = [next(images) for _ in range(document["images"])]
            assert mine == originals[document["uid"]]
            ids = pack_read.ids[document["start"] : document["start"] + document["length"]]
            assert (ids == packs.manifest.spec.special.image).sum() == document["images"]


def test_the_targets_of_a_caption_decode_to_it(tokenizer, tmp_path):
    texts = ["a cat", "naïve <image> 東京 <|im_end|>", " spaces  kept \n", "x" * 60]
    write_caption_shard(tmp_path / "raw" / "00000.tar", 4, captions=texts)
    pack(tmp_path / "raw", tmp_path / "out", tokenizer)
    packs = PackFolder(tmp_path / "out")
    found = set()
    for number in range(len(packs)):
        one = packs.read(number)
        for start, stop in one.targets:
            found.add(tokenizer.decode(one.ids[start:stop], clean_up_tokenization_spaces=False))
    assert found == {f"\n{text}<|im_end|>" for text in texts}


@settings(
    max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(st.integers(1, 12), min_size=1, max_size=4),
    st.sampled_from([(64, 2), (200, 4), (512, 6)]),
    st.integers(1, 40),
    st.integers(1, 7),
)
def test_packs_lose_and_double_nothing_whatever_the_sizes(
    tokenizer, tmp_path_factory, sizes, spec, window, packs_per_shard
):
    folder = tmp_path_factory.mktemp("case")
    for number, size in enumerate(sizes):
        write_caption_shard(folder / "raw" / f"{number:05d}.tar", size, seed=number)
    context, grid = spec
    manifest = pack(
        folder / "raw",
        folder / "out",
        tokenizer,
        context=context,
        grid=grid,
        window=window,
        packs_per_shard=packs_per_shard,
    )
    rejects = ledger(folder / "out")
    assert {r["reason"] for r in rejects} <= {"too_long"}
    assert manifest.rejects.get("too_long", 0) == len(rejects)
    every = [(f"{s:05d}", f"{s:05d}{k:04d}") for s, n in enumerate(sizes) for k in range(n)]
    assert sorted(keys(documents_of(folder / "out")) + keys(rejects)) == sorted(every)
    assert all(shard.packs <= packs_per_shard for shard in manifest.shards)


def test_complementary_parts_partition_the_corpus_at_any_grid(raw, tokenizer, tmp_path):
    cut = 0.6
    first = Selection((0.0, cut), 0.2)
    second = Selection((cut, 1.0), 0.2)
    a = pack(raw, tmp_path / "a", tokenizer, grid=4, selection=first)
    b = pack(raw, tmp_path / "b", tokenizer, grid=6, context=512, selection=second)
    ours, theirs = documents_of(tmp_path / "a"), documents_of(tmp_path / "b")
    held_out = documents_of(tmp_path / "a" / "validation")
    assert keys(held_out) == keys(documents_of(tmp_path / "b" / "validation"))
    assert len(keys(ours) + keys(theirs) + keys(held_out)) == 150
    assert len(set(keys(ours) + keys(theirs) + keys(held_out))) == 150
    assert a.outside_part == len(theirs)
    assert b.outside_part == len(ours)
    assert {d["uid"] for d in held_out} == {
        d["uid"] for d in ours + theirs + held_out if uid_fraction(d["uid"], "validation") < 0.2
    }
    hashes = PackFolder(tmp_path / "a").uid_hashes()
    assert len(hashes) == len(ours)
    assert not set(hashes) & set(PackFolder(tmp_path / "b").uid_hashes())


def test_a_second_run_gives_the_same_bytes(raw, tokenizer, tmp_path):
    options = {"selection": Selection((0.0, 0.9), 0.2), "window": 40, "packs_per_shard": 4}
    pack(raw, tmp_path / "a", tokenizer, **options)
    pack(raw, tmp_path / "b", tokenizer, **options)
    first = contents(tmp_path / "a")
    assert first == contents(tmp_path / "b")
    assert sum(name.endswith(".tar") for name in first) > 3
    assert {"validation/manifest.json", "validation/uids.npy", "rejects.parquet"} <= set(first)


@pytest.mark.slow
def test_two_workers_give_the_bytes_of_one(raw, tokenizer, tmp_path):
    for workers in (1, 2):
        request = PackRequest(
            input=raw,
            out=tmp_path / str(workers),
            source="tiny",
            spec=make_spec(tokenizer, 256, 4, "qwen2_5"),
            window=60,
            packs_per_shard=5,
        )
        pack_folder(request, tokenizer, partial(map_shards, workers=workers))
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


def test_plain_webdataset_and_tarfile_read_the_shards(raw, tokenizer, tmp_path):
    manifest = pack(raw, tmp_path, tokenizer, packs_per_shard=6)
    packs = PackFolder(tmp_path)
    urls = [str(tmp_path / shard.name) for shard in manifest.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False, empty_check=False))
    assert len(samples) == len(packs)
    for number, sample in enumerate(samples):
        assert sample["__key__"] == f"{number:09d}"
        ours = packs.read(number)
        assert json.loads(sample["json"])["ids"] == ours.ids.tolist()
        assert [sample[f"{i}.jpg"] for i in range(len(ours.images))] == ours.images
    with tarfile.open(urls[0]) as tar:
        assert {(m.mtime, m.uid, m.gid, m.mode) for m in tar} == {(0, 0, 0, 0o644)}


def test_a_llava_listing_is_packed_like_shards(tokenizer, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "a.jpg").write_bytes(JPEG)
    talk = [{"from": "human", "value": "<image>\nHi"}, {"from": "gpt", "value": "Hello"}]
    entries = [{"id": "a", "image": "a.jpg", "conversations": talk}] * 3
    (tmp_path / "data.json").write_text(json.dumps(entries))
    root = tmp_path / "images"
    manifest = pack(tmp_path / "data.json", tmp_path / "out", tokenizer, image_root=root)
    assert (manifest.counts.documents, manifest.counts.images) == (3, 3)
    assert PackFolder(tmp_path / "out").read(0).images == [JPEG] * 3


def test_image_files_stay_open_within_a_bound(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_shards.ImageBytes, "_MOST_OPEN", 2)
    pictures = packed_shards.ImageBytes()
    for number in range(6):
        path = tmp_path / f"{number}.bin"
        path.write_bytes(bytes([number]) * 4)
        ref = packed_shards.ImageRef(str(path), 1, 2, "bin")
        assert pictures.read(ref) == bytes([number]) * 2
        assert len(pictures._open) <= 2
    pictures.close()


def test_the_index_is_a_table_that_others_can_read(raw, tokenizer, tmp_path):
    pack(raw, tmp_path, tokenizer, packs_per_shard=4)
    for row in pq.read_table(tmp_path / "index.parquet").to_pylist():
        data = (tmp_path / row["shard"]).read_bytes()
        text = data[row["json_offset"] : row["json_offset"] + row["json_size"]]
        assert len(json.loads(text)["documents"]) == row["documents"]
        for offset, size in zip(row["image_offsets"], row["image_sizes"], strict=True):
            assert data[offset : offset + 2] == b"\xff\xd8"
            assert data[offset + size - 2 : offset + size] == b"\xff\xd9"
    uids = np.load(tmp_path / "uids.npy")
    assert uids.dtype == np.uint64
    assert (np.diff(uids.astype(object)) > 0).all()
