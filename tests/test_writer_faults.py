"""What packing does when something is wrong: with the input, the disk, or the process."""

import io
import os
import random
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image
from support.packs import contents, documents_of, ledger, pack
from support.shards import (
    picture,
    write_caption_shard,
    write_mixed_corpus,
    write_tar,
)

from openqwen2vl.engine.local import map_inline
from openqwen2vl.formats.errors import PackError, ShardError, UserError
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.rejects import Reject
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.scan import scan_shard
from openqwen2vl.packing.shards import write_shards
from openqwen2vl.packing.writer import pack_folder

JPEG = picture(random.Random(0))


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    return write_mixed_corpus(tmp_path_factory.mktemp("raw"))


def test_documents_that_cannot_be_packed_are_in_the_ledger_with_their_reason(tokenizer, tmp_path):
    files = {
        "a.jpg": JPEG,
        "a.txt": b"fine",
        "b.jpg": JPEG,
        "b.txt": b"word " * 400,
        "c.jpg": JPEG,
        "c.txt": b"",
        "d.txt": b"no picture",
        "e.jpg": JPEG,
        "e.txt": b"one uid",
        "e.json": b'{"uid": "same"}',
        "f.jpg": JPEG,
        "f.txt": b"twice",
        "f.json": b'{"uid": "same"}',
    }
    write_tar(tmp_path / "raw" / "00000.tar", files)
    manifest = pack(tmp_path / "raw", tmp_path / "out", tokenizer)
    assert sorted(d["key"] for d in documents_of(tmp_path / "out")) == ["a", "e"]
    found = {r["key"]: r["reason"] for r in ledger(tmp_path / "out")}
    assert found == {
        "b": "too_long",
        "c": "empty_caption",
        "d": "missing_image",
        "f": "duplicate_uid",
    }
    assert manifest.rejects == {reason: 1 for reason in sorted(found.values())}
    (too_long,) = [r for r in ledger(tmp_path / "out") if r["reason"] == "too_long"]
    assert "tokens, the context holds 256" in too_long["detail"]
    assert too_long["source"] == "tiny"


def test_a_truncated_shard_costs_its_rest_only(raw, tokenizer, tmp_path):
    (tmp_path / "raw").mkdir()
    for path in raw_shards(raw)[:2]:
        (tmp_path / "raw" / path.name).write_bytes(path.read_bytes())
    broken = tmp_path / "raw" / "00000.tar"
    broken.write_bytes(broken.read_bytes()[:20_000])
    manifest = pack(tmp_path / "raw", tmp_path / "out", tokenizer)
    assert manifest.rejects == {"truncated_shard": 1}
    whole = [d for d in read_raw_shard(broken, "tiny") if not isinstance(d, Reject)]
    assert manifest.counts.documents == 30 + len(whole) > 30


def test_packs_that_are_there_are_not_overwritten_unless_asked(raw, tokenizer, tmp_path):
    pack(raw, tmp_path, tokenizer)
    before = contents(tmp_path)
    with pytest.raises(PackError, match="delete the folder or set overwrite=true"):
        pack(raw, tmp_path, tokenizer, grid=2)
    assert contents(tmp_path) == before
    assert pack(raw, tmp_path, tokenizer, grid=2, overwrite=True).spec.grid == 2
    assert PackFolder(tmp_path).manifest.spec.grid == 2


def test_packing_into_the_input_is_refused(raw, tokenizer):
    with pytest.raises(PackError, match="input and out are both"):
        pack(raw, raw, tokenizer)


def test_nothing_left_to_pack_says_why(raw, tokenizer, tmp_path):
    with pytest.raises(
        PackError, match=r"nothing of .* is left to pack: 150 rejected \(150 too_long"
    ):
        pack(raw, tmp_path, tokenizer, context=20)
    with pytest.raises(ShardError, match="packing has not finished"):
        PackFolder(tmp_path)


def test_a_missing_or_empty_input_is_named(tokenizer, tmp_path):
    with pytest.raises(ShardError, match=r"no folder .*gone"):
        pack(tmp_path / "gone", tmp_path / "out", tokenizer)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match=r"empty holds no \.tar"):
        pack(tmp_path / "empty", tmp_path / "out", tokenizer)
    assert not (tmp_path / "out").exists()


def test_a_raw_shard_that_changes_meanwhile_is_told(tokenizer, tmp_path):
    write_caption_shard(tmp_path / "raw" / "00000.tar", 5)

    def shrink(function, items):
        if function is write_shards:
            (tmp_path / "raw" / "00000.tar").write_bytes(b"")
        return map_inline(function, items)

    request = PackRequest(
        input=tmp_path / "raw",
        out=tmp_path / "out",
        source="tiny",
        spec=make_spec(tokenizer, 256, 4, "qwen2_5"),
    )
    with pytest.raises(ShardError, match="changed while it was being packed"):
        pack_folder(request, tokenizer, shrink)


@pytest.mark.parametrize("step", [scan_shard, write_shards])
def test_a_full_disk_is_one_sentence_and_leaves_nothing_that_looks_complete(
    tokenizer, tmp_path, step
):
    """The kernel's own full device stands in for the disk."""
    write_caption_shard(tmp_path / "raw" / "00000.tar", 5)
    out = tmp_path / "out"

    def fill_up(function, items):
        if function is step:
            path = items[0].index_file().path if step is scan_shard else items[0].jobs[0].path
            path.with_name(f".{path.name}.tmp").symlink_to("/dev/full")
        return map_inline(function, items)

    request = PackRequest(
        input=tmp_path / "raw",
        out=out,
        source="tiny",
        spec=make_spec(tokenizer, 256, 4, "qwen2_5"),
    )
    with pytest.raises(UserError, match="no space left while writing"):
        pack_folder(request, tokenizer, fill_up)
    assert not list(out.glob("packed-*"))
    assert not (out / "manifest.json").exists()
    pack_folder(request, tokenizer)
    assert len(documents_of(out)) == 5


KILLED = """
import sys
from pathlib import Path
from openqwen2vl.formats.tokens import load_tokenizer
from support.packs import pack
pack(Path(sys.argv[1]), Path(sys.argv[2]), load_tokenizer(sys.argv[3]), packs_per_shard=1)
"""


@pytest.mark.slow
@pytest.mark.parametrize("shards_written", [1, 7])
def test_kill_leaves_no_manifest_and_a_new_run_gives_the_same_bytes(
    raw, tokenizer, tokenizer_folder, tmp_path, shards_written
):
    pack(raw, tmp_path / "unbroken", tokenizer, packs_per_shard=1)
    out = tmp_path / "out"
    arguments = [str(raw), str(out), str(tokenizer_folder)]
    tests = os.path.dirname(__file__)
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, *arguments], env={**os.environ, "PYTHONPATH": tests}
    )
    while len(list(out.glob("packed-*.tar"))) < shards_written and process.poll() is None:
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (out / "manifest.json").exists()
    with pytest.raises(ShardError, match="packing has not finished there"):
        PackFolder(out)
    pack(raw, out, tokenizer, packs_per_shard=1)
    assert contents(out) == contents(tmp_path / "unbroken")


def test_pack_time_does_not_decode_pictures(tokenizer, tmp_path):
    """A broken picture is packed as it is; loading it masks its document."""
    write_tar(tmp_path / "raw" / "0.tar", {"a.jpg": b"no picture", "a.txt": b"a cat"})
    pack(tmp_path / "raw", tmp_path / "out", tokenizer)
    assert PackFolder(tmp_path / "out").read(0).images == [b"no picture"]
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(b"no picture"))
