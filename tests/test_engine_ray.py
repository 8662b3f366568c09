import logging
import os
import socket
import sys
import time

import pytest
from support.kept import files, samples, write_kept, write_raw

from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.engine.chosen import open_engine
from openqwen2vl.engine.local import map_shards
from openqwen2vl.engine.ray import ADDRESS, _Need, _result, map_shards_ray, ray_session
from openqwen2vl.formats.errors import ShardError, UserError

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def session():
    with ray_session(2):
        yield


@pytest.fixture
def lonely(monkeypatch):
    """A process that is not connected to Ray."""
    if ray.is_initialized():
        ray.shutdown()
    monkeypatch.delenv(ADDRESS, raising=False)


def square(x):
    time.sleep(0.3 if x == 0 else 0)
    return x * x


def where(x):
    return os.getpid()


def fail_at_three(x):
    if x == 3:
        raise ShardError("three is broken")
    return x


def die_at_three(x):
    if x == 3:
        os._exit(9)
    return x


def die_once(path):
    if not path.exists():
        path.write_text("died")
        os._exit(9)
    return path.name


def begin(path):
    path.touch()


def test_results_come_in_order_with_progress(session):
    told = []
    results = list(map_shards_ray(square, range(9), progress=lambda *p: told.append(p)))
    assert results == list(map_shards(square, range(9), 1))
    assert told == [(n, 9) for n in range(1, 10)]


def test_others_do_the_work(session):
    assert os.getpid() not in set(map_shards_ray(where, range(4)))


def test_nothing_to_do_gives_nothing(session):
    assert list(map_shards_ray(square, [])) == []


def test_an_error_is_the_functions_own_and_names_its_shard(session):
    with pytest.raises(ShardError, match="three is broken") as caught:
        list(map_shards_ray(fail_at_three, range(5)))
    assert type(caught.value) is ShardError
    assert caught.value.__notes__ == ["while working on 3"]


def test_a_worker_that_dies_is_tried_again(session, tmp_path):
    paths = [tmp_path / str(n) for n in range(3)]
    assert list(map_shards_ray(die_once, paths)) == ["0", "1", "2"]


def test_a_worker_that_dies_each_time_is_told(session):
    with pytest.raises(RuntimeError, match="the worker of 3 died 2 times"):
        list(map_shards_ray(die_at_three, range(5), retries=1))


def warn(x):
    logging.getLogger("openqwen2vl.somewhere").warning("%d is odd", x)
    logging.getLogger("somebody.else").warning("nobody asked")
    return x


def test_what_workers_warn_of_is_said_here(session, caplog):
    assert list(map_shards_ray(warn, [3, 5])) == [3, 5]
    found = [(record.name, record.getMessage()) for record in caplog.records]
    assert found == [("openqwen2vl.somewhere", f"{x} is odd") for x in (3, 5)]


def warn_and_fail(x):
    warn(x)
    raise ShardError("it broke")


def test_what_workers_warn_of_before_they_fail_is_said_here_too(session, caplog):
    with pytest.raises(ShardError, match="it broke"):
        list(map_shards_ray(warn_and_fail, [3]))
    assert [record.getMessage() for record in caplog.records] == ["3 is odd"]


def test_few_results_wait(session, tmp_path):
    paths = [tmp_path / str(n) for n in range(30)]
    results = map_shards_ray(begin, paths)
    next(results)
    time.sleep(1)
    assert len(list(tmp_path.iterdir())) <= 2 * 2
    results.close()
    assert list(map_shards_ray(square, [3])) == [9]


def test_what_no_machine_has_is_told(session):
    with pytest.raises(UserError, match=r"takes 1 cores and 9 GPUs.*the largest have 2 cores"):
        list(map_shards_ray(square, range(3), num_gpus=9))
    with pytest.raises(UserError, match="takes 64 cores"):
        list(map_shards_ray(square, range(3), num_cpus=64))


def test_the_engine_of_a_name_writes_what_local_writes(session, tmp_path):
    write_raw(tmp_path / "raw", [9, 7, 8])
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    request = {"kept": kept, "input": tmp_path / "raw", "source": "s", "name": "s"}
    for name in ("local", "ray"):
        with open_engine(name, 2) as engine:
            out = tmp_path / name
            reshard(ReshardRequest(out=out, samples_per_shard=5, window=2, **request), engine)
            assert list(engine(square, range(3), num_gpus=0.0)) == [0, 1, 4]
    assert files(tmp_path / "ray") == files(tmp_path / "local")


def test_a_connection_that_was_there_stays(session):
    with ray_session(1):
        pass
    assert ray.is_initialized()
    list(map_shards_ray(square, range(2)))
    assert ray.is_initialized()


class Lonely:
    """A Ray whose only machine with a GPU went away and came back after three looks."""

    exceptions = ray.exceptions

    def __init__(self):
        self.looks = 0

    def nodes(self):
        gpus = {"GPU": 1.0} if self.looks > 3 else {}
        return [{"Alive": True, "Resources": {"CPU": 4.0, **gpus}}]

    def wait(self, references, timeout):
        self.looks += 1
        return (references, []) if self.looks > 4 else ([], references)

    def get(self, reference):
        return reference, []


def test_waiting_for_a_machine_that_is_gone_is_told_once(caplog):
    assert _result(Lonely(), "an item", 7, 3, _Need(cpus=1, gpus=1)) == 7
    said = [record.getMessage() for record in caplog.records]
    assert said == ["no machine with 1 cores and 1 GPUs is left in this Ray; waiting for one"]
    caplog.clear()
    assert _result(Lonely(), "an item", 7, 3, _Need(cpus=1, gpus=0)) == 7
    assert caplog.records == []


def test_an_unknown_engine_is_told():
    with (
        pytest.raises(UserError, match="engine is 'spark'; there are local, ray"),
        open_engine("spark"),
    ):
        pass


def test_without_ray_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"not installed; run: pip install 'openqwen2vl\[ray\]'"):
        list(map_shards_ray(square, range(2)))


# From here on no test needs the Ray that the tests above share: it would only be in the way.


def test_a_ray_of_ones_own_is_started_and_ended(lonely):
    before = dict(os.environ)
    assert list(map_shards_ray(square, range(3), workers=1)) == [0, 1, 4]
    assert not ray.is_initialized()
    assert dict(os.environ) == before


@pytest.mark.parametrize("address", ["127.0.0.1:1", "ray://127.0.0.1:1", "nowhere", "::"])
def test_an_address_without_ray_is_told(lonely, monkeypatch, address):
    monkeypatch.setenv(ADDRESS, address)
    with pytest.raises(UserError, match=f"no Ray answers at RAY_ADDRESS={address}.*unset it"):
        list(map_shards_ray(square, range(2)))
    assert not ray.is_initialized()


def test_a_server_that_is_no_ray_is_told(lonely, monkeypatch):
    def wait_in_vain(**keys):
        raise ray.exceptions.RpcError("Timed out while waiting for GCS")

    monkeypatch.setattr(ray, "init", wait_in_vain)
    with socket.create_server(("127.0.0.1", 0)) as server:
        monkeypatch.setenv(ADDRESS, f"127.0.0.1:{server.getsockname()[1]}")
        with pytest.raises(UserError, match=r"no Ray answers at .*Timed out"):
            list(map_shards_ray(square, range(2)))
