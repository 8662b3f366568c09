import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.runs import PackedCorpora, Run, rows

from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.release.trained import load_model
from openqwen2vl.training.checkpoint import checkpoint_path
from openqwen2vl.training.csv_log import read_rows
from openqwen2vl.training.module import MLLMModule
from openqwen2vl.training.optim import adamw
from openqwen2vl.training.schedule import Schedule

WATCHED = (
    "budget.steps=3",
    "callbacks.validation.every_n_steps=2",
    "callbacks.answers.every_n_steps=2",
    "callbacks.answers.count=3",
    "callbacks.checkpoints.every_n_steps=1",
)
UNWATCHED = ("budget.steps=3", "~callbacks.validation", "~callbacks.answers")


def held_out_loss(run_dir: Path, step: int, corpora: PackedCorpora) -> float:
    """Measure a checkpoint on the held-out packs of grid 6, outside any run."""
    model, _ = load_model(checkpoint_path(run_dir / "checkpoints", step))
    data = PackedDataModule(
        mixture={"sources": {n: {"packs": str(corpora.packs(n, 6))} for n in ("red", "blue")}},
        resolution={"plan": [{"grid": 6, "until": 1.0}]},
        budget={"steps": 1},
        image_side=model.vision.side,
        global_batch=1,
        num_workers=0,
    )
    data.trainer = SimpleNamespace(global_rank=0, world_size=1)
    module = MLLMModule(model, partial(adamw, lr=1.0), Schedule(), 1, ["red", "blue"]).eval()
    with torch.no_grad():
        losses = torch.cat([module.losses(batch) for batch in data.validation_loader(6)])
    return losses.double().mean().item()


def test_the_held_out_loss_is_measured_when_due_and_at_the_end(
    call_train: Run, corpora: PackedCorpora, tmp_path: Path
) -> None:
    code, _, err = call_train(*WATCHED)
    assert code == 0, err
    _, found = read_rows(tmp_path / "run" / "metrics.csv")
    assert [bool(row["val_loss"]) for row in found] == [False, True, True]
    for row in found[1:]:
        wanted = held_out_loss(tmp_path / "run", int(row["step"]), corpora)
        assert float(row["val_loss"]) == pytest.approx(wanted, rel=1e-5)
        parts = [float(row["val_loss/red"]), float(row["val_loss/blue"])]
        assert min(parts) <= float(row["val_loss"]) <= max(parts)


def test_answers_are_sampled_from_held_out_documents(call_train: Run, tmp_path: Path) -> None:
    assert call_train(*WATCHED)[0] == 0
    lines = (tmp_path / "run" / "samples.jsonl").read_text().splitlines()
    samples = [json.loads(line) for line in lines]
    assert [sample["step"] for sample in samples] == [2, 2, 2]
    assert len({sample["uid"] for sample in samples}) == 3
    assert all(sample["wanted"].startswith("a ") for sample in samples)


@pytest.mark.parametrize("tokenizer", ["null", "/nowhere"])
def test_a_run_without_a_readable_tokenizer_has_no_answers_and_goes_on(
    call_train: Run, tmp_path: Path, tokenizer: str
) -> None:
    code, _, err = call_train(*WATCHED, f"tokenizer={tokenizer}")
    assert code == 0, err
    assert not (tmp_path / "run" / "samples.jsonl").exists()


def test_watching_a_run_does_not_change_it(call_train: Run, tmp_path: Path) -> None:
    assert call_train(*WATCHED)[0] == 0
    (tmp_path / "run").rename(tmp_path / "watched")
    assert call_train(*UNWATCHED)[0] == 0
    assert rows(tmp_path / "run") == rows(tmp_path / "watched")
