"""What resharding says of bad input; nothing half-written is left."""

from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.kept import samples, write_kept, write_raw
from support.shards import write_tar

from openqwen2vl.curation.resharding.columns import ScoreColumn
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.resharding.resharded import ReshardManifest
from openqwen2vl.formats.errors import ShardError, UserError
from openqwen2vl.packing import space


@pytest.fixture
def raw(tmp_path):
    write_raw(tmp_path / "raw", [5, 5])
    return tmp_path / "raw"


def run(tmp_path, table=None, **keys):
    kept = tmp_path / "kept.parquet"
    if table is not None:
        pq.write_table(pa.table(table), kept)
    elif not kept.exists():
        write_kept(kept, samples(tmp_path / "raw"))
    standard = {"source": "tiny", "name": "tiny_kept"}
    return reshard(
        ReshardRequest(kept=kept, input=tmp_path / "raw", out=tmp_path / "out", **standard | keys)
    )


def rows(*places):
    return {name: [p[n] for p in places] for n, name in enumerate(("shard", "key", "uid"))}


def test_a_sample_that_the_shard_lacks_is_named(raw, tmp_path):
    table = rows(("00001", "000010001", "x"), ("00001", "nobody", "y"), ("00001", "nothing", "z"))
    with pytest.raises(ShardError, match=r"00001\.tar lacks nobody, one of 2 samples"):
        run(tmp_path, table)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_missing_raw_shard_is_named(raw, tmp_path):
    with pytest.raises(ShardError, match=r"00007\.tar is missing, and 1 others"):
        run(tmp_path, rows(("00007", "a", "a"), ("00009", "a", "a")))


def test_another_uid_than_was_kept_is_told(raw, tmp_path):
    with pytest.raises(ShardError, match=r"000010001 of 00001 has the uid .* was kept as mine"):
        run(tmp_path, rows(("00001", "000010001", "mine")))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_broken_json_and_several_images_are_told(tmp_path):
    image = {"a.jpg": b"x", "a.txt": b"words"}
    write_tar(tmp_path / "raw" / "0.tar", image | {"a.json": b"{broken"})
    with pytest.raises(ShardError, match=r"0: a\.json: .*score it again"):
        run(tmp_path, rows(("0", "a", "0/a")))
    write_tar(tmp_path / "raw" / "1.tar", {"a.0.jpg": b"x", "a.1.jpg": b"y", "a.txt": b"words"})
    with pytest.raises(ShardError, match=r"a of .*1\.tar has 2 images"):
        run(tmp_path, rows(("1", "a", "1/a")))


def test_a_source_of_which_nothing_is_kept_is_an_empty_folder(raw, tmp_path, caplog):
    table = {name: pa.array([], pa.string()) for name in ("shard", "key", "uid")}
    column = ScoreColumn("clip_similarity", tmp_path / "scores")
    keys = {"funnel": {"deduplicate": {"duplicate_uid": 10}}, "scores": (column,)}
    manifest = run(tmp_path, table, **keys)
    assert "nothing of tiny_kept is kept" in caplog.text
    assert (manifest.samples, manifest.bytes, manifest.shards) == (0, 0, ())
    assert manifest.funnel == keys["funnel"]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]
    assert run(tmp_path, **keys) == ReshardManifest.load(tmp_path / "out") == manifest


def test_a_source_that_is_thinned_to_nothing_leaves_no_old_shards(raw, tmp_path):
    run(tmp_path)
    table = {name: pa.array([], pa.string()) for name in ("shard", "key", "uid")}
    with pytest.raises(UserError, match="overwrite=true"):
        run(tmp_path, table)
    run(tmp_path, table, overwrite=True)
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["manifest.json"]


def test_kept_tables_that_cannot_be_used_are_told(raw, tmp_path):
    with pytest.raises(ShardError, match="has no column uid; it has shard, key"):
        run(tmp_path, {"shard": ["00000"], "key": ["a"]})
    apart = rows(("00000", "a", "a"), ("00001", "a", "b"), ("00000", "b", "c"))
    with pytest.raises(ShardError, match="not sorted: those of 00000 lie apart"):
        run(tmp_path, apart)
    (tmp_path / "kept.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ShardError, match=r"kept\.parquet cannot be read"):
        run(tmp_path)
    (tmp_path / "kept.parquet").unlink()
    paths = {"kept": tmp_path / "kept.parquet", "input": raw, "out": tmp_path / "out"}
    request = ReshardRequest(**paths, source="a", name="b")
    with pytest.raises(ShardError, match=r"kept\.parquet is missing"):
        reshard(request)


def test_scores_that_are_not_there_are_told(raw, tmp_path):
    with pytest.raises(UserError, match="has no column phash; it has shard, key, uid, sources"):
        run(tmp_path, scores=(ScoreColumn("phash"),))
    column = ScoreColumn("clip_similarity", tmp_path / "scores")
    with pytest.raises(UserError, match=r"00000\.parquet is missing: the samples of 00000 have no"):
        run(tmp_path, scores=(column,))
    (tmp_path / "scores").mkdir()
    for shard in ("00000", "00001"):
        path = tmp_path / "scores" / f"{shard}.parquet"
        pq.write_table(pa.table({"key": [f"{shard}0000"], "other": [0.5]}), path)
    with pytest.raises(UserError, match="has no columns key and clip_similarity"):
        run(tmp_path, scores=(column,))
    with pytest.raises(UserError, match="no row for 000000001, one of 4 kept samples"):
        run(tmp_path, scores=(ScoreColumn("other", tmp_path / "scores"),))


def test_a_disk_too_small_is_told_before_the_first_shard(raw, tmp_path, monkeypatch):
    needed = sum(path.stat().st_size for path in raw.glob("*.tar"))
    free = SimpleNamespace(free=needed // 2)
    monkeypatch.setattr(space.shutil, "disk_usage", lambda path: free)
    with pytest.raises(UserError, match=r"the shards need about .* has .* free"):
        run(tmp_path)
    assert not list((tmp_path / "out").glob("*.tar"))


def test_the_estimate_of_space_is_close_and_not_too_small(raw, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr(
        "openqwen2vl.curation.resharding.reshard.check_space",
        lambda folder, size, what: said.append(size),
    )
    manifest = run(tmp_path)
    assert manifest.bytes <= said[0] + 4096
    assert said[0] <= 1.3 * manifest.bytes


@pytest.mark.parametrize("key", ["window", "samples_per_shard"])
def test_numbers_start_at_one(raw, tmp_path, key):
    with pytest.raises(UserError, match=f"{key} is 0; it starts at 1"):
        run(tmp_path, **{key: 0})


def test_manifests_that_are_no_such_are_told(raw, tmp_path):
    run(tmp_path)
    path = tmp_path / "out" / "manifest.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 9'))
    with pytest.raises(ShardError, match="has format_version 9, this program writes 1"):
        ReshardManifest.load(tmp_path / "out")
    path.write_text("[]")
    with pytest.raises(ShardError, match="is no manifest of curated shards"):
        run(tmp_path)
    with pytest.raises(ShardError, match="resharding has not ended"):
        ReshardManifest.load(tmp_path)


def test_an_out_that_is_a_file_is_told(raw, tmp_path):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"out cannot be written .*; choose another folder"):
        run(tmp_path)
