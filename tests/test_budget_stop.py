"""`trainer.max_gpu_hours`: a run ends with a checkpoint, and a resumed one goes on counting."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.runs import PackedCorpora, Run, assert_one_message, rows
from support.runs import train as train_run
from support.trainer import FakeTrainer, tiny_module

from openqwen2vl.callbacks.record import RunRecord
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.checkpoint import newest, read_facts
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.trainer import Trainer


@pytest.fixture
def module() -> MLLMModule:
    return tiny_module()


class Clock:
    """Seconds that a test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        clock = SimpleNamespace(monotonic=lambda: self.now)
        monkeypatch.setattr("openqwen2vl.callbacks.record.time", clock)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def a_trainer(root: Path, **changes: Any) -> FakeTrainer:
    data = SimpleNamespace(consumed=lambda steps: {})
    return FakeTrainer(root, datamodule=data, **changes)


def told(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "run.json").read_text())
    return found


def test_a_run_stops_at_the_step_that_reaches_its_hours(
    tmp_path: Path, module: MLLMModule, clock: Clock
) -> None:
    trainer, record = a_trainer(tmp_path, world_size=4, max_gpu_hours=10.0), RunRecord()
    record.on_train_start(trainer, module)
    stopped = []
    for step in range(1, 5):
        clock.now = step * 3600.0  # four devices: four hours a step
        trainer.steps(record, module, 1)
        stopped.append(trainer.should_stop)
    assert stopped == [False, False, True, True]
    record.on_train_end(trainer, module)
    assert told(tmp_path)["state"] == "stopped"
    assert told(tmp_path)["stopped_by"] == "trainer.max_gpu_hours"


def test_without_a_bound_or_with_lightnings_own_trainer_nothing_stops(
    tmp_path: Path, module: MLLMModule, clock: Clock
) -> None:
    for changes in ({}, {"max_gpu_hours": None}):
        trainer, record = a_trainer(tmp_path, **changes), RunRecord()
        record.on_train_start(trainer, module)
        clock.now += 1e9
        trainer.steps(record, module, 1)
        assert not trainer.should_stop


def test_a_run_that_breaks_off_says_so_and_what_it_took(
    tmp_path: Path, module: MLLMModule, clock: Clock
) -> None:
    trainer, record = a_trainer(tmp_path), RunRecord()
    record.on_exception(trainer, module, ValueError())  # before it began: nothing is known of it
    assert not (tmp_path / "run.json").exists()
    record.on_train_start(trainer, module)
    clock.now = 1800.0
    record.on_exception(trainer, module, ValueError())
    assert (told(tmp_path)["state"], told(tmp_path)["device_hours"]) == ("failed", 0.5)


def test_a_resumed_run_counts_on_by_device(
    tmp_path: Path, module: MLLMModule, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = iter(["NVIDIA A100", "NVIDIA H100"])
    for hours, total in ((1.0, 2.0), (2.0, 6.0)):
        name = next(names)
        monkeypatch.setattr("openqwen2vl.callbacks.record._device", lambda _, name=name: name)
        trainer = a_trainer(tmp_path, world_size=2, global_step=int(total > 2))
        record = RunRecord()
        record.on_train_start(trainer, module)
        clock.now += hours * 3600
        record.on_train_end(trainer, module)
        assert told(tmp_path)["gpu_hours"] == pytest.approx(total)
    assert told(tmp_path)["hours_by_device"] == pytest.approx({"NVIDIA A100": 2, "NVIDIA H100": 4})
    assert told(tmp_path)["cpu_hours"] == 0
    again = a_trainer(tmp_path, global_step=1, max_gpu_hours=6.0)
    with pytest.raises(ConfigError, match=r"has taken 6 GPU-hours, trainer\.max_gpu_hours is 6"):
        RunRecord().on_train_start(again, module)


def test_a_run_killed_before_its_first_checkpoint_counts_on_from_its_folder(
    tmp_path: Path, module: MLLMModule, clock: Clock
) -> None:
    for start in (1, 2, 3):
        trainer, record = a_trainer(tmp_path, world_size=2), RunRecord()
        record.on_train_start(trainer, module)
        clock.now += 3600
        trainer.steps(record, module, 1)  # killed thereafter: nothing ends it
        assert told(tmp_path)["device_hours"] == pytest.approx(2.0 * start)
        assert [one["step"] for one in told(tmp_path)["starts"]] == [0] * start
    again = a_trainer(tmp_path, world_size=2, max_gpu_hours=6.0)
    with pytest.raises(ConfigError, match="give it more to go on"):
        RunRecord().on_train_start(again, module)


def test_a_checkpoint_carries_its_cost_into_another_folder(
    tmp_path: Path, module: MLLMModule, clock: Clock
) -> None:
    record = RunRecord()
    trainer = a_trainer(tmp_path / "one", world_size=2)
    record.on_train_start(trainer, module)
    clock.now += 1800
    checkpoint: dict[str, Any] = {}
    record.on_save_checkpoint(trainer, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    cost = checkpoint["openqwen2vl"]["cost"]
    assert (cost["device"], cost["devices"]) == ("cpu", 2)
    assert (cost["cpu_hours"], cost["gpu_hours"]) == (pytest.approx(1.0), 0)
    other, record = a_trainer(tmp_path / "two", global_step=4), RunRecord()
    record.on_load_checkpoint(other, module, checkpoint)
    record.on_train_start(other, module)
    clock.now += 3600
    record.on_train_end(other, module)
    assert told(tmp_path / "two")["device_hours"] == pytest.approx(2.0)


@pytest.mark.parametrize("hours", [0, -1.0, True, "many"])
def test_a_bound_that_makes_no_sense_is_refused(hours: Any) -> None:
    with pytest.raises(ConfigError, match="expected a number above 0"):
        Trainer(max_gpu_hours=hours)


def test_the_key_is_checked_like_the_trainers_own(call_train: Run) -> None:
    assert_one_message(
        call_train("trainer.max_gpu_hours=many"),
        "trainer.max_gpu_hours is 'many'; expected a number",
    )
    assert_one_message(call_train("trainer.max_gpu_hors=1"), "mean 'max_gpu_hours'?")


@pytest.mark.slow
def test_a_run_out_of_hours_saves_and_its_resumption_repeats_the_unbroken_run(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    unbroken = train_run(corpora, tmp_path / "unbroken")
    assert unbroken.returncode == 0, unbroken.stderr
    # One millionth of an hour: the first step spends it.
    broken = train_run(
        corpora,
        tmp_path / "broken",
        trainer__max_gpu_hours=1e-6,
        callbacks__checkpoints__every_n_steps=1000,
    )
    assert broken.returncode == 0, broken.stderr
    first = told(tmp_path / "broken")
    assert (first["state"], first["step"]) == ("stopped", 1)
    assert first["stopped_by"] == "trainer.max_gpu_hours"
    refused = train_run(corpora, tmp_path / "broken", resume="last", trainer__max_gpu_hours=1e-6)
    assert refused.returncode == 2
    assert "give it more to go on" in refused.stderr
    resumed = train_run(corpora, tmp_path / "broken", resume="last", trainer__max_gpu_hours=10)
    assert resumed.returncode == 0, resumed.stderr
    assert rows(tmp_path / "broken") == rows(tmp_path / "unbroken")
    last = told(tmp_path / "broken")
    assert last["state"] == "finished"
    assert last["cpu_hours"] > first["cpu_hours"] > 0
    cost = read_facts(newest(tmp_path / "broken"))["cost"]
    assert first["cpu_hours"] < cost["cpu_hours"] <= last["cpu_hours"]
