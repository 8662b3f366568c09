"""Examine this machine for training: versions, GPUs, disk, packs, limits; say what to mend."""

import json
import sys
from collections import Counter
from pathlib import Path

from omegaconf import DictConfig, ListConfig
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from openqwen2vl.commands._doctor_data import disk_findings, pack_findings
from openqwen2vl.commands._doctor_finding import Finding, Level
from openqwen2vl.commands._doctor_machine import machine_findings
from openqwen2vl.commands._doctor_software import software_findings
from openqwen2vl.config import Schema
from openqwen2vl.formats.errors import UserError

TYPES = {
    "path": str,
    "sample": int,
    "images_per_second": float,
    "image_bytes": float,
    "space": float,
    "read_bytes": float,
    "json": bool,
}
SCHEMA = Schema(keys=frozenset([*TYPES, "packs", "hub"]), types=TYPES)
_WIDEST_KEY = 40
_STYLES = {Level.GREEN: "green", Level.YELLOW: "yellow", Level.RED: "bold red"}


def run(config: DictConfig) -> dict[str, object]:
    """Examine and print; green and yellow end with 0.

    Returns:
        ``worst`` level, how many checks have each, and the checks.

    Raises:
        UserError: something is red; the figures are printed first.
    """
    given = config.packs if isinstance(config.packs, ListConfig) else [config.packs]
    packs = [Path(path).expanduser() for path in given if path is not None]
    found = [
        *software_findings(list(config.hub)),
        *machine_findings(Path(config.path).expanduser(), config.space),
        *pack_findings(packs, config.sample),
        *disk_findings(config, packs),
    ]
    _show(found)
    figures = _figures(found)
    red = [one for one in found if one.level is Level.RED]
    if red:
        if config.json:
            sys.stdout.write(json.dumps(figures) + "\n")
        lines = [f"{one.name}: {one.found}; {one.todo}" for one in red]
        raise UserError("\n  ".join(["this machine is not ready:", *lines]))
    return figures


def _figures(found: list[Finding]) -> dict[str, object]:
    counts = Counter(one.level for one in found)
    return {
        "worst": max((one.level for one in found), key=list(Level).index).value,
        **{level.value: counts[level] for level in Level},
        "checks": [one.plain() for one in found],
    }


def _show(found: list[Finding]) -> None:
    """Print a row each; what to do stands below what was found, so that a key to type fits."""
    table = Table(box=None)
    table.add_column("", no_wrap=True)
    table.add_column("check", overflow="fold")
    table.add_column("found, and what to do", overflow="fold", min_width=_WIDEST_KEY)
    for one in found:
        style = _STYLES[one.level]
        table.add_row(f"[{style}]{one.level.value}[/]", escape(one.name), escape(one.found))
        if one.todo:
            table.add_row("", "", f"[bold]-> {escape(one.todo)}[/]")
    Console().print(table)
