"""Two machines of a Ray cluster, as processes of this one: the loss of one costs time alone."""

import multiprocessing
import os
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.curated import curated, tree, write_sources
from support.kept import files, samples, write_kept, write_raw
from support.samples import LengthScorer

from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard
from openqwen2vl.curation.resharding.rewrite import write_shard
from openqwen2vl.engine.local import map_shards
from openqwen2vl.engine.ray import ADDRESS, map_shards_ray, ray_session

ray = pytest.importorskip("ray")
cluster_utils = pytest.importorskip("ray.cluster_utils")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster():
    """A cluster of one machine with one core."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(["src", str(Path(__file__).parent)]))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        if ray.is_initialized():
            ray.shutdown()
        cluster = cluster_utils.Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        patch.setenv(ADDRESS, cluster.address)
        yield cluster
        cluster.shutdown()


@pytest.fixture
def machines(cluster):
    """The cluster with a second machine of one core; gives it and the one that may be lost."""
    other = cluster.add_node(num_cpus=1)
    yield cluster, other
    if other in cluster.worker_nodes:
        cluster.remove_node(other)


def lose_when(cluster, other, begun):
    """Kill a machine's processes once it has begun something; gives the thread that waits."""

    def lose():
        while not begun():
            time.sleep(0.05)
        cluster.remove_node(other, allow_graceful=False)

    thread = threading.Thread(target=lose, daemon=True)
    thread.start()
    return thread


def work_until_lost(item):
    """Say on which machine an item is worked on; the one that is to be lost gets nothing done."""
    path, doomed = item
    machine = ray.get_runtime_context().get_node_id()
    with path.open("a") as file:
        file.write(machine + "\n")
    time.sleep(100 if machine == doomed else 0.1)
    return path.name


def test_a_machine_lost_in_mid_run_changes_no_result(machines, tmp_path):
    cluster, other = machines
    paths = [tmp_path / f"{n:02d}" for n in range(8)]
    thread = lose_when(
        cluster, other, lambda: any(other.node_id in p.read_text() for p in tmp_path.iterdir())
    )
    results = list(map_shards_ray(work_until_lost, [(path, other.node_id) for path in paths]))
    thread.join()
    assert results == [path.name for path in paths]
    tries = [path.read_text().splitlines() for path in paths]
    lost = [machines for machines in tries if machines[0] == other.node_id]
    assert lost, "the lost machine had begun something"
    assert all(len(machines) == 2 and machines[1] != other.node_id for machines in lost)


def test_resharding_survives_a_machine_and_gives_the_files_of_local(machines, tmp_path):
    cluster, other = machines
    write_raw(tmp_path / "raw", [15, 14, 13, 12])
    kept = write_kept(tmp_path / "kept.parquet", samples(tmp_path / "raw"))
    request = {"kept": kept, "input": tmp_path / "raw", "source": "s", "name": "s"}
    request |= {"samples_per_shard": 3, "window": 2}
    lost = []

    def losing(function, items):
        for number, result in enumerate(map_shards_ray(function, items)):
            if function is write_shard and number == 3:
                cluster.remove_node(other, allow_graceful=False)
                lost.append(other)
            yield result

    with ray_session():
        reshard(ReshardRequest(out=tmp_path / "ray", **request), losing)
    assert lost
    reshard(
        ReshardRequest(out=tmp_path / "local", **request), lambda f, i: map_shards(f, i, workers=1)
    )
    assert files(tmp_path / "ray") == files(tmp_path / "local")


@dataclass
class Lingering(LengthScorer):
    """Notes on which machine it scores; on the one that is to be lost it gets nothing done."""

    notes: str = ""
    doomed: str = ""

    def score(self, samples):
        machine = None
        if ray.is_initialized():
            machine = ray.get_runtime_context().get_node_id()
            Path(self.notes, machine).touch()
        time.sleep(100 if machine == self.doomed else 0.2)
        return super().score(samples)


def test_curating_survives_a_machine_and_gives_the_files_of_local(machines, tmp_path, call):
    cluster, other = machines
    raw, notes = write_sources(tmp_path / "raw"), tmp_path / "notes"
    notes.mkdir()
    lingering = f"_target_: test_ray_cluster.Lingering, name: lingering, notes: {notes}"
    lingering = f"+scorers.lingering={{{lingering}, doomed: {other.node_id}}}"
    thread = lose_when(cluster, other, (notes / other.node_id).exists)
    curated(call, raw, tmp_path / "ray", lingering, "engine=ray")
    thread.join(timeout=1)
    assert not thread.is_alive(), "the lost machine had begun something"
    assert len(list(notes.iterdir())) == 2
    curated(call, raw, tmp_path / "local", lingering)
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def tell_and_wait(path):
    path.write_text(str(os.getpid()))
    time.sleep(120)


def map_on_ray(paths):
    os.environ.pop(ADDRESS, None)
    list(map_shards_ray(tell_and_wait, paths, workers=2))


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_a_ray_started_here_ends_when_its_parent_is_killed(tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    parent = multiprocessing.get_context("forkserver").Process(target=map_on_ray, args=(paths,))
    parent.start()
    deadline = time.monotonic() + 100
    while time.monotonic() < deadline and not all(p.exists() and p.read_text() for p in paths):
        time.sleep(0.1)
    workers = [int(path.read_text()) for path in paths]
    assert all(map(alive, workers))
    parent.kill()
    parent.join()
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.1)
    assert not any(map(alive, workers))
