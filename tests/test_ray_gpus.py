"""Ray that is told of two GPUs: who runs on a GPU asks for one, and each sees its own."""

import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.curated import curated, tree, words, write_sources
from support.gpus import most_at_once, visits
from support.runs import Run, assert_one_message

from openqwen2vl.engine.placement import VISIBLE
from openqwen2vl.engine.ray import map_shards_ray
from openqwen2vl.engine.ray_worker import call_on_gpus

ray = pytest.importorskip("ray")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def gpus() -> Iterator[None]:
    """A Ray of two cores and two GPUs that only it believes in."""
    if ray.is_initialized():
        ray.shutdown()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv(VISIBLE, raising=False)
        ray.init(
            address="local",
            num_cpus=2,
            num_gpus=2,
            include_dashboard=False,
            object_store_memory=2**27,
            log_to_driver=False,
            logging_level="ERROR",
        )
        yield
        ray.shutdown()


def noting(notes: Path, *more: str) -> list[str]:
    """Give the words that add a scorer that wants a GPU, and one that does not."""
    notes.mkdir()
    target = "_target_: support.gpus.NotingScorer"
    return [
        f"+scorers.far={{{target}, name: far, device: cuda, seconds: 0.2, notes: {notes}}}",
        f"+scorers.near={{{target}, name: near, notes: {notes}}}",
        *more,
    ]


def test_scorers_on_gpus_take_one_each_and_the_bytes_are_those_of_local(
    gpus: None, tmp_path: Path, call: Run
) -> None:
    raw = write_sources(tmp_path / "raw")
    curated(call, raw, tmp_path / "ray", *noting(tmp_path / "notes"), "engine=ray")
    far, near = (visits(tmp_path / "notes", name) for name in ("far", "near"))
    # Three shards of either source; each is scored in batches of four.
    assert len(far) == len(near) == 12
    assert {visit.seen for visit in far} == {"0", "1"}
    assert most_at_once(far) <= 2
    # Weights are loaded once a GPU: no process saw both, and none was made for each shard.
    assert len({(visit.process, visit.seen) for visit in far}) < 6
    assert not {visit.seen for visit in near} & {"0", "1"}
    curated(call, raw, tmp_path / "local", *noting(tmp_path / "other"))
    assert tree(tmp_path / "ray") == tree(tmp_path / "local")


def meet(place: tuple[Path, int]) -> str | None:
    """Wait for the others, who are to be at work at the same time; give the GPUs in sight."""
    folder, others = place
    (folder / str(os.getpid())).touch()
    deadline = time.monotonic() + 60
    while len(list(folder.iterdir())) < others and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list(folder.iterdir())) == others
    return os.environ.get(VISIBLE)


def test_two_are_at_work_at_once_on_a_gpu_each(gpus: None, tmp_path: Path) -> None:
    assert sorted(map_shards_ray(meet, [(tmp_path, 2)] * 2, num_gpus=1)) == ["0", "1"]


def seen(number: int) -> tuple[int, str | None]:
    time.sleep(0.2)
    return os.getpid(), os.environ.get(VISIBLE)


def test_a_worker_that_is_given_another_gpu_leaves_the_call_to_a_process_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openqwen2vl.engine.ray_worker._GPUS", {})
    monkeypatch.setenv(VISIBLE, "0")
    first = call_on_gpus(seen, 0)
    assert first == ((os.getpid(), "0"), [])
    monkeypatch.setenv(VISIBLE, "1")
    (process, gpu), _ = call_on_gpus(seen, 0)
    assert gpu == "1"
    assert process != os.getpid()
    monkeypatch.setenv(VISIBLE, "0")
    assert call_on_gpus(seen, 0) == first


def test_more_gpus_than_a_machine_has_are_told(gpus: None, tmp_path: Path, call: Run) -> None:
    raw = write_sources(tmp_path / "raw")
    more = noting(tmp_path / "notes", "engine=ray", "num_gpus=3")
    assert_one_message(call(*words(raw, tmp_path / "out", *more)), "the largest have 2 cores and 2")
    assert list((tmp_path / "notes").iterdir()) == [], "nobody has scored in vain"


def test_gpus_for_nobody_are_told(tmp_path: Path, call: Run) -> None:
    raw = write_sources(tmp_path / "raw")
    told = call(*words(raw, tmp_path / "out", "engine=ray", "num_gpus=1"))
    assert_one_message(told, "no scorer runs on a GPU; say scorers.NAME.device=cuda")
