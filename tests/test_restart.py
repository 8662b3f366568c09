import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
from support.packs import contents, pack
from support.shards import write_caption_shard, write_conversation_shard

from openqwen2vl.engine.local import map_inline, map_shards
from openqwen2vl.formats.errors import PackError, ShardError
from openqwen2vl.packing import scan
from openqwen2vl.packing.layout import plan_window
from openqwen2vl.packing.locks import one_writer
from openqwen2vl.packing.plan import Selection
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.shards import write_shards
from openqwen2vl.packing.writer import pack_folder

KEYS = {"selection": Selection((0.0, 0.9), 0.2), "window": 40, "packs_per_shard": 1}


@pytest.fixture
def raw(tmp_path):
    for number in range(3):
        write_caption_shard(tmp_path / "raw" / f"{number:05d}.tar", 25, seed=number)
    write_conversation_shard(tmp_path / "raw" / "00003.tar", 25, seed=3, max_images=2)
    return tmp_path / "raw"


class Stopped(Exception):
    """Stands for whatever ends a run."""


def stop(raw, out, tokenizer, step, after, **keys):
    """Pack until a step has given so many results."""

    def mapper(function, items):
        for number, result in enumerate(map_inline(function, items)):
            yield result
            if function is step and number + 1 >= after:
                raise Stopped

    request = PackRequest(
        input=raw, out=out, source="tiny", spec=make_spec(tokenizer, 256, 4, "qwen2_5"), **keys
    )
    with pytest.raises(Stopped):
        pack_folder(request, tokenizer, mapper)


def files(folder, pattern="**/packed-*.tar"):
    """What tells whether a file was written anew."""
    found = {path: path.stat() for path in sorted(folder.glob(pattern))}
    return {path: (stat.st_ino, stat.st_mtime_ns) for path, stat in found.items()}


def same(first, second):
    return {path for path, known in first.items() if second.get(path) == known}


@pytest.mark.parametrize("after", [1, 4])
def test_a_new_start_keeps_the_packed_shards_that_are_finished(raw, tokenizer, tmp_path, after):
    pack(raw, tmp_path / "unbroken", tokenizer, **KEYS)
    out = tmp_path / "out"
    stop(raw, out, tokenizer, write_shards, after, **KEYS)
    before = files(out)
    assert len(before) == after
    pack(raw, out, tokenizer, **KEYS)
    assert same(before, files(out)) == set(before)
    assert contents(out) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize("step", [scan.scan_shard, plan_window])
def test_a_new_start_reads_no_raw_shard_that_is_indexed(
    raw, tokenizer, tmp_path, monkeypatch, step
):
    pack(raw, tmp_path / "unbroken", tokenizer, index=tmp_path / "other", **KEYS)
    out, read = tmp_path / "out", []
    stop(raw, out, tokenizer, step, 2, **KEYS)
    before = files(tmp_path, ".lengths/*/*.parquet")
    assert len(before) == (2 if step is scan.scan_shard else 4)
    reader = scan.read_shard
    monkeypatch.setattr(
        scan, "read_shard", lambda s, *more: read.append(s.name) or reader(s, *more)
    )
    pack(raw, out, tokenizer, **KEYS)
    assert read == ["00002.tar", "00003.tar"][len(before) - 2 :]
    assert same(before, files(tmp_path, ".lengths/*/*.parquet")) == set(before)
    assert contents(out) == contents(tmp_path / "unbroken")


@pytest.mark.parametrize(
    "change",
    [{"grid": 3}, {"context": 200}, {"template": "open_qwen2vl_v1"}],
    ids=str,
)
def test_another_request_starts_anew_in_an_unfinished_folder(raw, tokenizer, tmp_path, change):
    out = tmp_path / "out"
    stop(raw, out, tokenizer, write_shards, 6, **KEYS)
    before = files(out)
    pack(raw, out, tokenizer, **KEYS | change)
    assert not same(before, files(out))
    pack(raw, tmp_path / "fresh", tokenizer, **KEYS | change)
    assert contents(out) == contents(tmp_path / "fresh")


def test_fewer_packed_shards_than_an_unfinished_run_left(raw, tokenizer, tmp_path):
    out = tmp_path / "out"
    stop(raw, out, tokenizer, write_shards, 6, **KEYS)
    (raw / "00003.tar").unlink()
    small = {"packs_per_shard": 500, "window": 500}
    pack(raw, out, tokenizer, **small)
    pack(raw, tmp_path / "fresh", tokenizer, **small)
    assert {k: v for k, v in contents(out).items() if not k.startswith("validation")} == contents(
        tmp_path / "fresh"
    )
    assert not files(out / "validation")


