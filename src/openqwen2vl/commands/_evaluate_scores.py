"""Scores of a command's benchmarks: from the files of answers to files, a table and figures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openqwen2vl.evaluation.benchmarks.benchmark import Benchmark
from openqwen2vl.evaluation.locate import download_command
from openqwen2vl.evaluation.predictions import read_predictions
from openqwen2vl.evaluation.score import score_predictions, write_scores
from openqwen2vl.formats.errors import UserError

_COLUMNS = ("benchmark", "n", "score", "", "also", "unread", "failed")


def score(out: Path, benchmarks: Sequence[Benchmark], protocol: str) -> dict[str, dict[str, Any]]:
    """Score the answers below ``out``, write the scores beside them and print them.

    Args:
        out: holds a folder for each benchmark.
        benchmarks: the ones to score.
        protocol: that the answers were asked for under.

    Returns:
        What each ``scores.json`` says, by benchmark.

    Raises:
        UserError: answers are missing, or are those of another benchmark or protocol, or none of
            a benchmark's questions could be asked; the others are scored before that is said.
    """
    heads, silent = {}, []
    for benchmark in benchmarks:
        folder = out / benchmark.name
        header, answers = read_predictions(folder)
        if (header.benchmark, header.protocol) != (benchmark.name, protocol):
            raise UserError(
                f"{folder} holds answers to {header.benchmark} under protocol {header.protocol}, "
                f"{benchmark.name} under {protocol} was to be scored; give benchmark="
                f"{header.benchmark} protocol={header.protocol}, or another out"
            )
        if answers and all(answer.error is not None for answer in answers):
            silent.append(f"{folder} (the first: {answers[0].error})")
            continue
        scores = score_predictions(header, answers)
        write_scores(folder, scores)
        heads[benchmark.name] = scores.head
    if heads:
        _show(heads)
    if silent:
        raise UserError(
            f"not one question could be asked in {', '.join(silent)}: there is nothing to score; "
            "mend that and give overwrite=true"
        )
    return heads


def _show(heads: Mapping[str, Mapping[str, Any]]) -> None:
    words = {f"{head['protocol']}, version {head['protocol_version']}" for head in heads.values()}
    table = Table(title=f"protocol {', '.join(words)}", title_justify="left", box=None)
    for title in _COLUMNS:
        left = title in ("benchmark", "also")
        table.add_column(
            title,
            justify="left" if left else "right",
            no_wrap=title == "benchmark",
            overflow="fold",
        )
    for name, head in heads.items():
        metrics = dict(head["metrics"])
        first = head["headline"]
        score = f"{metrics.pop(first):.2f}"
        also = ", ".join(f"{metric} {value:.2f}" for metric, value in metrics.items())
        counts = (f"{head['counts'].get(kind, 0):,}" for kind in ("unread", "failed"))
        table.add_row(name, f"{head['n']:,}", score, first, also, *counts)
    Console().print(table)


def show_downloads(benchmarks: Sequence[Benchmark], data_root: Path) -> dict[str, str]:
    """Print how the benchmarks' files are downloaded; gives the commands by benchmark."""
    commands = {
        one.name: download_command(one.schema, data_root, demos=one.shots > 0) for one in benchmarks
    }
    for command in dict.fromkeys(commands.values()):
        Console().print(command, soft_wrap=True, highlight=False, markup=False)
    return commands
