import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.trainer import ACCUMULATION, FakeTrainer, tiny_module

from openqwen2vl.callbacks import steps as steps_module
from openqwen2vl.callbacks import throughput as throughput_module
from openqwen2vl.callbacks.record import RunRecord
from openqwen2vl.callbacks.steps import StepMetrics
from openqwen2vl.callbacks.throughput import Throughput
from openqwen2vl.formats.errors import ConfigError, UserError
from openqwen2vl.training.module import MLLMModule


@pytest.fixture
def module() -> MLLMModule:
    return tiny_module()


class Rows:
    """A logger that keeps what it is given."""

    def __init__(self) -> None:
        self.rows: list[tuple[int, dict[str, float]]] = []

    def log_metrics(self, row: dict[str, float], step: int) -> None:
        self.rows.append((step, dict(row)))


class TestStepMetrics:
    def test_each_step_is_one_row_of_sums_and_of_others_figures(
        self, tmp_path: Path, module: MLLMModule
    ) -> None:
        data = SimpleNamespace(
            global_batch=8, contents=lambda step: {"tokens": 100 + step, "images": 2}
        )
        log = Rows()
        trainer = FakeTrainer(tmp_path, datamodule=data, loggers=[log])
        metrics, module.grad_norm = StepMetrics(), torch.tensor(0.5)
        optimizer = SimpleNamespace(param_groups=[{"lr": 0.25}])
        metrics.on_before_optimizer_step(trainer, module, optimizer)
        for losses, sources in (([1.0, 3.0], [0, 0]), ([2.0], [0])):
            module.source_loss.update(torch.tensor(losses), torch.tensor(sources))
        module.row["corrupt"] = 7
        trainer.steps(metrics, module, 1, grid=6)
        ((step, row),) = log.rows
        assert step == 1
        assert row["loss/blue"] != row.pop("loss/blue")  # NaN: it had no target
        assert row == {
            "loss": 2.0,
            "lr": 0.25,
            "grad_norm": 0.5,
            "skipped": 0,
            "tokens": 100,
            "images": 2,
            "target_tokens": 3,
            "grid": 6,
            "packs_consumed": 8,
            "loss/red": 2.0,
            "target_tokens/red": 3,
            "target_tokens/blue": 0,
            "corrupt": 7,
        }

    def test_a_run_that_learns_nothing_more_ends(self, tmp_path: Path, module: MLLMModule) -> None:
        data = SimpleNamespace(global_batch=8, contents=lambda step: {})
        trainer = FakeTrainer(tmp_path, datamodule=data, max_steps=99)
        metrics = StepMetrics(most_lost=3)
        for norm, steps in ((torch.nan, 3), (0.5, 1), (torch.inf, 3)):
            module.grad_norm = torch.tensor(norm)
            trainer.steps(metrics, module, steps, grid=3)
        with pytest.raises(UserError, match="4 steps in a row up to step 8 had no finite"):
            trainer.steps(metrics, module, 1, grid=3)

    def test_nothing_of_a_step_leaks_into_the_next(
        self, tmp_path: Path, module: MLLMModule
    ) -> None:
        data = SimpleNamespace(global_batch=8, contents=lambda step: {})
        log = Rows()
        trainer = FakeTrainer(tmp_path, datamodule=data, loggers=[log])
        module.grad_norm, module.row["val_loss"] = torch.tensor(0.5), 1.5
        module.source_loss.update(torch.tensor([4.0]), torch.tensor([1]))
        trainer.steps(StepMetrics(), module, 1, grid=3)
        module.source_loss.update(torch.tensor([1.0]), torch.tensor([1]))
        trainer.steps(StepMetrics(), module, 1, grid=3)
        first, second = (row for _, row in log.rows)
        assert (first["loss"], second["loss"]) == (4.0, 1.0)
        assert "val_loss" in first
        assert "val_loss" not in second
        assert module.last_row["loss"] == 1.0

    def test_rows_of_a_device_that_runs_behind_wait_for_each_other_but_for_no_checkpoint(
        self, tmp_path: Path, module: MLLMModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(steps_module, "_runs_behind", lambda device: True)
        data = SimpleNamespace(global_batch=8, contents=lambda step: {})
        log = Rows()
        trainer = FakeTrainer(tmp_path, datamodule=data, loggers=[log])
        metrics = StepMetrics(every_n_steps=4)

        def step() -> list[int]:
            module.grad_norm = torch.tensor(float(trainer.global_step))
            module.source_loss.update(torch.tensor([float(trainer.global_step)]), torch.tensor([0]))
            trainer.steps(metrics, module, 1, grid=3)
            return [number for number, _ in log.rows]

        assert [step() for _ in range(5)] == [[], [], [], [1, 2, 3, 4], [1, 2, 3, 4]]
        metrics.on_save_checkpoint(trainer, module, {})
        assert [number for number, _ in log.rows] == [1, 2, 3, 4, 5]
        step()
        metrics.on_exception(trainer, module, RuntimeError())
        assert [(number, row["loss"], row["grad_norm"]) for number, row in log.rows] == [
            (number + 1, float(number), float(number)) for number in range(6)
        ]

    def test_rows_at_a_time_below_one_are_refused(self) -> None:
        with pytest.raises(ConfigError, match="every_n_steps is 0"):
            StepMetrics(every_n_steps=0)


class TestThroughput:
    def test_rates_are_what_was_done_over_the_time_it_took(
        self, tmp_path: Path, module: MLLMModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        monkeypatch.setattr(throughput_module.time, "perf_counter", lambda: now)
        callback, trainer = Throughput(peak_tflops=1e-3), FakeTrainer(tmp_path)
        callback.setup(trainer, module, "fit")
        callback.on_train_start(trainer, module)
        batch = {
            "tokens": 50,
            "input_ids": torch.zeros(1, 64),
            "pairs": 500,
            "target_ids": torch.zeros(10),
            "images": torch.zeros(2, 1),
            "grid": 3,
        }
        for index in range(ACCUMULATION):
            now += 1.0
            callback.on_train_batch_start(trainer, module, batch, index)
            now += 3.0
            callback.on_train_batch_end(trainer, module, None, batch, index)
        row = module.row
        assert row["tokens_per_second"] == 50 * ACCUMULATION / 12
        assert row["target_tokens_per_second"] == 10 * ACCUMULATION / 12
        assert row["images_per_second"] == 2 * ACCUMULATION / 12
        assert row["data_wait"] == 0.25
        assert row["tflops_per_device"] > 0
        assert row["mfu"] == pytest.approx(row["tflops_per_device"] / 1e-3)
        assert row["mfu_palm"] > 0


class TestRunRecord:
    def test_hours_of_all_starts_add_up_over_all_devices(
        self, tmp_path: Path, module: MLLMModule, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        clock = SimpleNamespace(monotonic=lambda: now)
        monkeypatch.setattr("openqwen2vl.callbacks.record.time", clock)
        data = SimpleNamespace(consumed=lambda steps: {"red": {"packs": 4 * steps}})
        trainer = FakeTrainer(tmp_path, world_size=2, datamodule=data)
        module.last_row = {"loss": 1.5}
        for start, end, done in ((0, 3600, 4), (9000, 9000 + 1800, 10)):
            now = float(start)
            record = RunRecord()
            record.on_train_start(trainer, module)
            assert json.loads((tmp_path / "run.json").read_text())["state"] == "running"
            trainer.global_step, now = done, float(end)
            record.on_train_end(trainer, module)
            told = json.loads((tmp_path / "run.json").read_text())
            assert told["state"] == ("finished" if done == 10 else "stopped")
        assert told["device_hours"] == pytest.approx(2 * 1.5)
        assert (told["step"], told["steps"], told["loss"]) == (10, 10, 1.5)
        assert json.loads((tmp_path / "consumed.json").read_text()) == {"red": {"packs": 40}}
