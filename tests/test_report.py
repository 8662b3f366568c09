"""The page of a run, from folders written by hand."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from support.reported import Outline, on_gpu, record, row, rows, write_folder
from support.runs import Run, assert_one_message

from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.report.files import read_run
from openqwen2vl.training.report.headline import headline
from openqwen2vl.training.report.page import REPORT, write_report
from openqwen2vl.training.run_folder import RunFolder

CPU_PANELS = [
    "Loss, nats a target token",
    "Loss by source",
    "Learning rate",
    "Gradient norm",
    "Tokens a second",
    "Time waiting for data, %",
    "Seconds a step",
]


def test_a_run_on_a_cpu_shows_what_it_has_and_says_what_it_lacks(tmp_path: Path) -> None:
    page = Outline(write_folder(tmp_path / "run", rows(20), record=record(20, 20)))
    assert page.panels == CPU_PANELS
    for name in ("held-out loss: not measured", "MFU: no peak is known for NVIDIA", "peak memory:"):
        assert f"Left out: {name}" in page.text
    assert page.tiles()["of the time waiting for data"] == "25.0%"
    assert page.tiles()["step 20 of 20"] == "finished"


def test_a_run_on_a_gpu_shows_mfu_memory_and_held_out_loss(tmp_path: Path) -> None:
    told = [row(step, **on_gpu(step)) for step in range(1, 21)]
    for step, loss in ((10, 2.5), (20, 2.75)):
        told[step - 1] |= {"val_loss": loss, "val_loss/red": loss, "val_loss/blue": loss}
    page = Outline(write_folder(tmp_path / "run", told, record=record(20, 20)))
    others = {"MFU, %", "Peak memory, GiB", "Held-out loss", "Held-out loss by source"}
    assert set(page.panels) == {*CPU_PANELS, *others}
    assert "Left out" not in page.text
    assert page.tiles()["held-out loss"] == "2.750"
    assert "best 2.500 at step 10" in page.text
    assert page.tiles()["MFU, median"] == "40.0%"
    assert page.tiles()["peak memory"] == "60.2 GiB"
    assert page.tiles()["GPU-hours of NVIDIA H200"] == "2"


def test_tokens_are_a_second_reading_of_the_steps(tmp_path: Path) -> None:
    page = Outline(write_folder(tmp_path / "run", rows(20)))
    for figure in page.figures:
        readings = re.findall(r">([\d.]+k?)</text>", figure.split("tokens</text>")[1])
        assert "20k" in readings  # tokens at step 20
        assert "20" in readings


def test_the_clipping_norm_is_drawn(tmp_path: Path) -> None:
    page = Outline(write_folder(tmp_path / "run", rows(9), config={"clip": 0.25}))
    drawn = [name for name, one in zip(page.panels, page.figures, strict=True) if "clipped" in one]
    assert drawn == ["Gradient norm"]
    assert "clipped above 0.25" in page.text


def test_phases_of_resolution_are_shaded_in_every_chart(tmp_path: Path) -> None:
    told = [row(step, grid=12 if step <= 15 else 27) for step in range(1, 31)]
    page = Outline(write_folder(tmp_path / "run", told))
    for figure in page.figures:
        assert "144 tokens an image" in figure
        assert "729 tokens an image" in figure
        (band,) = re.findall(r'<rect class="band" x="([\d.]+)" y="\d+" width="([\d.]+)"', figure)
        assert float(band[0]) == pytest.approx(52 + 368 / 2, abs=0.1)


@pytest.mark.parametrize(
    ("starts", "marked"),
    [((0,), 0), ((0, 12), 1), ((0, 12, 12), 1), ((0, 12, 6), 1), ((0, 6, 12), 2)],
)
def test_restarts_whose_rows_still_stand_are_marked_in_every_chart(
    tmp_path: Path, starts: tuple[int, ...], marked: int
) -> None:
    folder = write_folder(tmp_path / "run", rows(20), record=record(20, 20, starts=starts))
    page = Outline(folder)
    assert [figure.count('stroke-dasharray="5 3"') for figure in page.figures] == [
        marked for _ in CPU_PANELS
    ]
    restarts = len(starts) - 1
    assert page.tiles()["restart" if restarts == 1 else "restarts"] == str(restarts)
    assert ("from step 12" in page.text) == (12 in starts)
    assert (">restart</span>" in page.html) == (marked > 0)


def test_rows_that_stand_twice_mark_a_restart_too(tmp_path: Path) -> None:
    told = [*rows(12), *(row(step) for step in range(9, 21))]
    page = Outline(write_folder(tmp_path / "run", told))
    assert all(figure.count('stroke-dasharray="5 3"') == 1 for figure in page.figures)
    assert page.tiles()["tokens"] == "20k"


def test_steps_without_a_finite_gradient_are_counted_and_do_not_break_the_lines(
    tmp_path: Path,
) -> None:
    told = rows(20)
    for step in (5, 9):
        told[step - 1] |= {"loss": math.nan, "grad_norm": math.inf, "skipped": 1}
    none = {"loss": None, "grad_norm": None, "loss_z": None, "grad_norm_z": None, "skipped": 1}
    leap = {"loss": 9.0, "grad_norm": 4.0, "loss_z": 12.0, "grad_norm_z": 1.0, "skipped": 0}
    documents = [{"source": "red"}, {"source": "blue"}, {"source": "red"}, {"source": "red"}]
    spikes = [{"step": step, **none, "documents": documents} for step in (5, 9)]
    spikes.append({"step": 7, **leap, "documents": documents})
    folder = write_folder(tmp_path / "run", told, spikes=spikes)
    (folder / "trace-step-7.html").touch()
    page = Outline(folder)
    assert page.tiles()["skipped steps"] == "2"
    assert page.tiles()["spike"] == "1"
    loss, norm = (
        page.figures[page.panels.index(name)]
        for name in ("Loss, nats a target token", "Gradient norm")
    )
    for figure in (loss, norm):
        assert figure.count('class="event" x1') == 2
        assert not re.search(r'points="[^"]*(nan|inf)', figure)
    assert re.findall(r"<tr><td>(?:<a href=\"trace-step-7.html\">)?([79])<", page.html) == [
        "7",
        "9",
    ]
    assert "red 75%" in page.text
    assert "step=N loss=true" in page.text


@pytest.mark.parametrize(
    "files", [{"config": {"stage": "sft"}}, {"record": record(0, 10, "failed")}]
)
def test_a_run_without_a_step_has_a_page_without_charts(
    tmp_path: Path, files: dict[str, Any]
) -> None:
    page = Outline(write_folder(tmp_path / "run", **files))
    assert page.panels == []
    assert "No step has been written yet." in page.text


def test_one_step_is_enough_for_a_page(tmp_path: Path) -> None:
    assert Outline(write_folder(tmp_path / "run", rows(1))).panels == CPU_PANELS


def test_a_run_that_says_it_runs_is_believed_while_its_process_lives(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", rows(10), record=record(10, 30, "running"))
    assert headline(read_run(folder)).state == "killed"
    writer = RunFolder(folder)
    writer.lock()
    figures = headline(read_run(folder))
    assert figures.state == "under way"
    assert figures.hours_left == pytest.approx(20 * 0.5 / 3600)
    assert "under way at step 10 of 30, about 10 s to go" in Outline(folder).text


def test_a_run_of_100_000_steps_has_a_small_page_quickly(tmp_path: Path) -> None:
    line = {name: value for name, value in (row(7) | on_gpu(7)).items() if name != "step"}
    names = ",".join(["step", *line])
    folder = write_folder(tmp_path / "run", record=record(10**5, 10**5, starts=(0, 60_000)))
    with (folder / "metrics.csv").open("w") as file:
        file.write(f"{names}\n")
        for step in range(1, 10**5 + 1):
            noise = 2 + (step * 2654435761 % 1000) / 1000
            figures = [noise if value in (0.5, line["loss"]) else value for value in line.values()]
            file.write(f"{step},{','.join(map(str, figures))}\n")
    began = time.process_time()
    path = write_report(folder)
    assert time.process_time() - began < 2
    assert path.stat().st_size < 10**6
    lines = re.findall(r'points="(.*?)"', path.read_text())
    assert max(len(line.split()) for line in lines) <= 1000
    assert len(lines) > 10


def test_the_command_writes_the_page_and_gives_its_figures(call: Run, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "run", rows(20), record=record(20, 20, starts=(0, 5)))
    code, out, err = call("report", f"run={folder}", "json=true")
    assert code == 0, err
    figures = json.loads(out.splitlines()[-1])
    assert (figures["state"], figures["step"], figures["restarts"]) == ("finished", 20, 1)
    assert figures["hours"] == 2.0
    assert figures["page"] == str(folder / REPORT)
    assert "Gradient norm" in (folder / REPORT).read_text()
    code, _, err = call("report", f"run={folder}", f"out={tmp_path / 'other.html'}")
    assert code == 0, err
    assert (tmp_path / "other.html").is_file()


def test_a_folder_without_a_run_is_answered(call: Run, tmp_path: Path) -> None:
    assert_one_message(call("report", f"run={tmp_path}"), "holds no run", "run=runs/NAME")


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    folder = write_folder(tmp_path / "run", rows(2))
    (folder / "run.json").write_text(text)
    with pytest.raises(UserError, match=r"run\.json .*damaged"):
        read_run(folder)
