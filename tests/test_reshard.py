import json
import multiprocessing
import random
import signal
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from support.kept import contents, contents_of, fields, files, samples, told, write_kept, write_raw
from support.shards import write_tar

from openqwen2vl.curation.resharding.columns import ScoreColumn
from openqwen2vl.curation.resharding.renew import new_key
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.resharding.rewrite import write_shard
from openqwen2vl.engine.local import map_inline, map_shards
from openqwen2vl.formats.errors import ShardError, UserError

COUNTS = [20, 11, 0, 17, 13, 20]


@pytest.fixture
def raw(tmp_path):
    write_raw(tmp_path / "raw", COUNTS)
    return tmp_path / "raw"


@pytest.fixture
def some(raw):
    """Two of three samples, in their order; of shard 4 none."""
    return [s for n, s in enumerate(samples(raw)) if n % 3 and s.shard != "00004"]


@pytest.fixture
def request_(tmp_path, raw, some):
    def made(out="out", **keys):
        kept = keys.pop("kept", tmp_path / "kept.parquet")
        if not kept.exists():
            write_kept(kept, some)
        standard = {"source": "tiny", "name": "tiny_kept", "samples_per_shard": 8, "window": 3}
        return ReshardRequest(kept=kept, input=raw, out=tmp_path / out, **standard | keys)

    return made


def test_what_goes_in_comes_out_bytes_and_all(request_, some, tmp_path):
    manifest = reshard(request_())
    assert contents(tmp_path / "out") == contents_of(some)
    assert manifest.samples == len(some)
    counts = [shard.samples for shard in manifest.shards]
    assert sum(counts) == len(some)
    assert max(counts) <= 8
    assert max(counts) - min(counts) <= 1
    on_disk = {p.name: p.stat().st_size for p in (tmp_path / "out").glob("*.tar")}
    assert on_disk == {shard.name: shard.bytes for shard in manifest.shards}
    assert sorted(on_disk) == [f"{n:08d}.tar" for n in range(len(counts))]


def test_the_shards_are_shuffled_and_the_seed_decides(request_, some, tmp_path):
    for out, seed in (("one", 1), ("again", 1), ("two", 2)):
        reshard(request_(out, seed=seed))
    orders = [[f["uid"] for f in fields(tmp_path / out)] for out in ("one", "again", "two")]
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2]) == sorted(s.uid for s in some)
    assert orders[0] != [s.uid for s in some]


def test_webdataset_reads_the_shards(request_, some, tmp_path):
    reshard(request_())
    urls = [str(path) for path in sorted((tmp_path / "out").glob("*.tar"))]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert len({sample["__key__"] for sample in found}) == len(some)
    assert all({"jpg", "txt", "json"} <= set(sample) for sample in found)


def test_json_keeps_its_fields_and_gains_origin_and_scores(request_, some, tmp_path):
    kept = write_kept(
        tmp_path / "scored.parquet", some, sha256=[bytes([n]) * 4 for n in range(len(some))]
    )
    similarity = {s.key: n / 64 for n, s in enumerate(samples(tmp_path / "raw"))}
    similarity[some[0].key] = float("nan")
    for shard in {s.shard for s in some}:
        rows = [s for s in samples(tmp_path / "raw") if s.shard == shard][::-1]
        table = {
            "key": [s.key for s in rows],
            "clip_similarity": pa.array([similarity[s.key] for s in rows], pa.float32()),
        }
        path = tmp_path / "scores" / f"{shard}.parquet"
        path.parent.mkdir(exist_ok=True)
        pq.write_table(pa.table(table), path)
    columns = (ScoreColumn("sha256"), ScoreColumn("clip_similarity", tmp_path / "scores"))
    manifest = reshard(request_(kept=kept, scores=columns))
    assert manifest.scores == ("sha256", "clip_similarity")
    by_key = {s.key: (n, s) for n, s in enumerate(some)}
    for found in fields(tmp_path / "out"):
        origin, scores = found.pop("origin"), found.pop("scores")
        number, sample = by_key[origin["key"]]
        assert found == sample.fields
        assert origin == {"source": "tiny", "shard": sample.shard, "key": sample.key}
        expected = None if number == 0 else similarity[sample.key]
        assert scores == {
            "sha256": (bytes([number]) * 4).hex(),
            "clip_similarity": expected,
        }


def test_samples_of_equal_names_from_two_sources_stay_apart(tmp_path):
    uids, keys = [], []
    for source in ("ccs", "laion"):
        write_raw(tmp_path / source, [5, 5], uids=False)
        kept = write_kept(tmp_path / f"{source}.parquet", samples(tmp_path / source))
        out = tmp_path / "out" / source
        reshard(
            ReshardRequest(kept=kept, input=tmp_path / source, out=out, source=source, name=source)
        )
        uids += [found["uid"] for found in fields(out)]
        keys += [tuple(found["origin"].values()) for found in fields(out)]
    assert len(set(uids)) == len(set(keys)) == 20
    assert "laion/00001/000010004" in uids


@pytest.mark.parametrize(
    ("one", "other"),
    [(("a_b", "c"), ("a", "b_c")), (("a.b", "c"), ("a%2Eb", "c")), (("a", "x/y"), ("a", "x_y"))],
)
def test_keys_do_not_clash(one, other):
    assert new_key(*one) != new_key(*other)


def test_a_key_fits_a_tar_and_reads_well():
    assert new_key("00012", "000120034") == "00012_000120034"
    long = [new_key("part" * 30, f"{'k' * 300}{n}") for n in range(2)]
    assert long[0] != long[1]
    assert all(len(key) <= 80 for key in long)
    assert "." not in new_key("part.0", "dir/k")


