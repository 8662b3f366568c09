"""The demo's page: what was learnt, how, and on which pictures it was right and wrong."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from openqwen2vl.evaluation.choices import Judged, accuracy, by_topic, chance
from openqwen2vl.formats.manifest import Manifest
from openqwen2vl.pages.page import Page, Tile
from openqwen2vl.pages.panel import STYLE
from openqwen2vl.training.csv_log import read_rows
from openqwen2vl.training.report.files import read_run
from openqwen2vl.training.report.page import REPORT
from openqwen2vl.training.report.panels import loss_chart

Answers = Mapping[str, Mapping[str, Sequence[Judged]]]
SETS = {
    "multiple_choice": "multiple choice, by the options' words",
    "letters": "multiple choice, by letters",
    "yesno": "yes or no",
}


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
        STYLE,
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
    for stage, title in (("pretrain", "Pre-training"), ("sft", "Fine-tuning")):
        run = read_run(out / stage)
        page.section(title)
        page.svg(loss_chart(run))
        if (run.path / REPORT).is_file():
            place = f"{stage}/{REPORT}"
            page.svg(f'<p>All of this run: <a href="{place}">{place}</a></p>')


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
