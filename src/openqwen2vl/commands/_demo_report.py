"""The demo's page: what was learnt, how, and on which pictures it was right and wrong."""

from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from openqwen2vl.evaluation.choices import Judged, accuracy, by_topic, chance
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.pages.axes import Mark
from openqwen2vl.pages.chart import Series, line_chart
from openqwen2vl.pages.page import Page, Tile
from openqwen2vl.training.csv_log import read_rows

Answers = Mapping[str, Mapping[str, Sequence[Judged]]]
SETS = {
    "multiple_choice": "multiple choice, by the options' words",
    "letters": "multiple choice, by letters",
    "yesno": "yes or no",
}
SMOOTHING = 20


def scores(answers: Answers) -> list[list[str]]:
    """Give the table of accuracies: one row a set, chance and each model in percent."""
    rows = []
    for kind, label in SETS.items():
        guess = chance([one.item for one in answers["after"][kind]])
        shares = [guess, *(accuracy(model[kind]) for model in answers.values())]
        rows.append([label, str(len(answers["after"][kind])), *(f"{s:.1%}" for s in shares)])
    return rows


def losses(run_dir: Path) -> list[tuple[int, float]]:
    """Give step and loss of every step of a run."""
    _, rows = read_rows(run_dir / "metrics.csv")
    return [(int(row["step"]), float(row["loss"])) for row in rows]


def build_page(
    out: Path,
    answers: Answers,
    manifests: Mapping[str, Manifest],
    counts: Mapping[str, int],
    summary: Mapping[str, Any],
    tiles: int,
) -> Page:
    """Compose the page from what the stages gave."""
    page = Page(
        "What a tiny Open-Qwen2VL learns on a CPU",
        f"{sum(summary['seconds'].values()):.0f} seconds in all. Scenes and handwriting drawn from "
        "a seed; packed, pre-trained with a switch of resolution, fine-tuned, and asked questions "
        "about pictures it never saw.",
    )
    page.section("Held-out questions")
    page.table(["questions", "n", "chance", *answers], scores(answers))
    page.section("By topic", "Right answers after fine-tuning, multiple choice by words.")
    topics = by_topic(answers["after"]["multiple_choice"])
    page.table(["topic", "right", "of"], [[t, str(r), str(n)] for t, (r, n) in topics.items()])
    _curves(page, out)
    page.section("Packs", "Every document lies whole in one pack; fill is the share of no padding.")
    page.table(
        ["folder", "documents", "packs", "tokens per image", "fill", "least possible packs"],
        [_pack_row(name, manifest) for name, manifest in manifests.items()],
    )
    page.section("Time and data")
    page.table(["stage", "seconds"], [[k, f"{v:.1f}"] for k, v in summary["seconds"].items()])
    page.table(["drawn", "samples"], [[name, str(count)] for name, count in counts.items()])
    page.section(
        "Some questions", "The first of each set, right and wrong as they come; none was chosen."
    )
    after = answers["after"]
    half = tiles // 2
    shown = [*after["multiple_choice"][: tiles - half], *after["yesno"][:half]]
    page.tiles([_tile(one) for one in shown])
    return page


def _curves(page: Page, out: Path) -> None:
    _, rows = read_rows(out / "pretrain" / "metrics.csv")
    grids = [(int(row["step"]), int(row["grid"])) for row in rows]
    marks = [
        Mark(step, f"{before**2} to {grid**2} tokens an image")
        for (_, before), (step, grid) in pairwise(grids)
        if grid != before
    ]
    for stage, title in (("pretrain", "Pre-training"), ("sft", "Fine-tuning")):
        page.section(title, "Mean cross-entropy of a target token, in nats.")
        points = losses(out / stage)
        series = [
            Series("each step", points, faint=True),
            Series(f"mean of {SMOOTHING}", _smooth(points)),
        ]
        page.svg(line_chart(series, "optimizer step", "loss", marks if stage == "pretrain" else ()))


def _smooth(points: Sequence[tuple[int, float]]) -> list[tuple[int, float]]:
    means = []
    for index, (step, _) in enumerate(points):
        window = [loss for _, loss in points[max(0, index - SMOOTHING + 1) : index + 1]]
        means.append((step, sum(window) / len(window)))
    return means


def _pack_row(name: str, manifest: Manifest) -> list[str]:
    counts = manifest.counts
    return [
        name,
        f"{counts.documents:,}",
        f"{counts.packs:,}",
        str(manifest.spec.tokens_per_image),
        f"{manifest.fill:.1%}",
        f"{manifest.lower_bound:,}",
    ]


def _tile(judged: Judged) -> Tile:
    item = judged.item
    given = item.options[judged.chosen]
    verdict = ("right", "good") if judged.right else ("wrong", "bad")
    lines = [
        (item.question, ""),
        (" / ".join(item.options), "soft"),
        (f"answered {given}: {verdict[0]}", verdict[1]),
    ]
    if not judged.right:
        lines.append((f"the answer is {item.options[item.answer]}", "soft"))
    return Tile(lines, item.image.read_bytes(), f"picture of question {item.id}")
