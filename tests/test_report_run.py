"""Runs write their page themselves: at checkpoints, at the end, after a kill and a resume."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from support.browser import open_browser
from support.reported import Outline, on_gpu, record, row, write_folder
from support.runs import PackedCorpora, Run, command, kill_when
from support.trainer import FakeTrainer, tiny_module

from openqwen2vl.callbacks import report as report_module
from openqwen2vl.callbacks.report import RunReport
from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.packing.mixture import MixtureSpec, SourceSpec, consumed, open_mixture
from openqwen2vl.packing.order import Order, Phase
from openqwen2vl.packing.shares import planned_shares
from openqwen2vl.training.report.files import PLAN, read_run
from openqwen2vl.training.report.mixture import shares
from openqwen2vl.training.report.page import REPORT, write_report

WATCHED = (
    "resolution=tiny_low_to_high",
    "budget.steps=6",
    "callbacks.validation.every_n_steps=2",
    "callbacks.answers.every_n_steps=3",
    "callbacks.answers.count=2",
    "callbacks.checkpoints.every_n_steps=2",
)


def test_a_run_writes_its_page_and_goes_on_with_it_after_a_restart(
    call_train: Run, tmp_path: Path
) -> None:
    code, _, err = call_train(*WATCHED)
    assert code == 0, err
    folder = tmp_path / "run"
    page = Outline(folder)
    # The run's own page, written at its end, is the one that its folder gives now.
    assert (folder / REPORT).read_text() == page.html
    assert page.tiles()["step 6 of 6"] == "finished"
    assert page.tiles()["restarts"] == "0"
    assert {"Loss by source", "Held-out loss", "Seconds a step"} <= set(page.panels)
    assert "9 tokens an image" in page.text
    assert page.html.count("<article") >= 2
    assert page.html.count("data:image/jpeg;base64,") == page.html.count("<article")
    samples = read_run(folder).samples
    assert len({one["picture"] for one in samples}) == len({one["uid"] for one in samples})
    for one in samples:
        with Image.open(folder / one["picture"]) as picture:
            assert picture.size[0] == picture.size[1] <= 144

    code, _, err = call_train(*WATCHED, f"resume={folder / 'checkpoints' / 'step_00000004.ckpt'}")
    assert code == 0, err
    page = Outline(folder)
    assert (folder / REPORT).read_text() == page.html
    assert page.tiles()["restart"] == "1"
    assert read_run(folder).restarts == [4]
    assert all(figure.count('stroke-dasharray="5 3"') == 1 for figure in page.figures)
    first, second = read_run(folder).starts
    assert (first["again"], second["again"]) == (0, 2)
    assert first["hours"] > 0


@pytest.mark.slow
def test_a_killed_and_resumed_run_marks_the_restart(
    call: Run, corpora: PackedCorpora, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    settings = {"budget.steps": 12, "callbacks.checkpoints.every_n_steps": 3}
    words = command(corpora, folder, settings)
    kill_when(words, folder, 5)
    # The page of the newest checkpoint stays; one made by hand knows more.
    assert (folder / REPORT).is_file()
    assert 'class="big bad">killed<' in Outline(folder).html
    reached = read_run(folder).step
    code, _, err = call(*words[words.index("train") :], "resume=last")
    assert code == 0, err
    run = read_run(folder)
    (restart,) = run.restarts
    assert restart % 3 == 0
    assert run.starts[1]["again"] == reached - restart
    assert run.metrics.steps.tolist() == list(range(1, 13))
    page = Outline(folder)
    assert (folder / REPORT).read_text() == page.html
    assert all(figure.count('stroke-dasharray="5 3"') == 1 for figure in page.figures)


@pytest.mark.parametrize("mode", ["proportional", "weights"])
def test_a_plan_is_what_long_runs_consume(corpora: PackedCorpora, mode: str) -> None:
    weights = {"red": 3.0, "blue": 1.0}
    spec = MixtureSpec(
        sources={
            name: SourceSpec(packs=[str(corpora.packs(name, grid)) for grid in (3, 6)], weight=w)
            for name, w in weights.items()
        },
        mode=mode,
    )
    mixture = open_mixture(spec, [3, 6])
    phases = [Phase(start=0, stop=300, grid=3), Phase(start=300, stop=400, grid=6)]
    order = Order(phases, {g: mixture.stream(7, g) for g in (3, 6)}, 4)
    plan = {"phases": planned_shares(mixture, phases, 4)}
    for steps in (300, 400):
        took = consumed(mixture, order, steps)
        run: Any = SimpleNamespace(plan=plan, record={"step": steps}, consumed=took)
        found = shares(run)
        assert sum(one.planned["packs"] for one in found) == pytest.approx(4 * steps)
        for one in found:
            for name in ("packs", "tokens", "targets", "images", "documents"):
                assert one.planned[name] == pytest.approx(one.took[name], rel=0.03), name
    if mode == "weights":
        tokens = [one.planned["tokens"] for one in shares(run)]
        assert tokens[0] / tokens[1] == pytest.approx(3)


class TestCallback:
    def test_a_page_that_fails_is_a_warning(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fail(path: Path) -> None:
            raise OSError("the disk is gone")

        monkeypatch.setattr(report_module, "write_report", fail)
        callback, trainer, module = RunReport(), FakeTrainer(tmp_path), tiny_module()
        callback.on_train_start(trainer, module)  # without data there is no plan, either
        callback.on_save_checkpoint(trainer, module, {})
        callback.on_train_end(trainer, module)
        assert "no report of the run was written" in caplog.text
        assert f"{PLAN} was not written" in caplog.text
        assert "the disk is gone" in caplog.text

    @pytest.mark.parametrize(("share", "written"), [(0.0, [1000]), (0.01, [0, 240, 1000])])
    def test_pages_at_checkpoints_take_no_more_than_their_share(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float, written: list[float]
    ) -> None:
        now, begun = 0.0, []

        def write(path: Path) -> None:
            nonlocal now
            begun.append(now)
            now += 2.0

        monkeypatch.setattr(report_module, "write_report", write)
        monkeypatch.setattr(report_module, "time", SimpleNamespace(monotonic=lambda: now))
        callback, trainer, module = RunReport(share), FakeTrainer(tmp_path), tiny_module()
        for number in range(8):
            now = max(now, 60.0 * number)
            callback.on_save_checkpoint(trainer, module, {})
        now = 1000.0
        callback.on_train_end(trainer, module)
        assert begun == written

    def test_one_rank_writes_and_a_run_that_never_began_does_not(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        found: list[Path] = []
        monkeypatch.setattr(report_module, "write_report", found.append)
        other = FakeTrainer(tmp_path, is_global_zero=False)
        RunReport().on_train_end(other, tiny_module())
        RunReport().on_exception(FakeTrainer(tmp_path), tiny_module(), RuntimeError())
        assert found == []

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_a_share_that_is_none_is_refused(self, share: float) -> None:
        with pytest.raises(ConfigError, match=r"callbacks\.report\.share is"):
            RunReport(share)


@pytest.mark.slow
def test_a_page_fits_phones_and_wide_screens_in_a_browser(tmp_path: Path) -> None:
    long = "a_source_with_quite_a_long_name_for_a_phone"
    told = [
        row(step, grid=12 if step < 60 else 27, **on_gpu(step), **{f"loss/{long}": 2.0})
        for step in range(1, 91)
    ]
    told[49] |= {"loss": float("nan"), "skipped": 1}
    sample = {"uid": "u", "question": "What? " * 40, "wanted": "x" * 300, "given": "y" * 300}
    folder = write_folder(
        tmp_path / "run",
        told,
        record=record(90, 90, starts=(0, 40)),
        config={"clip": 1.0, "long": "z" * 500},
        consumed={long: {"tokens": 90, "documents": 3}, "red": {"tokens": 9, "documents": 1}},
        samples=[sample | {"step": step} for step in range(10, 90, 10)],
        spikes=[{"step": 50, "documents": [{"source": long}]}],
    )
    page_file = write_report(folder)
    panels = Outline(folder).panels
    with open_browser() as browser:
        for width in (390, 1280):
            for scheme in ("light", "dark"):
                page = browser.new_page(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                looked_at(page, page_file, width, panels)
                page.close()


def looked_at(page: Any, file: Path, width: int, panels: list[str]) -> None:
    """Open the page and check what a person would see at once."""
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: said.append(request.url))
    page.goto(file.as_uri())
    page.click("summary >> text=Config")
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert said == [file.as_uri()]
    assert page.locator(".panel").count() == len(panels)
    for box in (one.bounding_box() for one in page.locator(".panel svg").all()):
        assert 0 <= box["x"] < box["x"] + box["width"] <= width
        assert box["height"] > 150
    # Two charts a row where there is room, else one.
    tops = [one.bounding_box()["y"] for one in page.locator(".panel").all()]
    assert (tops[0] == tops[1]) == (width > 1000)
    letters = "getComputedStyle(document.querySelector('.panel text')).fontSize"
    shrunk = page.locator(".panel svg").first.bounding_box()["width"] / 440
    assert float(page.evaluate(letters).removesuffix("px")) * shrunk >= 10
