"""What a run's page says of data and answers, and that all of it is text."""

import re
from pathlib import Path
from typing import Any

from support.reported import NASTY, Outline, record, row, rows, write_folder

from openqwen2vl.training.report.files import read_run


def test_consumption_stands_beside_the_plan(tmp_path: Path) -> None:
    steps = {"red": {"tokens": 60.0, "documents": 3.0}, "blue": {"tokens": 40.0, "documents": 1.0}}
    later = {"red": {"tokens": 0.0, "documents": 0.0}, "blue": {"tokens": 100.0, "documents": 4.0}}
    plan = {
        "steps": 20,
        "phases": [
            {"start": 0, "stop": 5, "grid": 3, "per_step": steps},
            {"start": 5, "stop": 20, "grid": 6, "per_step": later},
        ],
    }
    took = {"tokens": 320, "documents": 12, "passes": 0.5}
    consumed = {"red": took, "blue": took | {"tokens": 680, "passes": 1.25}}
    folder = write_folder(
        tmp_path / "run", rows(10), record=record(10, 20), plan=plan, consumed=consumed
    )
    page = Outline(folder)
    table = [re.findall(r"<td>(.*?)</td>", line) for line in page.html.split("<tr>")]
    assert [
        "red",
        "320",
        "32.0%",
        "30.0%",
        "+2.00",
        "12",
        "50.0%",
        "37.5%",
        "+12.50",
        "0.50",
    ] in table
    assert [
        "blue",
        "680",
        "68.0%",
        "70.0%",
        "-2.00",
        "12",
        "50.0%",
        "62.5%",
        "-12.50",
        "1.25",
    ] in table
    assert re.findall(r'"plan" style="left:([\d.]+)%', page.html) == ["42.86", "100.00"]


def test_answers_stand_side_by_side_and_the_later_of_two_counts(tmp_path: Path) -> None:
    def said(step: int, uid: str, given: str, **more: Any) -> dict[str, Any]:
        return {"step": step, "uid": uid, "wanted": "a cat", "given": given, **more}

    samples = [said(10 * k, "u", f"answer {k}", question="What?") for k in range(1, 10)]
    samples += [said(10, "v", "lost"), said(10, "v", "a cat", picture="samples/v.jpg")]
    folder = write_folder(tmp_path / "run", rows(90), samples=samples)
    (folder / "samples").mkdir()
    (folder / "samples" / "v.jpg").write_bytes(b"\xff\xd8 jpeg")
    page = Outline(folder)
    first, second = page.html.split("<article")[1:]
    assert re.findall(r"answer (\d)", first) == ["1", "3", "4", "6", "7", "9"]
    assert "What?" in first
    assert "lost" not in second
    assert 'class="right"' in second
    assert "data:image/jpeg;base64,/9ggan" in second


def test_a_picture_outside_of_the_folder_is_not_shown(tmp_path: Path) -> None:
    (tmp_path / "secret").write_bytes(b"secret")
    sample = {"step": 1, "uid": "u", "wanted": "a", "given": "b", "picture": "../secret"}
    assert read_run(write_folder(tmp_path / "run", rows(1), samples=[sample])).pictures == {}


def test_nothing_of_a_run_becomes_markup(tmp_path: Path) -> None:
    told = [row(step, **{f"loss/{NASTY}": 1.0, f"target_tokens/{NASTY}": 9}) for step in (1, 2)]
    sample = {"step": 1, "uid": NASTY, "question": NASTY, "wanted": NASTY, "given": NASTY}
    spike = {"step": 1, "loss": 1.0, "grad_norm": 1.0, "documents": [{"source": NASTY}]}
    told_of = record(2, 2, starts=(0, 1)) | {"device": NASTY, "versions": {NASTY: NASTY}}
    told_of |= {"state": NASTY, "hours_by_device": {NASTY: 1.0}}
    told_of["starts"][1]["device"] = NASTY
    folder = write_folder(
        tmp_path / "run",
        told,
        record=told_of,
        config={"stage": NASTY},
        consumed={NASTY: {"tokens": 1}},
        spikes=[spike],
        samples=[sample],
    )
    page = Outline(folder)
    assert "script" not in {tag for tag, _ in page.tags}
    assert sum(NASTY in text for text in page.texts) >= 12
    assert not re.search(r"https?://|url\(|@import|<link", page.html)
