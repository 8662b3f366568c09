"""An ablation's figures as plain values, as CSV, and as tables on the terminal."""

import csv
import io
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openqwen2vl.evaluation.ablation.effects import Effect
from openqwen2vl.evaluation.ablation.findings import Findings, unequal_tokens
from openqwen2vl.evaluation.ablation.jobs import PRETRAIN
from openqwen2vl.evaluation.ablation.words import conclusions, sentence, verdict
from openqwen2vl.formats.files import atomic_file

COLUMNS = (
    *("mixture", "benchmark", "baseline", "seeds", "questions", "figure"),
    *("score", "lowest", "highest"),
    *("difference", "low", "high", "by_seed", "p", "p_holm", "p_over_seeds"),
    *("detectable", "verdict"),
    *("tokens", "documents", "device_hours", "failed_seeds"),
)

# Names of a benchmark's figure that is the mean over its rows.
_MEANS = ("accuracy", "row")
# Above what a last step more or less makes of long runs.
_UNEQUAL = 0.05
# Likewise of passes over a source.
_PASS = 1.05


def csv_rows(findings: Findings) -> list[dict[str, object]]:
    """Give one row a mixture and benchmark; cells that do not apply are empty."""
    told = {(one.mixture, one.benchmark): one for one in findings.effects}
    rows = []
    for mixture in findings.mixtures:
        done = findings.of(mixture)
        for benchmark in findings.benchmarks:
            values = findings.headlines(mixture, benchmark)
            row: dict[str, object] = {
                "mixture": mixture,
                "benchmark": benchmark,
                "baseline": findings.mixtures[0],
                "seeds": " ".join(str(one.job.seed) for one in done),
                "failed_seeds": " ".join(
                    str(j.seed) for j in findings.failed if j.mixture == mixture
                ),
            }
            if done:
                row |= {
                    "questions": done[0].record["scores"][benchmark]["n"],
                    "figure": done[0].record["scores"][benchmark]["headline"],
                    "score": fmean(values),
                    "lowest": min(values),
                    "highest": max(values),
                    "tokens": sum(findings.consumed(mixture, PRETRAIN, "tokens").values()),
                    "documents": sum(findings.consumed(mixture, PRETRAIN, "documents").values()),
                    "device_hours": sum(findings.device_hours(mixture).values()),
                }
            if (mixture, benchmark) in told:
                row |= _effect(told[mixture, benchmark])
            rows.append(row)
    return rows


def _effect(effect: Effect) -> dict[str, object]:
    found = effect.comparison
    return {
        "difference": found.difference,
        "low": found.interval[0],
        "high": found.interval[1],
        "by_seed": " ".join(f"{value:.4f}" for value in effect.by_seed),
        "p": found.p,
        "p_holm": found.p_holm,
        "p_over_seeds": effect.p_over_seeds,
        "detectable": found.detectable,
        "verdict": verdict(effect),
    }


