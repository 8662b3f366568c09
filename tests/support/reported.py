"""Folders of runs that never ran: the files of which a run's page is made."""

import csv
import json
import re
from collections.abc import Mapping, Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from openqwen2vl.training.report.files import read_run
from openqwen2vl.training.report.page import build_page

SOURCES = ("red", "blue")
NASTY = '<script>alert("1")</script> & more'


def row(step: int, **changes: Any) -> dict[str, Any]:
    """Give a row of metrics.csv as a CPU writes it: a step of 1,000 tokens takes half a second."""
    told: dict[str, Any] = {
        "step": step,
        "loss": 2 + 4 / step,
        "lr": 1e-3,
        "grad_norm": 0.5,
        "skipped": 0,
        "tokens": 1000,
        "images": 8,
        "documents": 10,
        "target_tokens": 300,
        "grid": 3,
        "tokens_per_second": 2000.0,
        "data_wait": 0.25,
    }
    for source in SOURCES:
        told |= {f"loss/{source}": 2.0, f"target_tokens/{source}": 150}
    return told | changes


def on_gpu(step: int) -> dict[str, Any]:
    """Give the figures that a GPU's row has beside these."""
    return {"mfu": 0.4, "mfu_palm": 0.5, "peak_memory_gib": 60.0 + step / 100}


def write_metrics(root: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    """Write metrics.csv; the columns are those of all rows."""
    root.mkdir(parents=True, exist_ok=True)
    columns = list(dict.fromkeys(name for one in rows for name in one))
    with (root / "metrics.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return root / "metrics.csv"


def write_folder(root: Path, rows: Sequence[Mapping[str, Any]] = (), **files: Any) -> Path:
    """Write a run's folder.

    Args:
        root: of it.
        rows: of metrics.csv; none: no such file.
        files: ``record``, ``config``, ``consumed`` and ``plan`` as dictionaries, ``spikes`` and
            ``samples`` as lists of them.
    """
    root.mkdir(parents=True, exist_ok=True)
    if rows:
        write_metrics(root, rows)
    names = {"record": "run.json", "config": "config.json"}
    for key, content in files.items():
        if isinstance(content, dict):
            (root / names.get(key, f"{key}.json")).write_text(json.dumps(content))
        else:
            lines = "".join(json.dumps(one) + "\n" for one in content)
            (root / f"{key}.jsonl").write_text(lines)
    return root


def record(step: int, steps: int, state: str = "finished", starts: Sequence[int] = (0,)) -> Any:
    """Give a run.json: a start an hour, on two devices."""
    hours = {"NVIDIA H200": 2.0 * len(starts)}
    told = [
        {"step": s, "again": 3 * (s > 0), "device": "NVIDIA H200", "devices": 2, "hours": 1.0}
        for s in starts
    ]
    device = {"device": "NVIDIA H200", "devices": 2, "hours_by_device": hours}
    return {"state": state, "step": step, "steps": steps, **device, "starts": told}


def rows(count: int, **changes: Any) -> list[dict[str, Any]]:
    """Give the first rows of a run."""
    return [row(step, **changes) for step in range(1, count + 1)]


class Outline(HTMLParser):
    """What a page says and what it is made of."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.html = build_page(read_run(path)).html()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(self.html)
        self.figures = self.html.split('<figure class="panel">')[1:]
        self.panels = [re.findall(r"<h3><span>(.*?)</span>", one)[0] for one in self.figures]
        self.text = " ".join(self.texts)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.texts.append(data.strip())

    def tiles(self) -> dict[str, str]:
        """Give the headline's figures by their names."""
        found = re.findall(
            r'class="tile"><p class="big[^"]*">(.*?)</p><p class="soft">(.*?)<', self.html
        )
        return {name: value for value, name in found}
