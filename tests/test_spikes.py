import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from support.trainer import FakeTrainer, tiny_module

from openqwen2vl.callbacks import spikes as spikes_module
from openqwen2vl.callbacks.spikes import LEDGER, LossSpikes
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.order import PackKey
from openqwen2vl.packing.provenance import Traced
from openqwen2vl.training.module import MLLMModule

CALM = [2.0, 2.1, 1.9, 2.05, 1.95, 2.02, 1.98, 2.03]


def joined(callback: LossSpikes, root: Path) -> MLLMModule:
    module = tiny_module()
    data = SimpleNamespace(mixture=None, order=None)
    callback.on_fit_start(FakeTrainer(root, datamodule=data), module)
    return module


def judged(module: MLLMModule, loss: float, norm: float = 1.0) -> bool:
    """Let the callback judge one step of this loss and this norm."""
    module.source_loss.reset()
    module.source_loss.update(torch.tensor([loss, loss]), torch.tensor([0, 1]))
    (judge,) = module.judges
    return bool(judge(torch.tensor(norm)))


def skips(module: MLLMModule, losses: list[float]) -> list[bool]:
    return [judged(module, loss) for loss in losses]


def test_a_leap_of_the_loss_or_of_the_norm_is_skipped_and_what_is_usual_is_not(
    tmp_path: Path,
) -> None:
    module = joined(LossSpikes("skip", least=5), tmp_path)
    assert not any(skips(module, CALM))
    assert judged(module, 9.0)
    assert module.row["loss_z"] > 10
    assert judged(module, 2.0, norm=50.0)
    assert module.row["grad_norm_z"] > 10 > module.row["loss_z"]
    assert not judged(module, 2.1)


def test_a_loss_that_falls_is_no_spike(tmp_path: Path) -> None:
    module = joined(LossSpikes("skip", least=5), tmp_path)
    assert not any(skips(module, [*CALM, 0.1, 0.01]))


def test_nothing_is_judged_before_there_is_enough_to_judge_by(tmp_path: Path) -> None:
    module = joined(LossSpikes("skip", least=5), tmp_path)
    assert skips(module, [2.0, 2.1, 1.9, 2.0, 90.0, 2.0, 90.0])[4:] == [False, False, True]


def test_only_logging_leaves_the_step_alone_and_marks_the_row(tmp_path: Path) -> None:
    module = joined(LossSpikes("log", least=5), tmp_path)
    assert not any(skips(module, [*CALM, 9.0]))
    assert module.row["spike"] == 1


def test_spikes_do_not_become_the_measure_but_a_new_level_does(tmp_path: Path) -> None:
    module = joined(LossSpikes("skip", least=5, window=8, in_a_row=3), tmp_path)
    assert not any(skips(module, CALM))
    assert skips(module, [9.0, 9.1, 9.0]) == [True, True, True]
    # The fourth in a row counts as usual and enters the window, like every fourth after it.
    found = skips(module, [9.05, 8.95, 9.02, 8.98, 9.03, 9.0, 9.01, 9.0] * 3)
    assert not found[0]
    assert not any(found[-4:])


def test_another_grid_is_no_spike_but_the_start_of_another_window(tmp_path: Path) -> None:
    callback = LossSpikes("skip", least=5)
    module = joined(callback, tmp_path)
    trainer = FakeTrainer(tmp_path)

    def at(grid: int, losses: list[float]) -> list[bool]:
        callback.on_train_batch_start(trainer, module, {"grid": grid}, 0)
        return skips(module, losses)

    assert not any(at(3, CALM))
    assert not any(at(6, [9.0, 9.1, 8.9, 9.05, 8.95]))
    assert at(6, [9.0, 30.0]) == [False, True]
    resumed = LossSpikes("skip", least=5)
    resumed.load_state_dict(callback.state_dict())
    callback, module = resumed, joined(resumed, tmp_path)
    assert at(6, [30.0]) == [True]
    assert at(9, [30.0]) == [False]


