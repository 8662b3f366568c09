"""The figures of ``filtering.py``: arms, differences with intervals, and how they are told."""

from dataclasses import asdict
from importlib.metadata import version
from statistics import fmean
from typing import Any

import figures
from filtering_seed import BASELINE, BOUND, OURS, Asked, Settings
from filtering_statistics import over_questions, over_seeds
from tiny_clip import MODEL

from openqwen2vl.corpus.noise import MISMATCHED
from openqwen2vl.evaluation.choices import chance

GOAL = 0.85  # of the AUC
COLUMNS = ("arm", "pairs", "matched", "tokens", "passes", "right by seed", "right", "clean loss")


def make_report(seeds: list[dict[str, Any]], asked: Asked, settings: Settings) -> dict[str, Any]:
    """Join what the seeds found into one report."""
    arms: dict[str, Any] = {}
    for name, keeps in settings.arms.items():
        found = [seed["arms"][name] for seed in seeds]
        arms[name] = {
            "keep": keeps,
            "accuracy": [fmean(one["right"]) for one in found],
            "clean_loss": [one["clean_loss"] for one in found],
            "tokens": [one["tokens"] for one in found],
            "passes": [s["arms"][name]["documents"] / s["kept"][name] for s in seeds],
            "matched": [1 - seed["captions"][name].get(MISMATCHED, 0.0) for seed in seeds],
            "topics": _topics([one["topics"] for one in found]),
        }
    seconds = {
        stage: sum(s["processor_s"][stage] for s in seeds) for stage in seeds[0]["processor_s"]
    }
    return {
        "bench": "filtering",
        "machine": figures.machine(),
        "settings": {**asdict(settings), "seeds": [seed["seed"] for seed in seeds]},
        "clip": {"open_clip": version("open_clip_torch"), **MODEL},
        "chance": chance(asked.items),
        "auc": {where: [s["auc"][where]["all"] for s in seeds] for where in ("corpus", "held_out")},
        "arms": arms,
        "over_unfiltered": {name: _gain(seeds, name) for name in (OURS, BOUND)},
        "processor_s": seconds,
        "by_seed": seeds,
    }


def _topics(found: list[dict[str, tuple[int, int]]]) -> dict[str, float]:
    """Give the share of right answers by topic, over all seeds."""
    names = found[0]
    return {n: sum(one[n][0] for one in found) / sum(one[n][1] for one in found) for n in names}


def _gain(seeds: list[dict[str, Any]], name: str) -> dict[str, Any]:
    """Compare an arm with the unfiltered one, seed by seed."""
    pairs = [(seed["arms"][name], seed["arms"][BASELINE]) for seed in seeds]
    rights = [[one["right"] for one in side] for side in zip(*pairs, strict=True)]
    return {
        "accuracy_over_seeds": over_seeds(
            [fmean(a["right"]) - fmean(b["right"]) for a, b in pairs]
        ),
        "accuracy_over_questions": over_questions(*rights),
        "clean_loss_over_seeds": over_seeds([a["clean_loss"] - b["clean_loss"] for a, b in pairs]),
    }


def show(report: dict[str, Any]) -> None:
    """Print the tables of a report."""
    settings, first = report["settings"], report["by_seed"][0]
    web, recipe = settings["web"], settings["recipe"]
    print(
        f"{settings['pairs']} pairs, {web['mismatched']:.0%} of them mismatched, {web['clean']:.0%} "
        f"of the others clean; {recipe['steps']} steps of {recipe['packs']} pack(s) of "
        f"{recipe['context']}; {settings['questions']} questions, chance {report['chance']:.0%}"
    )
    for where, name in (("corpus", "the filtered corpus"), ("held_out", "unseen pairs")):
        kinds = [seed["auc"][where] for seed in report["by_seed"]]
        told = ", ".join(f"{kind} {fmean(one[kind] for one in kinds):.3f}" for kind in kinds[0])
        print(f"AUC on {name}, mean over seeds: {told}")
    rows = []
    for name, arm in report["arms"].items():
        values = [
            f"{first['kept'][name]}",
            f"{fmean(arm['matched']):.1%}",
            f"{fmean(arm['tokens']):,.0f}",
            f"{fmean(arm['passes']):.1f}",
            " ".join(f"{value:.1%}" for value in arm["accuracy"]),
            f"{fmean(arm['accuracy']):.1%}",
            f"{fmean(arm['clean_loss']):.3f}",
        ]
        rows.append((f"{name}: {arm['keep']}", *values))
    figures.table(COLUMNS, rows)
    for name, arm in report["arms"].items():
        print(f"{name} by topic: {', '.join(f'{t} {v:.0%}' for t, v in arm['topics'].items())}")
    for name, gain in report["over_unfiltered"].items():
        print(
            f"{name} - {BASELINE}: right {_points(gain['accuracy_over_seeds'])} over seeds, "
            f"{_points(gain['accuracy_over_questions'])} over questions; clean loss "
            f"{_between(gain['clean_loss_over_seeds'], 1, 3)} over seeds"
        )
    spent = ", ".join(f"{stage} {value:.0f}" for stage, value in report["processor_s"].items())
    print(f"seconds of processor time: {spent}")


def line(seed: dict[str, Any]) -> str:
    """Tell one seed's figures in a line, for those who wait."""
    rights = ", ".join(f"{name} {fmean(arm['right']):.1%}" for name, arm in seed["arms"].items())
    aucs = ", ".join(f"{where} {kinds['all']:.3f}" for where, kinds in seed["auc"].items())
    return f"seed {seed['seed']}: AUC {aucs}; right {rights}"


def _points(found: dict[str, float | None]) -> str:
    return f"{_between(found, 100, 1)} points"


def _between(found: dict[str, float | None], scale: float, digits: int) -> str:
    """Give a mean and its interval as text: ``+3.1 (+1.0 to +5.2)``."""
    mean, low, high = (
        None if value is None else f"{scale * value:+.{digits}f}" for value in found.values()
    )
    return f"{mean}" if low is None else f"{mean} ({low} to {high})"


def headline(report: dict[str, Any]) -> str:
    """Give the last line: the gain, and how well the scores tell pairs apart."""
    gain, aucs = report["over_unfiltered"][OURS], report["auc"]
    lowest = min(value for values in aucs.values() for value in values)
    return (
        f"filtered over unfiltered at equal tokens: {_points(gain['accuracy_over_seeds'])} of right "
        f"answers over seeds, {_points(gain['accuracy_over_questions'])} over questions; AUC "
        f"{fmean(aucs['corpus']):.3f}, lowest {lowest:.3f}; the goal is {GOAL}: "
        f"{'met' if lowest > GOAL else 'missed'}"
    )
