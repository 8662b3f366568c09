"""Everything an ablation found, read from its jobs' folders: scores, effects, data, costs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from openqwen2vl.evaluation.ablation.effects import Effect, effects
from openqwen2vl.evaluation.ablation.jobs import (
    PRETRAIN,
    TRAINED,
    Job,
    Outcome,
    read_failure,
    read_outcome,
)
from openqwen2vl.evaluation.comparison import Settings
from openqwen2vl.evaluation.score_files import Scored
from openqwen2vl.formats.errors import UserError
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.training.csv_log import read_rows
from openqwen2vl.training.run_folder import RunFolder

# Points of a curve on the page; more would not be seen.
_POINTS = 200
Curve = list[tuple[float, float]]


@dataclass(frozen=True)
class Findings:
    """What the jobs of an ablation gave.

    Attributes:
        out: its folder.
        mixtures: by name, the baseline first.
        benchmarks: by name.
        settings: of the tests.
        outcomes: of the jobs that are done.
        failed: the others, each with what is known of why.
        effects: differences from the baseline; see `effects`.
    """

    out: Path
    mixtures: Sequence[str]
    benchmarks: Sequence[str]
    settings: Settings
    outcomes: Sequence[Outcome]
    failed: Mapping[Job, str]
    effects: Sequence[Effect]

    def of(self, mixture: str) -> list[Outcome]:
        """Give a mixture's finished jobs, by rising seed."""
        return sorted((o for o in self.outcomes if o.job.mixture == mixture), key=lambda o: o.job)

    def headlines(self, mixture: str, benchmark: str) -> list[float]:
        """Give the benchmark's usual figure, in percent, under each seed."""
        return [float(o.record["scores"][benchmark]["value"]) for o in self.of(mixture)]

    def average(self, mixture: str) -> float | None:
        """Give the mean of the usual figures over benchmarks and seeds; None without any."""
        values = [v for name in self.benchmarks for v in self.headlines(mixture, name)]
        return fmean(values) if values else None

    def consumed(self, mixture: str, stage: str, column: str) -> dict[str, float]:
        """Give by source what a job consumed in a stage, the mean over seeds."""
        found = [o.record["consumed"][stage] for o in self.of(mixture)]
        names = dict.fromkeys(name for one in found for name in one)
        return {name: fmean(one[name][column] for one in found) for name in names}

    def device_hours(self, mixture: str) -> dict[str, float]:
        """Give the device-hours of each stage of training, over all seeds."""
        return {
            stage: sum(o.record["device_hours"][stage] for o in self.of(mixture))
            for stage in TRAINED
        }


def find(
    out: Path,
    mixtures: Sequence[str],
    seeds: Sequence[int],
    benchmarks: Sequence[str],
    settings: Settings,
) -> Findings:
    """Read what the jobs gave and compare the mixtures with the first of them.

    Raises:
        UserError: scores that are not alike, or cannot be read.
    """
    jobs = [Job(mixture, seed) for mixture in mixtures for seed in seeds]
    found = {job: read_outcome(out, job) for job in jobs}
    outcomes = [one for one in found.values() if one is not None]
    outcomes = [one for one in outcomes if set(benchmarks) <= set(one.record["scores"])]
    done = {one.job for one in outcomes}
    scores: dict[str, dict[int, Sequence[Scored]]] = {}
    for one in outcomes:
        scores.setdefault(one.job.mixture, {})[one.job.seed] = one.scores(benchmarks)
    return Findings(
        out=out,
        mixtures=mixtures,
        benchmarks=benchmarks,
        settings=settings,
        outcomes=outcomes,
        failed={job: read_failure(out, job) for job in jobs if job not in done},
        effects=effects(scores, mixtures[0], settings),
    )


def documents(findings: Findings) -> dict[str, NDArray[np.uint64]]:
    """Give the identities of the documents in each mixture's packs.

    Raises:
        UserError: packs are not where the runs found them.
    """
    found = {}
    for mixture in findings.mixtures:
        outcomes = findings.of(mixture)
        if not outcomes:
            continue
        config = RunFolder(outcomes[0].folder / PRETRAIN).read_json("config.json")
        hashes = []
        for source in config["mixture"]["sources"].values():
            packs = source["packs"]
            for folder in [packs] if isinstance(packs, str) else packs:
                hashes.append(PackFolder(folder).uid_hashes())
        found[mixture] = np.concatenate(hashes)
    return found


def loss_curve(outcome: Outcome, stage: str = PRETRAIN) -> Curve:
    """Give steps with the loss, each the mean of the steps since the point before."""
    _, rows = read_rows(outcome.folder / stage / "metrics.csv")
    size = max(1, -(-len(rows) // _POINTS))
    points = []
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        points.append((float(part[-1]["step"]), fmean(float(row["loss"]) for row in part)))
    return points


def held_out_curve(outcome: Outcome, source: str) -> Curve:
    """Give steps with the loss on what was held out of one source; empty when not measured."""
    columns, rows = read_rows(outcome.folder / PRETRAIN / "metrics.csv")
    alone = list(outcome.record["consumed"][PRETRAIN]) == [source]
    column = "val_loss" if alone else f"val_loss/{source}"
    if column not in columns:
        return []
    return [(float(row["step"]), float(row[column])) for row in rows if row.get(column)]


def common_sources(findings: Findings) -> list[str]:
    """Give the sources that every mixture drew from in pre-training."""
    held = [set(one.record["consumed"][PRETRAIN]) for one in findings.outcomes]
    return sorted(set.intersection(*held)) if held else []


def unequal_tokens(findings: Findings) -> float:
    """Give by how much the largest pre-training exceeds the smallest, in tokens, as a share."""
    totals = [
        sum(one["tokens"] for one in outcome.record["consumed"][PRETRAIN].values())
        for outcome in findings.outcomes
    ]
    return max(totals) / max(1.0, min(totals)) - 1 if totals else 0.0


def check_any(findings: Findings) -> None:
    """Refuse to report on nothing.

    Raises:
        UserError: no job is done.
    """
    if not findings.outcomes:
        told = "; ".join(f"{job.name}: {why}" for job, why in findings.failed.items())
        raise UserError(f"no job of {findings.out} is done: {told}")
