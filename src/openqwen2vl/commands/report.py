"""Write the page of a run, finished, killed or under way: curves, speed, mixture, answers, spikes."""

from pathlib import Path

from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from openqwen2vl.config import Schema
from openqwen2vl.training.report.files import read_run
from openqwen2vl.training.report.headline import headline
from openqwen2vl.training.report.page import REPORT, build_page

_LEFT_OUT = ("hours_by_device",)  # in the terminal

SCHEMA = Schema(keys=frozenset(["run", "out", "json"]), types={"json": bool})


def run(config: DictConfig) -> dict[str, object]:
    """Write the page and print its headline.

    Returns:
        The headline's figures, and the page's place.
    """
    path = Path(config.run).expanduser()
    found = read_run(path)
    out = Path(config.out).expanduser() if config.out else path / REPORT
    build_page(found).save(out)
    figures = headline(found).record()
    table = Table(show_header=False, box=None)
    for name, value in figures.items():
        if value is not None and name not in _LEFT_OUT:
            table.add_row(name.replace("_", " "), _text(value))
    for device, hours in figures["hours_by_device"].items():
        table.add_row(f"hours of {device}", f"{hours:.4g}")
    Console().print(table)
    Console().print(str(out), soft_wrap=True, highlight=False)
    return {**figures, "page": str(out)}


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    return f"{value:,}" if isinstance(value, int) else str(value)
