"""Runs told to Weights & Biases, offline: what they keep, and under which id."""

import time
from pathlib import Path

import pytest
import wandb
from support.runs import Run

from openqwen2vl.training.wandb_log import ID_FILE, run_id


def test_a_folder_keeps_its_id_and_another_has_another(tmp_path: Path) -> None:
    first, second = (run_id(tmp_path / "sweep" / name) for name in ("a", "b"))
    assert first == run_id(tmp_path / "sweep" / "a") != second
    assert (tmp_path / "sweep" / "a" / ID_FILE).read_text() == f"{first}\n"


@pytest.mark.slow
def test_a_resumed_run_goes_on_under_its_id_and_each_start_is_ended(
    call_train: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run_dir = tmp_path / "run"
    words = ("logger=wandb", "schedule.length=3")
    for settings in (("budget.steps=2",), ("budget.steps=3", "resume=last")):
        code, _, err = call_train(*words, *settings)
        assert code == 0, err
        assert wandb.run is None  # ended, not left to the interpreter's exit
    name = (run_dir / ID_FILE).read_text().strip()
    kept = sorted((run_dir / "wandb").glob("offline-run-*"))
    assert [path.name.rpartition("-")[2] for path in kept] == [name, name]
    for path in kept:
        # One of the config and one of the rows; wandb writes in a process of its own.
        assert comes(path / f"run-{name}.wandb", b"packs_root", b"grad_norm")


def comes(path: Path, *words: bytes) -> bool:
    """Whether a file holds all of these words before long."""
    deadline = time.monotonic() + 30
    while not all(word in path.read_bytes() for word in words):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
