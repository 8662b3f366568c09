"""What stops or saves a run of several ranks: signals, warnings and clocks, decided together."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.trainer import ACCUMULATION, FakeTrainer

from openqwen2vl.callbacks import boundary
from openqwen2vl.callbacks import checkpoints as checkpoints_module
from openqwen2vl.callbacks.boundary import AnyRank
from openqwen2vl.callbacks.checkpoints import Checkpoints
from openqwen2vl.callbacks.stop import StopOnSignal

ASKED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
Stop = tuple[StopOnSignal, FakeTrainer]


def started(root: Path) -> Stop:
    callback, trainer = StopOnSignal(), FakeTrainer(root)
    trainer.fit_loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    callback.on_train_start(trainer, None)
    return callback, trainer


@pytest.fixture
def stop(tmp_path: Path) -> Iterator[Stop]:
    """The callback of a run under way; the process's own handlers come back."""
    before = [signal.getsignal(number) for number in ASKED]
    callback, trainer = started(tmp_path)
    yield callback, trainer
    callback.on_train_end(trainer, None)
    assert [signal.getsignal(number) for number in ASKED] == before


@pytest.mark.parametrize("number", ASKED)
def test_a_signal_stops_the_run_at_the_end_of_its_global_batch(stop: Stop, number: int) -> None:
    callback, trainer = stop
    trainer.steps(callback, None, 1)
    assert not trainer.should_stop
    os.kill(os.getpid(), number)
    callback.on_train_batch_end(trainer, None, None, None, ACCUMULATION)
    assert not trainer.should_stop
    trainer.steps(callback, None, 1)
    assert trainer.should_stop


def test_a_second_ctrl_c_ends_the_process_at_once(stop: Stop) -> None:
    os.kill(os.getpid(), signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        os.kill(os.getpid(), signal.SIGINT)


@pytest.fixture
def owner() -> Iterator[list[int]]:
    """Someone who handles a warning, as submitit does; gives what reached it."""
    heard: list[int] = []
    old = signal.signal(signal.SIGUSR2, lambda number, frame: heard.append(number))
    yield heard
    signal.signal(signal.SIGUSR2, old)


def test_a_warnings_owner_has_its_turn_once_when_all_callbacks_are_done(
    tmp_path: Path, owner: list[int]
) -> None:
    callback, trainer = started(tmp_path)
    os.kill(os.getpid(), signal.SIGUSR2)
    os.kill(os.getpid(), signal.SIGUSR2)
    trainer.steps(callback, None, 1)
    callback.on_train_end(trainer, None)
    assert (trainer.should_stop, owner) == (True, [])
    callback.teardown(trainer, None, "fit")
    callback.teardown(trainer, None, "fit")
    assert owner == [signal.SIGUSR2]


def test_without_a_warning_its_owner_hears_nothing(tmp_path: Path, owner: list[int]) -> None:
    callback, trainer = started(tmp_path)
    os.kill(os.getpid(), signal.SIGTERM)
    callback.on_train_end(trainer, None)
    callback.teardown(trainer, None, "fit")
    assert owner == []


def test_an_ignored_warning_stays_ignored(tmp_path: Path) -> None:
    old = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        callback, trainer = started(tmp_path)
        os.kill(os.getpid(), signal.SIGUSR1)
        trainer.steps(callback, None, 1)
        assert not trainer.should_stop
        callback.on_train_end(trainer, None)
    finally:
        signal.signal(signal.SIGUSR1, old)


def test_a_crashed_run_keeps_no_handler(tmp_path: Path) -> None:
    before = [signal.getsignal(number) for number in ASKED]
    callback, trainer = started(tmp_path)
    callback.on_exception(trainer, None, ValueError())
    assert [signal.getsignal(number) for number in ASKED] == before


class Votes:
    """In place of a GPU: takes a question, and remembers when its answer was waited for."""

    def __init__(self, others: bool = False) -> None:
        self.others, self.sent, self.waited = others, 0, []  # type: ignore[var-annotated]

    def send(self, mine: bool, device: torch.device) -> Callable[[], bool]:
        self.sent += 1
        number = self.sent

        def answer() -> bool:
            self.waited.append((number, self.sent))
            return mine or self.others

        return answer


def on_gpus(root: Path, monkeypatch: pytest.MonkeyPatch, votes: Votes, **more: Any) -> FakeTrainer:
    monkeypatch.setattr(boundary, "_send", votes.send)
    trainer = FakeTrainer(root, world_size=2, **more)
    trainer.strategy.root_device = torch.device("cuda:0")
    trainer.strategy.reduce_boolean_decision = None  # it would wait for the GPU
    return trainer


def test_a_gpus_answer_is_waited_for_a_step_later_when_it_has_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = Votes()
    trainer, any_rank = on_gpus(tmp_path, monkeypatch, votes), AnyRank()
    said = [any_rank(trainer, mine) for mine in (False, True, False, False)]
    assert said == [False, False, True, False]
    assert votes.waited == [(1, 2), (2, 3), (3, 4)]


def test_one_device_asks_nobody(tmp_path: Path) -> None:
    trainer = FakeTrainer(tmp_path)
    trainer.strategy = None
    assert [AnyRank()(trainer, mine) for mine in (True, False)] == [True, False]


def test_ranks_on_cpus_hear_each_other_in_the_same_step(tmp_path: Path) -> None:
    trainer, any_rank = FakeTrainer(tmp_path, world_size=2), AnyRank()
    asked = []
    trainer.strategy.reduce_boolean_decision = lambda mine, all: asked.append((mine, all)) or 1
    assert any_rank(trainer, False) is True
    assert asked == [(False, False)]


def test_another_ranks_signal_stops_this_one_on_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = on_gpus(tmp_path, monkeypatch, Votes(others=True))
    stopped = []
    callback = StopOnSignal()
    for _ in range(2):
        trainer.steps(callback, None, 1)
        stopped.append(trainer.should_stop)
    assert stopped == [False, True]


def test_gpus_save_once_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now)
    trainer = on_gpus(tmp_path, monkeypatch, Votes(), max_steps=100)
    callback = Checkpoints(every_n_steps=None, every_minutes=10)
    callback.on_train_start(trainer, None)
    for minute in range(1, 31):
        now = 60.0 * minute
        trainer.steps(callback, None, 1)
    # Late after 10 minutes, told a step later, and the clock starts anew with the save.
    assert trainer.saved == [11, 22]