def test_a_value_that_is_no_number_never_enters_the_window(tmp_path: Path) -> None:
    module = joined(LossSpikes("skip", least=5, window=8), tmp_path)
    skips(module, CALM)
    assert skips(module, [float("nan")] * 20 + [float("inf")] + [2.0]) == [
        *[False] * 20,
        True,
        False,
    ]
    assert judged(module, 9.0)


@pytest.mark.parametrize("cut", [3, 8, 10])
def test_a_resumed_run_judges_as_the_unbroken_one(tmp_path: Path, cut: int) -> None:
    losses = [*CALM, 9.0, 2.0, 2.1, 1.8, 9.0, 2.0]
    whole = joined(LossSpikes("skip", least=5, window=8), tmp_path)
    expected = skips(whole, losses)
    before = LossSpikes("skip", least=5, window=8)
    found = skips(joined(before, tmp_path), losses[:cut])
    after = LossSpikes("skip", least=5, window=8)
    after.load_state_dict(before.state_dict())
    module = joined(after, tmp_path)
    assert found + skips(module, losses[cut:]) == expected
    assert torch.equal(module.row["loss_z"], whole.row["loss_z"])


def test_an_event_names_the_documents_of_its_global_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def trace(mixture: Any, order: Any, step: int) -> list[Traced]:
        asked.append(step)
        return [Traced("red", PackKey(3, 0, 0, 17), 0, {"uid": "u1", "key": "k1"})]

    monkeypatch.setattr(spikes_module, "trace_step", trace)
    module = joined(LossSpikes("log"), tmp_path)
    row = {"loss": 9.0, "grad_norm": 1.0, "loss_z": 12.0, "grad_norm_z": 0.0, "skipped": 0}
    (reader,) = module.readers
    reader(41, {**row, "spike": 0.0})
    assert not (tmp_path / LEDGER).exists()
    reader(42, {**row, "spike": 1.0})
    event = json.loads((tmp_path / LEDGER).read_text())
    assert asked == [41]  # global batches count from 0, steps from 1
    assert event == {
        "step": 42,
        **row,
        "documents": [{"source": "red", "pack": 17, "uid": "u1", "key": "k1"}],
    }


def test_a_step_without_a_finite_gradient_is_recorded_as_plain_json(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(spikes_module, "trace_step", lambda *given: [])
    (reader,) = joined(LossSpikes(), tmp_path).readers
    nan, inf = float("nan"), float("inf")
    figures = {"loss": nan, "grad_norm": inf, "loss_z": nan, "grad_norm_z": nan}
    reader(3, {**figures, "skipped": 1, "spike": 0.0})
    event = json.loads((tmp_path / LEDGER).read_text(), parse_constant=pytest.fail)
    assert event == {"step": 3, **dict.fromkeys(figures), "skipped": 1, "documents": []}


def test_a_resumed_run_tells_no_event_twice(tmp_path: Path) -> None:
    kept = '{"step": 3, "loss": 1.0}\n{"step": 8, "loss": 2.0}\n'
    (tmp_path / LEDGER).write_text(kept + '{"step": 9, "loss": 3.0}\n{"step": 1')
    LossSpikes().on_train_start(FakeTrainer(tmp_path, global_step=8, is_global_zero=False), None)
    assert '"step": 9' in (tmp_path / LEDGER).read_text()
    LossSpikes().on_train_start(FakeTrainer(tmp_path, global_step=8), None)
    assert (tmp_path / LEDGER).read_text() == kept


def test_the_window_is_taken_over_on_the_runs_device_whenever_it_comes(tmp_path: Path) -> None:
    """A sharded strategy loads callbacks after `on_fit_start` has moved the window to the GPU."""
    state = LossSpikes().state_dict()
    callback = LossSpikes()
    for name in ("_history", "_place", "_row"):
        setattr(callback, name, getattr(callback, name).to("meta"))
    callback.load_state_dict(state)
    for name in ("_history", "_place", "_row"):
        assert getattr(callback, name).device.type == "meta"


@pytest.mark.parametrize(
    "settings", [{"action": "stop"}, {"threshold": 0}, {"least": 2}, {"least": 9, "window": 8}]
)
def test_settings_that_judge_nothing_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"callbacks\.spikes"):
        LossSpikes(**settings)