def test_only_packed_shards_of_a_raw_shard_that_changed_are_written_anew(raw, tokenizer, tmp_path):
    out = tmp_path / "out"
    keys = KEYS | {"window": 1, "selection": Selection()}  # a window for each raw shard
    stop(raw, out, tokenizer, write_shards, 6, **keys)
    before = files(out)
    write_caption_shard(raw / "00001.tar", 9, seed=77)
    pack(raw, out, tokenizer, **keys)
    mine = {
        p.name
        for p in before
        if PackFolder(out).read(int(p.stem[-6:])).documents[0]["shard"] == "00000"
    }
    assert mine
    assert {path.name for path in same(before, files(out))} == mine
    pack(raw, tmp_path / "fresh", tokenizer, **keys)
    assert contents(out) == contents(tmp_path / "fresh")


def test_a_shard_without_its_note_or_of_another_size_is_written_anew(raw, tokenizer, tmp_path):
    pack(raw, tmp_path / "unbroken", tokenizer, **KEYS)
    out = tmp_path / "out"
    stop(raw, out, tokenizer, write_shards, 5, **KEYS)
    before = files(out)
    (out / ".work" / "train" / "packed-000001" / "shard.json").unlink()
    (out / ".work" / "train" / "packed-000002" / "shard.json").write_text("{")
    with (out / "packed-000003.tar").open("ab") as tar:
        tar.write(b"x")
    pack(raw, out, tokenizer, **KEYS)
    names = {path.name for path in same(before, files(out))}
    assert names == {"packed-000000.tar", "packed-000004.tar"}
    assert contents(out) == contents(tmp_path / "unbroken")


def test_finished_packs_stay_and_what_a_kill_left_beside_them_goes(raw, tokenizer, tmp_path):
    pack(raw, tmp_path / "out", tokenizer, **KEYS)
    before = contents(tmp_path / "out")
    (tmp_path / "out" / ".work").mkdir()
    with pytest.raises(PackError, match="already holds packs"):
        pack(raw, tmp_path / "out", tokenizer, **KEYS)
    assert contents(tmp_path / "out") == before
    assert not (tmp_path / "out" / ".work").exists()


def test_a_raw_shard_that_changes_between_index_and_writing_is_told(raw, tokenizer, tmp_path):
    def touch(function, items):
        if function is write_shards:
            path = raw / "00001.tar"
            os.utime(path, ns=(1, path.stat().st_mtime_ns + 1))
        return map_inline(function, items)

    request = PackRequest(
        input=raw,
        out=tmp_path / "out",
        source="tiny",
        spec=make_spec(tokenizer, 256, 4, "qwen2_5"),
    )
    with pytest.raises(ShardError, match=r"00001\.tar changed while it was being packed.*run pack"):
        pack_folder(request, tokenizer, touch)
    assert not (tmp_path / "out" / "manifest.json").exists()
    pack_folder(request, tokenizer)
    pack(raw, tmp_path / "fresh", tokenizer)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_lock_holds_others_off_and_ends_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from openqwen2vl.packing.locks import one_writer\n"
        "with one_writer(Path(sys.argv[1])):\n"
        "    print('held', flush=True); time.sleep(60)\n"
    )
    path = tmp_path / "a.parquet"
    process = subprocess.Popen([sys.executable, "-c", code, path], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    started = time.monotonic()
    kill = subprocess.Popen(["sh", "-c", f"sleep 0.5; kill -9 {process.pid}"])
    with one_writer(path):
        assert time.monotonic() - started > 0.4
    assert kill.wait() == 0
    assert process.wait() == -signal.SIGKILL
    process.stdout.close()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_the_end_is_that_of_an_unbroken_run(
    raw, tokenizer, tmp_path, workers
):
    pack(raw, tmp_path / "unbroken", tokenizer, index=tmp_path / "other", **KEYS)
    rng, out, most = random.Random(0), tmp_path / "out", 8
    spec = make_spec(tokenizer, 256, 4, "qwen2_5")
    request = PackRequest(input=raw, out=out, source="tiny", spec=spec, **KEYS)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openqwen2vl.packing.writer"])
    codes, finished = [], {}
    while not (out / "manifest.json").exists():
        mapper = partial(map_shards, workers=workers)
        process = context.Process(target=pack_folder, args=(request, tokenizer, mapper))
        process.start()
        share = (len(codes) + rng.random()) / most  # later kills leave time to get further
        process.join((0.6 if workers == 1 else 6.0) * share if share < 1 else None)
        process.kill()
        process.join()
        codes.append(process.exitcode)
        assert codes[-1] in (0, -signal.SIGKILL)
        assert same(finished, files(out)) == set(finished)
        noted = {note.parent.name for note in out.glob(".work/train/*/shard.json")}
        finished = {p: s for p, s in files(out, "*.tar").items() if p.stem in noted}
    assert codes[0] == -signal.SIGKILL
    done = contents(out)
    if (out / ".work").exists():  # the last kill came after the manifest
        done = {name: data for name, data in done.items() if not name.startswith(".work")}
    assert done == contents(tmp_path / "unbroken")
