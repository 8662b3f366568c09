import io
import json
from pathlib import Path

import pytest
from PIL import Image

from openqwen2vl.commands import demo as command
from openqwen2vl.commands._demo import QUESTIONS, STAGES, Demo
from openqwen2vl.commands._demo_report import build_page, losses, scores
from openqwen2vl.evaluation.choices import Item, Judged
from openqwen2vl.formats.manifest import Manifest

STEPS = 40
SWITCH = 12


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A demo's folder after training: both runs' metrics, and held-out questions."""
    out = tmp_path_factory.mktemp("demo")
    for stage in ("pretrain", "sft"):
        grids = [3 if step < SWITCH and stage == "pretrain" else 6 for step in range(STEPS)]
        rows = [f"{step},{5 - step / 20},{grid}" for step, grid in enumerate(grids)]
        (out / stage).mkdir()
        (out / stage / "metrics.csv").write_text("\n".join(["step,loss,grid", *rows, ""]))
    (out / "pretrain" / "report.html").touch()
    picture = io.BytesIO()
    Image.new("RGB", (84, 84), "red").save(picture, "JPEG")
    for name, options in zip(
        QUESTIONS, (["red", "blue", "<b>", "green"], ["yes", "no"]), strict=True
    ):
        (out / "questions" / name).mkdir(parents=True)
        lines = []
        for number in range(8):
            image = f"{name}/{number}.jpg"
            (out / "questions" / image).write_bytes(picture.getvalue())
            record = {"id": f"{name}-{number}", "image": image, "topic": "colour"}
            record |= {"question": f"{name} question {number}?", "options": options, "answer": 0}
            lines.append(json.dumps(record) + "\n")
        (out / "questions" / f"{name}.jsonl").write_text("".join(lines))
    return out


@pytest.fixture(scope="module")
def demo(trained) -> Demo:
    made = Demo(type("Config", (), {"out": str(trained)}))
    made.seconds = {"corpus": 3.0, "sft": 60.0}
    return made


@pytest.fixture(scope="module")
def answers(demo) -> dict[str, dict[str, list[Judged]]]:
    """Before: always the last option. After: right but for the first question of each set."""

    def last(items: list[Item]) -> list[Judged]:
        return [Judged(item, len(item.options) - 1) for item in items]

    def good(items: list[Item]) -> list[Judged]:
        return [Judged(item, 1 if number == 0 else 0) for number, item in enumerate(items)]

    sets = {name: demo.items(name) for name in QUESTIONS}
    sets["letters"] = sets["multiple_choice"]
    return {
        "before": {name: last(items) for name, items in sets.items()},
        "after": {name: good(items) for name, items in sets.items()},
    }


@pytest.fixture(scope="module")
def manifests(corpora) -> dict[str, Manifest]:
    return {f"red-g{grid}": Manifest.load(corpora.packs("red", grid)) for grid in (3, 6)}


@pytest.fixture(scope="module")
def html(demo, answers, manifests) -> str:
    summary = {"seconds": demo.seconds}
    page = build_page(demo.out, answers, manifests, {"scenes": 48}, summary, tiles=6)
    return page.html()


@pytest.mark.parametrize("left", ["raw", "summary.json"])
def test_an_earlier_demo_is_not_touched_without_leave(call, tmp_path, left):
    (tmp_path / "demo" / left).mkdir(parents=True)
    code, _, told = call("demo", f"out={tmp_path / 'demo'}")
    assert code == 2
    assert "holds an earlier demo" in told
    assert "overwrite=true" in told
    assert (tmp_path / "demo" / left).exists()


def test_overwriting_removes_what_a_demo_makes_and_nothing_else(call, tmp_path, monkeypatch):
    class StoppedError(Exception):
        pass

    def stop(self):
        raise StoppedError

    monkeypatch.setattr(Demo, "draw", stop)
    out = tmp_path / "demo"
    for name in ("raw", "packs", "mine"):
        (out / name).mkdir(parents=True)
    with pytest.raises(StoppedError):
        call("demo", f"out={out}", "overwrite=true")
    assert [path.name for path in out.iterdir()] == ["mine"]


def test_a_stage_says_that_it_begins_before_it_does_anything(tmp_path, capsys):
    made = Demo(type("Config", (), {"out": str(tmp_path)}))
    for number, (stage, words) in enumerate(STAGES.items(), 1):
        with made.timed(stage):
            assert capsys.readouterr().out == f"demo, {number} of 5: {words}\n"
    assert list(made.seconds) == list(STAGES)


def test_a_misspelt_corpus_key_is_named(call, tmp_path):
    code, _, told = call("demo", f"out={tmp_path / 'demo'}", "+corpus.sceens=3")
    assert code == 2
    assert "sceens" in told
    assert not (tmp_path / "demo").exists()


def test_the_summary_has_the_promised_keys_and_figures(demo, answers, manifests):
    summary = command._summary(demo, answers, manifests)
    promised = (
        "chance_mc before_mc after_mc chance_yesno after_yesno loss_first loss_last fill seconds"
    )
    assert set(promised.split()) <= set(summary)
    assert (summary["chance_mc"], summary["chance_yesno"]) == (0.25, 0.5)
    assert (summary["before_mc"], summary["after_mc"]) == (0.0, 7 / 8)
    assert (summary["loss_first"], summary["loss_last"]) == (5.0, 5 - (STEPS - 1) / 20)
    assert 0.5 < summary["fill"] <= 1
    assert json.loads(json.dumps(summary)) == summary


def test_the_table_sets_every_model_beside_chance(answers):
    rows = {row[0]: row[1:] for row in scores(answers)}
    assert rows["yes or no"] == ["8", "50.0%", "0.0%", "87.5%"]
    assert rows["multiple choice, by the options' words"] == ["8", "25.0%", "0.0%", "87.5%"]


def test_losses_are_read_step_by_step(trained):
    assert losses(trained / "sft")[:2] == [(0, 5.0), (1, 4.95)]


def test_the_page_shows_the_switch_of_resolution_and_leads_to_the_runs_own_pages(html):
    pretraining, fine_tuning = html.split("Fine-tuning</h2>")
    assert [chart.count('<rect class="band"') for chart in (pretraining, fine_tuning)] == [1, 0]
    assert "36 tokens an image" in pretraining
    assert 'href="pretrain/report.html"' in pretraining
    assert "sft/report.html" not in fine_tuning  # that one wrote none


def test_the_page_shows_right_and_wrong_answers_as_they_come(html):
    for name in QUESTIONS:
        for number in range(3):
            assert f"{name} question {number}?" in html
        assert f"{name} question 3?" not in html
    assert html.count("answered red: right") == 2
    assert "answered blue: wrong" in html
    assert "answered no: wrong" in html
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert html.count("data:image/jpeg;base64,") == 6
