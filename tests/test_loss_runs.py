"""The loss's implementations in the module, in configs and in whole runs."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.batches import lay_out, random_document, random_images
from support.compose import composed
from support.runs import PackedCorpora, train
from support.trainer import tiny_module

from openqwen2vl.commands.train import SCHEMA
from openqwen2vl.config import check
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training import module as training
from openqwen2vl.training.csv_log import read_rows
from openqwen2vl.training.loss import Losses
from openqwen2vl.training.loss_choices import choose_losses

needs_operator = pytest.mark.skipif(
    not hasattr(torch.nn, "LinearCrossEntropyOptions"), reason="this torch has no such operator"
)


def batch() -> dict[str, Any]:
    documents = [random_document(12, 0, 1), random_document(9, 1), random_document(7, 2, 2)]
    positions = torch.tensor([9, 10, 11, 24, 25])
    laid: dict[str, Any] = dict(lay_out([documents], random_images(3), 64))
    return laid | {"target_positions": positions, "target_ids": torch.arange(5, 10)}


@needs_operator
def test_a_module_gives_the_same_losses_by_either_name(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def choose(name: str, device: str) -> Losses:
        asked.append(name)
        return choose_losses(name, device)

    monkeypatch.setattr(training, "choose_losses", choose)
    plain, other = tiny_module(), tiny_module()
    other._loss = "linear_cross_entropy"
    found = [module.losses(batch()) for module in (plain, other)]
    assert asked == ["auto", "linear_cross_entropy"]
    torch.testing.assert_close(*found, rtol=1e-5, atol=1e-5)


def test_training_does_not_begin_with_a_loss_that_cannot_run() -> None:
    module = tiny_module()
    module._loss = "liger"
    with pytest.raises(ConfigError, match="loss=liger runs Triton kernels"):
        module.on_fit_start()


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("loss=fused", "loss is 'fused'; there are auto, chunked, linear_cross_entropy, liger"),
        ("loss=null", "loss is None; there are"),
        ("loss=liger", "loss=liger runs Triton kernels"),
        ("attention=flex", "attention=flex cannot train on a CPU"),
    ],
)
def test_a_config_that_a_cpu_cannot_run_is_refused_before_anything_is_read(
    override: str, told: str
) -> None:
    with pytest.raises(ConfigError, match=told):
        check(composed("stage=pretrain", "model=tiny", override), SCHEMA)


@pytest.mark.parametrize("override", ["loss=liger", "attention=flex"])
def test_what_a_gpu_runs_is_judged_there(override: str) -> None:
    check(composed("stage=pretrain", "model=tiny", "trainer=gpu", override), SCHEMA)


@pytest.mark.slow
@needs_operator
def test_a_sharded_run_with_torchs_loss_follows_the_same_curve(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    sharded = {
        "strategy": "fsdp",
        "strategy__param_dtype": "fp32",
        "trainer__devices": 2,
        "loss": "linear_cross_entropy",
    }
    curves = []
    for name, changes in (("plain", {}), ("sharded", sharded)):
        done = train(corpora, tmp_path / name, budget__steps=3, **changes)
        assert done.returncode == 0, done.stderr
        rows = read_rows(tmp_path / name / "metrics.csv")[1]
        curves.append([float(row["loss"]) for row in rows])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)
