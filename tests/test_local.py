import multiprocessing
import os
import time
from pathlib import Path

import pytest

from openqwen2vl.engine.local import map_inline, map_shards


def slow_square(x):
    time.sleep(0.05 if x == 0 else 0)
    return x * x, os.getpid()


def fail_at_three(x):
    if x == 3:
        raise ValueError("three is broken")
    return x


def die_at_three(x):
    if x == 3:
        os._exit(9)
    return x


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_in_order_with_progress(workers):
    told = []
    results = list(map_shards(slow_square, range(9), workers, lambda *p: told.append(p)))
    assert [value for value, _ in results] == [x * x for x in range(9)]
    assert told == [(n, 9) for n in range(1, 10)]
    assert (os.getpid() in {pid for _, pid in results}) == (workers == 1)


@pytest.mark.parametrize("workers", [1, 2])
def test_an_error_names_its_shard(workers):
    with pytest.raises(ValueError, match="three is broken") as caught:
        list(map_shards(fail_at_three, range(5), workers))
    assert "while working on 3" in caught.value.__notes__


def test_a_dead_worker_is_told():
    with pytest.raises(RuntimeError, match="a worker process died at or near"):
        list(map_shards(die_at_three, range(5), 2))


def test_nothing_to_do_gives_nothing():
    assert list(map_inline(slow_square, [])) == []
    assert list(map_shards(slow_square, [], 2)) == []


def tell_and_wait(path):
    path.write_text(str(os.getpid()))
    time.sleep(60)


def map_in_two(paths):
    list(map_shards(tell_and_wait, paths, 2))


def alive(pid):
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_workers_leave_when_their_parent_is_killed(tmp_path):
    paths = [tmp_path / "one", tmp_path / "two"]
    parent = multiprocessing.get_context("forkserver").Process(target=map_in_two, args=(paths,))
    parent.start()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not all(p.exists() and p.read_text() for p in paths):
        time.sleep(0.05)
    workers = [int(path.read_text()) for path in paths]
    assert all(map(alive, workers))
    parent.kill()
    parent.join()
    while time.monotonic() < deadline and any(map(alive, workers)):
        time.sleep(0.05)
    assert not any(map(alive, workers))
