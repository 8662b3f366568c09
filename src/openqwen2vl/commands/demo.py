"""The main job end to end on an embedded corpus: draw, pack, pre-train, fine-tune, answer."""

import json
import shutil
from collections.abc import Mapping
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from openqwen2vl.commands._demo import Demo
from openqwen2vl.commands._demo_report import Answers, build_page, losses, scores
from openqwen2vl.config import Schema
from openqwen2vl.corpus.build import CorpusSpec
from openqwen2vl.evaluation.choices import accuracy, chance
from openqwen2vl.formats.errors import UserError
from openqwen2vl.formats.files import atomic_file
from openqwen2vl.formats.manifest import Manifest

_KEYS = "out overwrite json corpus vocab_size context low_part validation tiles"


def _counts(config: DictConfig) -> None:
    CorpusSpec(**config.corpus)


SCHEMA = Schema(
    keys=frozenset(_KEYS.split()),
    types={
        **dict.fromkeys(("overwrite", "json"), bool),
        **dict.fromkeys(("vocab_size", "context", "tiles"), int),
        **dict.fromkeys(("low_part", "validation"), float),
    },
    groups={"corpus": CorpusSpec},
    rules=[_counts],
)
SUMMARY, REPORT = "summary.json", "report.html"
MADE = ("raw", "questions", "tokenizer", "packs", "pretrain", "sft", SUMMARY, REPORT)


def run(config: DictConfig) -> dict[str, Any]:
    """Run every stage and write `report.html` and `summary.json`; gives the summary.

    Raises:
        UserError: the folder holds an earlier demo, or a stage failed.
    """
    demo = Demo(config)
    _clear(demo, config.overwrite)
    counts = demo.draw()
    manifests = demo.pack()
    demo.train("pretrain")
    demo.train("sft")
    answers = demo.answer()
    summary = _summary(demo, answers, manifests)
    page = build_page(demo.out, answers, manifests, counts, summary, config.tiles)
    page.save(demo.out / REPORT)
    with atomic_file(demo.out / SUMMARY) as file:
        file.write((json.dumps(summary, indent=1) + "\n").encode())
    table = Table("questions", "n", "chance", *answers, box=None)
    for row in scores(answers):
        table.add_row(*row)
    console = Console()
    console.print(table)
    console.print(f"{sum(demo.seconds.values()):.0f} s; see {demo.out / REPORT}", soft_wrap=True)
    return summary


def _clear(demo: Demo, overwrite: bool) -> None:
    """Make room; only what a demo makes is ever removed."""
    found = [demo.out / name for name in MADE if (demo.out / name).exists()]
    if found and not overwrite:
        raise UserError(
            f"{demo.out} holds an earlier demo ({found[0].name}); set overwrite=true, or give "
            "another out="
        )
    for path in found:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def _summary(demo: Demo, answers: Answers, manifests: Mapping[str, Manifest]) -> dict[str, Any]:
    after, before = answers["after"], answers["before"]
    counts = [manifest.counts for manifest in manifests.values()]
    curve = losses(demo.out / "pretrain")
    return {
        "chance_mc": chance(demo.items("multiple_choice")),
        "before_mc": accuracy(before["multiple_choice"]),
        "after_mc": accuracy(after["multiple_choice"]),
        "letters_mc": accuracy(after["letters"]),
        "chance_yesno": chance(demo.items("yesno")),
        "before_yesno": accuracy(before["yesno"]),
        "after_yesno": accuracy(after["yesno"]),
        "loss_first": curve[0][1],
        "loss_last": curve[-1][1],
        "fill": sum(c.tokens for c in counts)
        / sum(m.counts.packs * m.spec.context for m in manifests.values()),
        "seconds": demo.seconds,
    }