def write_csv(findings: Findings, path: Path) -> None:
    """Write the rows, atomically."""
    buffer = io.StringIO()
    writer = csv.DictWriter(buffer, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(csv_rows(findings))
    with atomic_file(path) as file:
        file.write(buffer.getvalue().encode())


def figures_of(findings: Findings) -> dict[str, Any]:
    """Give all figures as what JSON knows, and what they mean."""
    return {
        "out": str(findings.out),
        "baseline": findings.mixtures[0],
        **asdict(findings.settings),
        "correction": "holm",
        "scores": {
            mixture: {name: findings.headlines(mixture, name) for name in findings.benchmarks}
            for mixture in findings.mixtures
        },
        "effects": [
            {
                **asdict(one),
                "sentence": sentence(one, findings.settings),
            }
            for one in findings.effects
        ],
        "conclusions": conclusions(findings.effects, findings.settings),
        "remarks": remarks(findings),
        "tokens": {
            mixture: findings.consumed(mixture, PRETRAIN, "tokens") for mixture in findings.mixtures
        },
        "device_hours": {mixture: findings.device_hours(mixture) for mixture in findings.mixtures},
        "failed": {job.name: why for job, why in findings.failed.items()},
    }


def remarks(findings: Findings) -> list[str]:
    """Say what differences do not mean: other figures than scores, pre-training not as equal."""
    heads = findings.outcomes[0].record["scores"] if findings.outcomes else {}
    figures = {name: heads[name]["headline"] for name in findings.benchmarks if name in heads}
    told = [
        f"{name}: scores are its {figure}, differences are of the mean over its rows"
        for name, figure in figures.items()
        if figure not in _MEANS
    ]
    if (more := unequal_tokens(findings)) > _UNEQUAL:
        told.append(
            f"pre-training was not equal: the largest took {more:.0%} more tokens than the "
            "smallest; budget.tokens makes it so"
        )
    if again := _repeated(findings):
        told.append(
            f"pre-training repeated documents: {', '.join(again)}; equal tokens are then not equally "
            "many documents, and what a mixture would give unrepeated is not shown"
        )
    return told


def _repeated(findings: Findings) -> list[str]:
    """Give the mixtures too small for their tokens, each with its most passes over a source."""
    most = {
        mixture: max(findings.consumed(mixture, PRETRAIN, "passes").values(), default=0.0)
        for mixture in findings.mixtures
    }
    return [
        f"{mixture} up to {passes:.1f} times" for mixture, passes in most.items() if passes > _PASS
    ]


def score_cells(findings: Findings, mixture: str, ranges: bool = True) -> list[str]:
    """Give a mixture's row of the score table: each benchmark, then the mean of them.

    Args:
        findings: of all jobs.
        mixture: which.
        ranges: whether the lowest and the highest seed stand beside the mean over several.
    """
    stars = {
        one.benchmark: " **" if one.of_mixtures else " *"
        for one in findings.effects
        if one.mixture == mixture and one.of_models
    }
    cells = []
    for benchmark in findings.benchmarks:
        values = findings.headlines(mixture, benchmark)
        if not values:
            cells.append("failed")
            continue
        several = ranges and len(values) > 1
        spread = f" ({min(values):.1f} to {max(values):.1f})" if several else ""
        cells.append(f"{fmean(values):.1f}{spread}{stars.get(benchmark, '')}")
    average = findings.average(mixture)
    return [*cells, "" if average is None else f"{average:.1f}"]


def show(findings: Findings) -> None:
    """Print the scores, what is shown, and what failed."""
    console = Console()
    base = findings.mixtures[0]
    _say(console, f"scores in percent; * differs from {base} (** as a mixture)")
    for table in _score_tables(findings, console.width):
        console.print(table)
    told = conclusions(findings.effects, findings.settings)
    told += [sentence(one, findings.settings) for one in findings.effects]
    told += remarks(findings)
    told += [f"failed: {job.name}: {why}" for job, why in findings.failed.items()]
    for line in told:
        _say(console, line)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)


def _score_tables(findings: Findings, width: int) -> Iterator[Table]:
    """Give the scores in as many tables as it takes for no name and no figure to be cut short."""
    heads = [*findings.benchmarks, "mean", "tokens"]
    rows = {}
    for mixture in findings.mixtures:
        tokens = sum(findings.consumed(mixture, PRETRAIN, "tokens").values())
        rows[mixture] = [*score_cells(findings, mixture, ranges=False), f"{tokens:,.0f}"]
    first = min(max(len(mixture) for mixture in rows), width // 3)
    groups: list[list[int]] = [[]]
    left = width - first
    for column, head in enumerate(heads):
        needed = 2 + max(len(head), *(len(row[column]) for row in rows.values()))
        if needed > left and groups[-1]:
            groups.append([])
            left = width - first
        groups[-1].append(column)
        left -= needed
    for columns in groups:
        table = Table(box=None, pad_edge=False)
        table.add_column("mixture", overflow="fold", width=max(first, len("mixture")))
        for column in columns:
            table.add_column(heads[column], justify="right", no_wrap=True)
        for mixture, cells in rows.items():
            table.add_row(escape(mixture), *(cells[column] for column in columns))
        yield table
