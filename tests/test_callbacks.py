import json
import logging
from pathlib import Path
from typing import Any

import pytest
from support.trainer import ACCUMULATION, FakeTrainer, tiny_module

from openqwen2vl.callbacks import checkpoints as checkpoints_module
from openqwen2vl.callbacks.boundary import ends_step
from openqwen2vl.callbacks.checkpoints import Checkpoints
from openqwen2vl.callbacks.corrupt import CorruptLedger
from openqwen2vl.callbacks.resolution import ResolutionSwitch
from openqwen2vl.formats.errors import ConfigError, ShardError
from openqwen2vl.training.checkpoint import newest
from openqwen2vl.training.module import MLLMModule


@pytest.fixture
def module() -> MLLMModule:
    return tiny_module()


@pytest.mark.parametrize("accumulation", [1, 2, 5])
def test_a_step_ends_with_its_last_micro_batch(tmp_path: Path, accumulation: int) -> None:
    trainer = FakeTrainer(tmp_path, accumulate_grad_batches=accumulation)
    ends = [index for index in range(20) if ends_step(trainer, index)]
    assert ends == list(range(accumulation - 1, 20, accumulation))


class TestResolutionSwitch:
    def test_the_grid_follows_the_batches_at_ends_of_global_batches(
        self, tmp_path: Path, module: MLLMModule
    ) -> None:
        trainer, switch = FakeTrainer(tmp_path), ResolutionSwitch()
        for index, grid in enumerate([3, 3, 3, 6, 6, 6, 3]):
            batch = {"grid": grid, "step": index // ACCUMULATION}
            switch.on_train_batch_start(trainer, module, batch, index)
            assert module.model.projector.grid == grid

    @pytest.mark.parametrize("index", [1, 2, 4])
    def test_a_change_inside_a_global_batch_is_refused_with_both_grids(
        self, tmp_path: Path, module: MLLMModule, index: int
    ) -> None:
        with pytest.raises(RuntimeError, match="global batch 5 mixes grids 3 and 6"):
            ResolutionSwitch().on_train_batch_start(
                FakeTrainer(tmp_path), module, {"grid": 6, "step": 5}, index
            )
        assert module.model.projector.grid == 3

    def test_the_switch_is_logged_in_visual_tokens(
        self, tmp_path: Path, module: MLLMModule, caplog: pytest.LogCaptureFixture
    ) -> None:
        with caplog.at_level(logging.INFO):
            ResolutionSwitch().on_train_batch_start(
                FakeTrainer(tmp_path), module, {"grid": 6, "step": 4}, 12
            )
        assert caplog.messages == ["step 4: 36 visual tokens an image, before 9"]


class TestCheckpoints:
    def names(self, root: Path) -> list[str]:
        return sorted(path.name for path in (root / "checkpoints").iterdir())

    def test_it_saves_every_few_steps_and_at_the_end_and_keeps_the_newest(
        self, tmp_path: Path
    ) -> None:
        trainer = FakeTrainer(tmp_path)
        trainer.steps(Checkpoints(every_n_steps=4, every_minutes=None, keep=2), None, 10)
        assert trainer.saved == [4, 8, 10]
        assert self.names(tmp_path) == ["step_00000008.ckpt", "step_00000010.ckpt"]

    def test_it_saves_when_the_run_stops_early(self, tmp_path: Path) -> None:
        trainer = FakeTrainer(tmp_path, should_stop=True)
        trainer.steps(Checkpoints(every_n_steps=1000, every_minutes=None), None, 1)
        assert trainer.saved == [1]

    def test_it_saves_by_the_clock_counted_from_the_last_save(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = 0.0
        monkeypatch.setattr(checkpoints_module.time, "monotonic", lambda: now)
        trainer = FakeTrainer(tmp_path)
        callback = Checkpoints(every_n_steps=None, every_minutes=10)
        callback.on_train_start(trainer, None)
        for minute in (4, 9, 11, 15, 20, 21):
            now = 60.0 * minute
            trainer.steps(callback, None, 1)
        assert trainer.saved == [3, 6]

    def test_a_run_that_went_back_puts_the_later_checkpoints_aside(self, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoints"
        trainer = FakeTrainer(tmp_path)
        for course in ("first", "second"):
            for step in (2, 4, 6):
                (folder / f"step_{step:08d}.ckpt").mkdir(parents=True, exist_ok=True)
                (folder / f"step_{step:08d}.ckpt" / "meta.pt").write_text(course)
            trainer.global_step = 2
            callback = Checkpoints(every_n_steps=4, every_minutes=None, keep=2)
            callback.on_train_start(trainer, None)
            kept = ["step_00000002.ckpt", "step_00000004.ckpt.dropped"]
            assert self.names(tmp_path) == [*kept, "step_00000006.ckpt.dropped"]
            assert (folder / kept[1] / "meta.pt").read_text() == course
        trainer.steps(callback, None, 2)
        assert trainer.saved == [4]  # the step's own, not the one of the other course
        assert newest(tmp_path).name == "step_00000004.ckpt"

    @pytest.mark.parametrize("shared", [True, False])
    def test_ranks_that_write_together_must_see_one_folder(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
    ) -> None:
        monkeypatch.setattr(checkpoints_module, "_PATIENCE", 0.0)
        (tmp_path / "checkpoints").mkdir()
        other = FakeTrainer(tmp_path, world_size=2, is_global_zero=False)
        other.strategy.sharding_strategy = "FULL_SHARD"
        other.strategy.broadcast = lambda _: ".shared-1"
        made = tmp_path / "checkpoints" / ".shared-1"
        other.strategy.barrier = lambda: made.touch() if shared else None
        if shared:
            Checkpoints().on_train_start(other, None)
        else:
            with pytest.raises(ConfigError, match="is not the same folder on all ranks"):
                Checkpoints().on_train_start(other, None)
        first = FakeTrainer(tmp_path, world_size=2)
        first.strategy = other.strategy
        Checkpoints().on_train_start(first, None)
        assert self.names(tmp_path) == []

    def test_what_a_kill_left_half_written_or_half_deleted_goes(self, tmp_path: Path) -> None:
        folder = tmp_path / "checkpoints"
        for name in (".step_00000001.ckpt.old", ".step_00000003.ckpt.tmp"):
            (folder / name).mkdir(parents=True)
            (folder / name / "__0_0.distcp").touch()
        (folder / ".step_00000004.ckpt.tmp").touch()
        (folder / "step_00000002.ckpt").touch()
        other = FakeTrainer(tmp_path, global_step=2, is_global_zero=False)
        Checkpoints().on_train_start(other, None)
        assert len(self.names(tmp_path)) == 4
        Checkpoints().on_train_start(FakeTrainer(tmp_path, global_step=2), None)
        assert self.names(tmp_path) == ["step_00000002.ckpt"]

    def test_sharded_folders_are_pruned_like_files_and_strangers_are_left(
        self, tmp_path: Path
    ) -> None:
        folder = tmp_path / "checkpoints"
        (folder / "step_00000001.ckpt").mkdir(parents=True)
        (folder / "step_00000001.ckpt" / "meta.pt").touch()
        (folder / "mine.ckpt").touch()
        trainer = FakeTrainer(tmp_path, global_step=1)
        trainer.steps(Checkpoints(every_n_steps=1, every_minutes=None, keep=1), None, 1)
        assert self.names(tmp_path) == ["mine.ckpt", "step_00000002.ckpt"]

    def test_only_one_rank_prunes(self, tmp_path: Path) -> None:
        trainer = FakeTrainer(tmp_path, is_global_zero=False)
        trainer.steps(Checkpoints(every_n_steps=1, every_minutes=None, keep=1), None, 3)
        assert len(self.names(tmp_path)) == 3

    @pytest.mark.parametrize(
        "arguments", [{"keep": 0}, {"every_n_steps": -1}, {"every_minutes": -0.5}]
    )
    def test_bounds_that_make_no_sense_are_refused(self, arguments: dict[str, Any]) -> None:
        with pytest.raises(ConfigError, match="expected numbers above 0"):
            Checkpoints(**arguments)


class TestCorruptLedger:
    def test_every_corrupt_image_is_written_down_and_counted_by_step(
        self, tmp_path: Path, module: MLLMModule
    ) -> None:
        trainer, ledger = FakeTrainer(tmp_path, global_rank=2), CorruptLedger(limit=6)
        trainer.steps(ledger, module, 2, corrupt=[("uid-1", "truncated")], step=8)
        assert module.row["corrupt"] == ACCUMULATION
        lines = (tmp_path / "corrupt-rank2.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == [
            {"step": 8, "uid": "uid-1", "reason": "truncated"}
        ] * 6

    def test_more_than_the_limit_end_the_run_and_name_the_last(
        self, tmp_path: Path, module: MLLMModule
    ) -> None:
        trainer, ledger = FakeTrainer(tmp_path), CorruptLedger(limit=3)
        trainer.steps(ledger, module, 1, corrupt=[("uid-1", "truncated")], step=0)
        with pytest.raises(ShardError) as caught:
            trainer.steps(ledger, module, 1, corrupt=[("uid-2", "no image")], step=1)
        message = str(caught.value)
        assert "4 images could not be read, callbacks.corrupt.limit is 3" in message
        assert "document uid-2: no image" in message
        assert f"{tmp_path}/corrupt-rank0.jsonl" in message

    def test_sound_images_leave_no_ledger_and_a_zero_in_the_row(
        self, tmp_path: Path, module: MLLMModule
    ) -> None:
        FakeTrainer(tmp_path).steps(CorruptLedger(limit=0), module, 1, corrupt=[], step=0)
        assert module.row["corrupt"] == 0
        assert list(tmp_path.iterdir()) == []
