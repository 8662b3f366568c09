"""Resharding into a folder that is finished: what was lost meanwhile is written again, no more."""

import pytest
from support.kept import contents, files, samples, write_kept, write_raw

from openqwen2vl.curation.resharding.locate import locate_shard
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.resharding.rewrite import write_shard
from openqwen2vl.engine.local import map_inline


@pytest.fixture
def request_(tmp_path):
    write_raw(tmp_path / "raw", [6, 6, 6, 6])
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    keys = {"source": "tiny", "name": "tiny", "samples_per_shard": 4, "window": 1}
    return ReshardRequest(kept=kept, input=tmp_path / "raw", out=tmp_path / "out", **keys)


class Noting:
    """Maps inline and notes on how many items each function works."""

    def __init__(self):
        self.counts = {}

    def __call__(self, function, items):
        self.counts[function] = len(items)
        return map_inline(function, items)


def stamps(folder):
    found = {path.name: path.stat() for path in folder.iterdir()}
    return {name: (stat.st_ino, stat.st_mtime_ns) for name, stat in found.items()}


def test_shards_that_are_lost_or_cut_are_written_again_and_the_rest_is_left(request_):
    manifest, out = reshard(request_), request_.out
    before, old = files(out), stamps(out)
    (out / "00000000.tar").unlink()
    (out / "00000004.tar").write_bytes(before["00000004.tar"][:700])
    (out / "mine.tar").write_bytes(b"of someone else")
    mapper = Noting()
    assert reshard(request_, mapper) == manifest
    assert mapper.counts[write_shard] == 2
    assert mapper.counts[locate_shard] < 4  # raw shards that give nothing to the two are not read
    (out / "mine.tar").unlink()
    assert files(out) == before
    new = stamps(out)
    assert {name for name in new if new[name] != old[name]} == {"00000000.tar", "00000004.tar"}


def test_a_whole_folder_is_looked_at_and_not_worked_on(request_):
    manifest = reshard(request_)
    old, mapper = stamps(request_.out), Noting()
    assert reshard(request_, mapper) == manifest
    assert mapper.counts == {}
    assert stamps(request_.out) == old


def test_mending_that_is_broken_off_goes_on(request_):
    reshard(request_)
    before = files(request_.out)
    for path in request_.out.glob("*.tar"):
        path.unlink()

    def stopped(function, items):
        for number, result in enumerate(map_inline(function, items)):
            yield result
            if function is write_shard and number == 1:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        reshard(request_, stopped)
    left = stamps(request_.out)
    reshard(request_)
    assert files(request_.out) == before
    new = stamps(request_.out)
    tars = [name for name in left if name.endswith(".tar")]
    assert len(tars) == 2
    assert all(new[name] == left[name] for name in tars)
    assert contents(request_.out).total() == 24
