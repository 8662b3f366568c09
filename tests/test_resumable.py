import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from support.trainer import FakeTrainer
from torch import nn
from torch.utils.data import DataLoader

from openqwen2vl.callbacks.boundary import ends_step
from openqwen2vl.callbacks.resume import Resumable


class Regression(pl.LightningModule):
    """The smallest model that Lightning trains."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: torch.Tensor, index: int) -> torch.Tensor:
        return self.layer(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAtEnds(pl.callbacks.Checkpoint):
    """Keeps what Lightning would write at the end of each step, as `Checkpoints` does."""

    def __init__(self) -> None:
        self.kept: dict[int, dict[str, Any]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, *rest: Any) -> None:
        if ends_step(trainer, rest[-1]):
            path = Path(trainer.default_root_dir) / "one.ckpt"
            trainer.save_checkpoint(path)
            self.kept[trainer.global_step] = torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Mapping[int, dict[int, dict[str, Any]]]:
    """Checkpoints of real Lightning runs: accumulation -> step -> content."""
    found = {}
    for accumulation in (1, 3):
        saver = SaveAtEnds()
        trainer = pl.Trainer(
            default_root_dir=tmp_path_factory.mktemp("lightning"),
            accelerator="cpu",
            max_steps=4,
            accumulate_grad_batches=accumulation,
            callbacks=[saver],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Regression(), DataLoader(torch.randn(40, 2), batch_size=1))
        found[accumulation] = saver.kept
    return found


@pytest.mark.parametrize("step", [1, 3, 4])
@pytest.mark.parametrize(("before", "now"), [(1, 1), (3, 3), (1, 3), (3, 1)])
def test_counters_are_those_that_lightning_would_have_written_itself(
    tmp_path: Path,
    written: Mapping[int, dict[int, dict[str, Any]]],
    before: int,
    now: int,
    step: int,
) -> None:
    loops = json.loads(json.dumps(written[before][step]["loops"]))
    trainer = FakeTrainer(tmp_path, accumulate_grad_batches=now)
    Resumable().on_load_checkpoint(trainer, None, {"global_step": step, "loops": loops})
    wanted = written[now][step]["loops"]["fit_loop"]
    for key in ("epoch_loop.batch_progress", "epoch_loop.state_dict", "epoch_progress"):
        assert loops["fit_loop"][key] == wanted[key], key


def test_a_checkpoint_of_no_step_is_left_alone(tmp_path: Path) -> None:
    Resumable().on_load_checkpoint(FakeTrainer(tmp_path), None, {"global_step": 0})
