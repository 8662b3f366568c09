"""lmms-eval itself, offline, on a local file, with a checkpoint of ours: what it writes down."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support.evaluations import write_run
from support.runs import Run, environment

from lmms.public_files import public_file

TASKS = Path(__file__).parent / "tasks"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in `run`, AI2D in `data`, and the task files beside a copy of it in `tasks`."""
    root = tmp_path_factory.mktemp("lmms")
    write_run(root / "run")
    file = public_file(root / "data", "ai2d")
    shutil.copytree(TASKS, root / "tasks")
    shutil.copy(file, root / "tasks" / "ai2d.parquet")
    return root


def run_theirs(root: Path, task: str, *words: str) -> tuple[float, list[Mapping[str, Any]]]:
    """Run one task; gives its figure and its samples in the file's order."""
    out = root / "out" / task
    command = [sys.executable, "-m", "lmms_eval", "--model", "openqwen2vl", "--tasks", task]
    command += [
        "--model_args",
        f"pretrained={root / 'run'}",
        "--batch_size",
        "5",
        "--device",
        "cpu",
    ]
    command += ["--include_path", str(root / "tasks"), "--output_path", str(out), "--log_samples"]
    offline = {"HF_DATASETS_OFFLINE": "1", "HF_HOME": os.environ["HF_HOME"]}
    told = subprocess.run(
        [*command, *words],
        env={**environment(), **offline},
        cwd=root,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # It ends with 0 whatever happens: only the files tell.
    results = list(out.rglob("*_results.json"))
    assert len(results) == 1, told.stdout[-3000:] + told.stderr[-3000:]
    figures = json.loads(results[0].read_text())["results"][task]
    (figure,) = [v for key, v in figures.items() if key.split(",")[0] in ("exact_match", "acc")]
    (samples,) = out.rglob(f"*_samples_{task}.jsonl")
    rows = [json.loads(line) for line in samples.read_text().splitlines()]
    return figure, sorted(rows, key=lambda row: row["doc_id"])


def run_ours(root: Path, call: Run, benchmark: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Evaluate the same checkpoint on the same rows; gives what `scores.json` says, and answers."""
    words = [f"model={root / 'run'}", f"data_root={root / 'data'}", f"out={root / 'ours'}"]
    code, out, err = call("evaluate", *words, f"benchmark={benchmark}", "trainer.accelerator=cpu")
    assert code == 0, out + err
    folder = root / "ours" / benchmark
    lines = (folder / "predictions.jsonl").read_text().splitlines()[1:]
    rows = [json.loads(line) for line in lines]
    scores = json.loads((folder / "scores.json").read_text())
    return scores, sorted(rows, key=lambda row: int(row["id"]))


def test_a_generated_answer_and_its_figure_are_the_same(prepared: Path, call: Run) -> None:
    theirs, samples = run_theirs(prepared, "local_ai2d")
    scores, answers = run_ours(prepared, call, "ai2d")
    assert len(samples) == len(answers) == 12
    # It notes an output only where its filters changed it.
    said = [row.get("resps", row["filtered_resps"]) for row in samples]
    assert said == [row["output"] for row in answers]
    assert len(set(said)) > 1
    assert 100 * theirs == pytest.approx(scores["metrics"]["accuracy"])


def test_the_likeliest_option_and_its_figure_are_the_same(prepared: Path, call: Run) -> None:
    theirs, samples = run_theirs(prepared, "local_ai2d_likelihood", "--force_simple")
    scores, answers = run_ours(prepared, call, "ai2d_likelihood")
    for sample, answer in zip(samples, answers, strict=True):
        losses = [float(loss) for loss, _ in sample["filtered_resps"]]
        assert losses == pytest.approx([-value for value in answer["logprobs"]], abs=1e-4)
    assert 0 < theirs < 1
    assert 100 * theirs == pytest.approx(scores["metrics"]["accuracy"])
