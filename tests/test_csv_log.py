from pathlib import Path

import pytest
import torch

from openqwen2vl.training import csv_log
from openqwen2vl.training.csv_log import StepCSVLogger, read_rows

STEPS = 6


def row(step: int) -> dict[str, float]:
    return {"loss": 1 / step, "lr": 1e-5 * step, "tokens": 100 * step}


def write(path: Path, first: int, last: int) -> None:
    """Log the rows of some steps, as one start of a run does."""
    logger = StepCSVLogger(path)
    for step in range(first, last + 1):
        logger.log_metrics(row(step), step)


def steps(path: Path) -> list[int]:
    return [int(found["step"]) for found in read_rows(path)[1]]


def test_a_row_is_on_disk_as_soon_as_it_is_logged(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.csv"
    logger = StepCSVLogger(path)
    for step in range(1, 4):
        logger.log_metrics(row(step), step)
        assert steps(path) == list(range(1, step + 1))


@pytest.mark.parametrize("checkpoint", range(STEPS))
def test_a_resumed_run_writes_every_step_once(tmp_path: Path, checkpoint: int) -> None:
    unbroken, resumed = tmp_path / "a.csv", tmp_path / "b.csv"
    write(unbroken, 1, STEPS)
    write(resumed, 1, STEPS - 1)
    write(resumed, checkpoint + 1, STEPS)
    assert resumed.read_bytes() == unbroken.read_bytes()


def test_a_kill_at_any_byte_is_healed_by_the_resumed_run(tmp_path: Path) -> None:
    unbroken, killed = tmp_path / "a.csv", tmp_path / "b.csv"
    write(unbroken, 1, STEPS)
    whole = unbroken.read_bytes()
    for cut in range(len(whole)):
        killed.write_bytes(whole[:cut])
        complete = steps(killed)
        # A checkpoint is written after its step's row, so no checkpoint is ahead of the file.
        write(killed, (complete[-1] if complete else 0) + 1, STEPS)
        assert killed.read_bytes() == whole, f"cut at byte {cut}"


def test_a_torn_last_line_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    assert read_rows(path) == (["step", "loss"], [{"step": "1", "loss": "0.5"}])


def test_no_file_has_no_rows(tmp_path: Path) -> None:
    assert read_rows(tmp_path / "metrics.csv") == ([], [])


def test_a_new_figure_gets_a_column_and_old_rows_an_empty_cell(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = StepCSVLogger(path)
    logger.log_metrics(row(1), 1)
    logger.log_metrics({**row(2), "val_loss": 0.25}, 2)
    logger.log_metrics(row(3), 3)
    columns, rows = read_rows(path)
    assert columns == ["step", "loss", "lr", "tokens", "val_loss"]
    assert [found["val_loss"] for found in rows] == ["", "0.25", ""]
    assert [found["tokens"] for found in rows] == ["100", "200", "300"]


def test_a_resumed_run_keeps_columns_that_it_does_not_write_itself(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    StepCSVLogger(path).log_metrics({**row(1), "val_loss": 0.5}, 1)
    StepCSVLogger(path).log_metrics({**row(2), "mfu": 0.1}, 2)
    columns, rows = read_rows(path)
    assert columns == ["step", "loss", "lr", "tokens", "val_loss", "mfu"]
    assert [(found["val_loss"], found["mfu"]) for found in rows] == [("0.5", ""), ("", "0.1")]


def test_a_kill_while_columns_are_added_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "metrics.csv"
    logger = StepCSVLogger(path)
    logger.log_metrics(row(1), 1)
    before = path.read_bytes()

    def killed(cells: list[str]) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(csv_log, "_line", killed)
    with pytest.raises(KeyboardInterrupt):
        logger.log_metrics({**row(2), "val_loss": 0.25}, 2)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("value", [0.1 + 0.2, 1e-300, float(torch.tensor(1 / 3)), float("nan")])
def test_a_number_is_read_back_bit_for_bit(tmp_path: Path, value: float) -> None:
    path = tmp_path / "metrics.csv"
    StepCSVLogger(path).log_metrics({"loss": value}, 1)
    (found,) = read_rows(path)[1]
    assert found["loss"] == repr(value)


def test_only_rows_with_a_loss_are_steps(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    logger = StepCSVLogger(path)
    logger.log_metrics({"epoch": 0}, 0)
    logger.log_metrics(row(1))
    assert not path.exists()
