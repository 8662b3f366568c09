"""What a process keeps from shard to shard, and when it lets go of it."""

import time
from collections.abc import Iterator

import pytest

from openqwen2vl.engine import resident
from openqwen2vl.engine.placement import VISIBLE
from openqwen2vl.engine.ray_worker import call_on_gpus
from openqwen2vl.engine.resident import forget, forgetting, keep


@pytest.fixture(autouse=True)
def nothing() -> Iterator[None]:
    forget()
    yield
    forget()
    while resident._idle:
        resident._idle.pop().cancel()


def test_a_thing_is_made_once_a_run_and_goes_with_it() -> None:
    made = iter(range(9))
    assert [keep("one", name, lambda: next(made)) for name in "abab"] == [0, 1, 0, 1]
    assert keep("two", "a", lambda: next(made)) == 2
    assert keep("two", "a", lambda: next(made)) == 2
    assert keep("one", "b", lambda: next(made)) == 3
    assert len(resident._kept) == 1


def forgotten(within: float) -> bool:
    deadline = time.monotonic() + within
    while resident._kept and time.monotonic() < deadline:
        time.sleep(0.01)
    return not resident._kept


def test_an_idle_process_forgets_and_a_busy_one_does_not() -> None:
    with forgetting(0.05):
        keep("one", "a", object)
    assert forgotten(30)
    with forgetting(0.05):
        keep("one", "a", object)
    with forgetting(600):
        assert not forgotten(0.3), "the next call is at work"
    assert not forgotten(0.2)


def number(item: int) -> int:
    return keep("one", "a", lambda: item)


def test_a_worker_that_is_given_another_gpu_leaves_nothing_on_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("openqwen2vl.engine.ray_worker._GPUS", {})
    monkeypatch.setenv(VISIBLE, "0")
    assert [call_on_gpus(number, item) for item in (1, 2)] == [(1, []), (1, [])]
    monkeypatch.setenv(VISIBLE, "1")
    assert call_on_gpus(number, 3) == (3, [])
    assert resident._kept == {}