@pytest.mark.parametrize("workers", [1, 2])
def test_any_number_of_workers_gives_the_same_files(request_, tmp_path, workers):
    reshard(request_("inline", funnel={"selection": 7}))
    mapper = partial(map_shards, workers=workers)
    reshard(request_(f"out{workers}", funnel={"selection": 7}), mapper)
    assert files(tmp_path / f"out{workers}") == files(tmp_path / "inline")
    assert told(tmp_path / "inline")["funnel"] == {"selection": 7}


def stopped_after(count):
    def mapper(function, items):
        for number, result in enumerate(map_inline(function, items)):
            yield result
            if function is write_shard and number + 1 == count:
                raise KeyboardInterrupt

    return mapper


def stamps(folder):
    """What tells whether a file was written anew."""
    found = {path.name: path.stat() for path in folder.glob("*.tar")}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_a_new_start_keeps_the_shards_that_are_finished(request_, tmp_path):
    reshard(request_("unbroken"))
    with pytest.raises(KeyboardInterrupt):
        reshard(request_(), stopped_after(2))
    out = tmp_path / "out"
    before = stamps(out)
    assert len(before) == 2
    with (out / "00000001.tar").open("ab") as tar:
        tar.write(b"x")
    reshard(request_())
    after = stamps(out)
    assert after["00000000.tar"] == before["00000000.tar"]
    assert after["00000001.tar"] != before["00000001.tar"]
    assert files(out) == files(tmp_path / "unbroken")


def test_other_settings_start_anew_and_leave_nothing_of_the_old(request_, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        reshard(request_(samples_per_shard=4), stopped_after(7))
    reshard(request_())
    reshard(request_("fresh"))
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_a_complete_folder_is_left_alone_until_told_otherwise(request_, tmp_path):
    first = reshard(request_())
    before = stamps(tmp_path / "out")
    assert reshard(request_()) == first
    assert reshard(request_(funnel={"near": 3})).funnel == {"near": 3}
    assert stamps(tmp_path / "out") == before
    with pytest.raises(UserError, match=r"other samples or settings.*overwrite=true"):
        reshard(request_(seed=5))
    assert stamps(tmp_path / "out") == before
    reshard(request_(seed=5, overwrite=True))
    reshard(request_("fresh", seed=5))
    assert files(tmp_path / "out") == files(tmp_path / "fresh")


def test_new_scores_make_new_shards(request_, some, tmp_path):
    columns = (ScoreColumn("length", tmp_path / "scores"),)
    for factor in (1, 2):
        for shard in {s.shard for s in some}:
            keys = [s.key for s in some if s.shard == shard]
            path = tmp_path / "scores" / f"{shard}.parquet"
            path.parent.mkdir(exist_ok=True)
            pq.write_table(pa.table({"key": keys, "length": [factor * 1.5] * len(keys)}), path)
        reshard(request_(scores=columns, overwrite=True))
        assert {f["scores"]["length"] for f in fields(tmp_path / "out")} == {factor * 1.5}


def test_tars_of_others_are_never_removed(request_, tmp_path):
    write_tar(tmp_path / "out" / "mine.tar", {"a.txt": b"a"})
    with pytest.raises(UserError, match="not written by this step"):
        reshard(request_())
    with pytest.raises(UserError, match="holds the raw shards"):
        request_("raw")
    assert (tmp_path / "out" / "mine.tar").exists()


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_killed_at_random_moments_the_end_is_that_of_an_unbroken_run(request_, tmp_path, workers):
    reshard(request_("unbroken"))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["openqwen2vl.curation.resharding.reshard"])
    rng, out, codes, most = random.Random(workers), tmp_path / "out", [], 8
    while not (out / "manifest.json").exists():
        mapper = partial(map_shards, workers=workers)
        process = context.Process(target=reshard, args=(request_(), mapper))
        process.start()
        share = (len(codes) + rng.random()) / most  # later kills leave time to get further
        process.join((0.5 if workers == 1 else 4.0) * share if share < 1 else None)
        process.kill()
        process.join()
        codes.append(process.exitcode)
        assert codes[-1] in (0, -signal.SIGKILL)
    assert codes[0] == -signal.SIGKILL
    reshard(request_())  # the last kill may have come after the manifest
    assert files(out) == files(tmp_path / "unbroken")


def test_json_is_not_needed(tmp_path):
    write_tar(tmp_path / "raw" / "00000.tar", {"a.png": b"image", "a.txt": b"words"})
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    out = tmp_path / "out"
    reshard(ReshardRequest(kept=kept, input=tmp_path / "raw", out=out, source="s", name="s"))
    (found,) = fields(out)
    origin = {"source": "s", "shard": "00000", "key": "a"}
    assert found == {"uid": "s/00000/a", "origin": origin}
    assert contents(out) == {("s/00000/a", b"image", "words"): 1}


def test_a_page_keeps_its_text_where_it_was(tmp_path):
    truth = {"ground_truth": json.dumps({"gt_parse": {"text_sequence": "a page"}})}
    page = {"p.jpg": b"image", "p.json": json.dumps(truth).encode()}
    write_tar(tmp_path / "raw" / "00000.tar", page)
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    out = tmp_path / "out"
    reshard(ReshardRequest(kept=kept, input=tmp_path / "raw", out=out, source="s", name="s"))
    assert contents(out) == {("s/00000/p", b"image", "a page"): 1}
    assert b".txt" not in (out / "00000000.tar").read_bytes()


def test_a_raw_shard_that_changes_meanwhile_is_told(request_, raw):
    def touch(function, items):
        if function is write_shard:
            write_raw(raw, [25])
        return map_inline(function, items)

    with pytest.raises(ShardError, match=r"00000\.tar changed while|has the uid|was cut"):
        reshard(request_(), touch)
