"""One job of an ablation: pre-training, fine-tuning, evaluation, each a command of its own."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from openqwen2vl.commands._ablate_children import run_child
from openqwen2vl.commands._ablate_plan import Plan
from openqwen2vl.evaluation.ablation.jobs import (
    FAILED,
    SCORES,
    SECONDS,
    SETTINGS,
    TRAINED,
    Job,
    is_done,
    write_outcome,
)
from openqwen2vl.evaluation.score_files import HEAD
from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.run_folder import RunFolder

EVALUATE = "evaluate"
# Lines of a stage's log that are told when it fails.
_TOLD = 5


class StageError(Exception):
    """A stage that did not end well.

    Args:
        stage: which.
        message: the end of what it said.
    """

    def __init__(self, stage: str, message: str) -> None:
        super().__init__(f"{stage}: {message}")
        self.stage, self.message = stage, message


def run_job(plan: Plan, job: Job) -> dict[str, Any]:
    """Run what is left of a job; a stage that was broken off goes on where it was.

    A stage that fails is written to `failed.json`, so that the other jobs go on.

    Returns:
        The job, and its state: done or failed.

    Raises:
        UserError: the ablation has no such job, or another process runs it.
    """
    folder = RunFolder(plan.out / job.name)
    if job not in plan.jobs or not (folder.path / SETTINGS).is_file():
        raise UserError(
            f"{plan.out} was not made ready for job {job.name}; run the ablation without only=job"
        )
    if is_done(plan.out, job, plan.benchmarks):
        return {"job": job.name, "state": "done"}
    if folder.written():
        raise UserError(
            f"another process is at job {job.name} of {plan.out}; wait for it or stop it, and run "
            "the ablation again"
        )
    folder.lock()
    try:
        for stage in TRAINED:
            _train(plan, job, stage, folder)
        _run(EVALUATE, plan.evaluate_words(job), plan, folder)
    except StageError as error:
        folder.write_json(FAILED, {"stage": error.stage, "message": error.message})
        _say(f"{job.name}: {error}")
        return {"job": job.name, "state": "failed"}
    heads = {
        name: RunFolder(folder.path / SCORES / name).read_json(HEAD) for name in plan.benchmarks
    }
    done = write_outcome(plan.out, job, heads)
    scores = [f"{name} {one['value']:.2f}" for name, one in done.record["scores"].items()]
    _say(f"{job.name}: {', '.join(scores)}")
    return {"job": job.name, "state": "done"}


def _train(plan: Plan, job: Job, stage: str, folder: RunFolder) -> None:
    run = RunFolder(folder.path / stage)
    if run.read_json("run.json").get("state") == "finished":
        return
    _run(stage, plan.train_words(job, stage), plan, folder)
    record = run.read_json("run.json")
    if record.get("state") != "finished":
        raise StageError(stage, f"{record.get('state')} at step {record.get('step')}")
    _say(f"{job.name}: {stage}, {record['step']:,} steps, loss {record['loss']:.4f}")


def _run(stage: str, words: Sequence[str], plan: Plan, folder: RunFolder) -> None:
    """Run a command with its output in `STAGE.log`, and add up its seconds over restarts."""
    verb = stage if stage == EVALUATE else "train"
    log = folder.path / f"{stage}.log"
    started = time.perf_counter()
    command = [sys.executable, "-m", "openqwen2vl", verb, *plan.overlays, *words]
    try:
        code = run_child(command, log)
    finally:
        seconds = folder.read_json(SECONDS)
        spent = seconds.get(stage, 0.0) + time.perf_counter() - started
        folder.write_json(SECONDS, {**seconds, stage: spent})
    if code:
        raise StageError(stage, f"ended with code {code}: {_end(log)}")


def _end(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return " / ".join([line for line in lines if line][-_TOLD:])


def _say(text: str) -> None:
    Console().print(text, soft_wrap=True, highlight=False, markup=False)
