"""Folders of ablation jobs as their stages leave them, without any training."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openqwen2vl.evaluation.ablation.jobs import SETTINGS, Job, Outcome, write_outcome
from support.scored import write_scores

Answers = Mapping[str, Sequence[float]]


def write_json(path: Path, content: object) -> None:
    """Write a small file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_run(run: Path, tokens: Mapping[str, float], steps: int = 8) -> None:
    """Write what a finished run leaves, but for its checkpoints and its config."""
    record = {"state": "finished", "step": steps, "steps": steps, "loss": 1.5}
    write_json(run / "run.json", {**record, "device": "cpu", "devices": 2, "device_hours": 0.25})
    consumed = {
        name: {"packs": 2, "tokens": count, "documents": 7, "images": 7, "passes": 0.5}
        for name, count in tokens.items()
    }
    write_json(run / "consumed.json", consumed)
    held_out = ["val_loss", *(f"val_loss/{name}" for name in tokens if len(tokens) > 1)]
    lines = [",".join(["step", "loss", *held_out])]
    for step in range(1, steps + 1):
        values = [f"{3 / step}" if step % 4 == 0 else "" for _ in held_out]
        lines.append(",".join([str(step), str(4 / step), *values]))
    (run / "metrics.csv").write_text("\n".join(lines) + "\n")


def write_answers(scores: Path, answers: Answers) -> None:
    """Write what `evaluate` leaves for each benchmark: how right each answer is."""
    for name, correct in answers.items():
        value = 100 * sum(correct) / len(correct)
        head = {"headline": "accuracy", "metrics": {"accuracy": value}}
        write_scores(scores / name, list(correct), benchmark=name, **head)


def write_job(
    out: Path,
    job: Job,
    answers: Answers,
    tokens: Mapping[str, float] | None = None,
    packs: Mapping[str, Any] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Outcome:
    """Write a finished job.

    Args:
        out: of the ablation.
        job: which.
        answers: by benchmark.
        tokens: by source, of pre-training.
        packs: by source, the pack folders that it read.
        settings: what the job was begun with.
    """
    folder = out / job.name
    tokens = {"scenes": 1000.0} if tokens is None else tokens
    write_json(folder / SETTINGS, {"pretrain": {"lr": 0.1}} if settings is None else settings)
    write_run(folder / "pretrain", tokens)
    sources = {name: {"packs": str((packs or {}).get(name, "gone"))} for name in tokens}
    write_json(folder / "pretrain" / "config.json", {"mixture": {"sources": sources}})
    write_run(folder / "sft", {"conversations": 500.0})
    write_answers(folder / "scores", answers)
    heads = {
        name: json.loads((folder / "scores" / name / "scores.json").read_text()) for name in answers
    }
    return write_outcome(out, job, heads)


def write_plan(
    out: Path, mixtures: Sequence[str], seeds: Sequence[int], benchmarks: Sequence[str]
) -> None:
    """Write the plan that a report is made after."""
    plan = {"mixtures": mixtures, "seeds": seeds, "benchmarks": benchmarks}
    write_json(out / "ablation.json", {**plan, "protocol": "standard", "words": {}})
