import json
from dataclasses import replace

import pytest

from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.formats.manifest import Counts, Manifest, PackSpec, ShardEntry
from openqwen2vl.formats.templates import Encoded
from openqwen2vl.formats.tokens import SpecialTokens

SPEC = PackSpec(
    context=4096,
    grid=12,
    tokenizer_hash="0" * 16,
    vocab_size=500,
    template="qwen2_5",
    template_hash="1" * 16,
    special=SpecialTokens(bos=1, eos=2, pad=0, image=3, im_start=4, im_end=2),
)
MANIFEST = Manifest(
    spec=SPEC,
    source="ccs",
    part=(0.0, 0.9),
    validation=0.01,
    split="train",
    counts=Counts(packs=2, documents=40, images=40, tokens=8000, targets=1500),
    fill=8000 / 8192,
    lower_bound=2,
    rejects={"too_long": 1},
    outside_part=4,
    shards=(ShardEntry(name="packed-000000.tar", packs=2, bytes=10_240, sha256="ab"),),
    max_documents=21,
    max_images=21,
)


def test_a_manifest_comes_back_as_it_was(tmp_path):
    MANIFEST.save(tmp_path)
    loaded = Manifest.load(tmp_path)
    assert loaded == MANIFEST
    assert loaded.hash() == MANIFEST.hash()


def test_the_hash_changes_with_the_content():
    assert replace(MANIFEST, fill=0.5).hash() != MANIFEST.hash()


def test_an_image_counts_as_its_grid_squared():
    assert SPEC.tokens_per_image == 144
    assert SPEC.length(Encoded([1, 3, 9, 3, 2], [(2, 3)], 2)) == 3 + 2 * 144


def test_another_format_version_is_told_with_both_numbers(tmp_path):
    MANIFEST.save(tmp_path)
    fields = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**fields, "format_version": 2}))
    with pytest.raises(PackError, match="format_version 2, this program reads 1"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("content", ["{", "[]", '{"format_version": 1}'])
def test_a_damaged_manifest_is_told(tmp_path, content):
    (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(PackError, match=r"manifest\.json"):
        Manifest.load(tmp_path)


def test_a_folder_without_manifest_is_unfinished(tmp_path):
    with pytest.raises(ShardError, match="packing has not finished there"):
        Manifest.load(tmp_path)


@pytest.mark.parametrize("change", [{"context": 0}, {"grid": 0}, {"context": 144}])
def test_an_impossible_spec_is_refused(change):
    with pytest.raises(PackError):
        replace(SPEC, **change)
