"""What every bench shares: the machine in words, ratios of interleaved rounds, a table, a file."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "transformers", "timm", "lightning", "pillow", "webdataset", "polars")


def machine() -> dict[str, object]:
    """Give what a figure depends on: processor, cores, versions, commit."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
        "commit": _commit(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Give the median, the smallest and the largest."""
    return {"median": median(values), "min": min(values), "max": max(values)}


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Give the spread of round-by-round ratios: what slows a round slows both sides of it."""
    return spread([a / b for a, b in zip(ours, theirs, strict=True)])


def show(ratio: Mapping[str, float]) -> str:
    """Give a spread as text: ``1.62x (1.55 to 1.70)``."""
    return f"{ratio['median']:.2f}x ({ratio['min']:.2f} to {ratio['max']:.2f})"


def table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print columns; the first is flush left, the others flush right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    for row in cells:
        first, *rest = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join([first.strip().ljust(widths[0]), *rest]))


def finish(figures: Mapping[str, object], headline: str, path: Path | None) -> None:
    """Write the figures as JSON where a path is given, then print the headline last."""
    if path is not None:
        path.write_text(json.dumps({**figures, "headline": headline}, indent=2) + "\n")
    print(headline)


def _processor() -> str:
    names = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return names[0].partition(":")[2].strip() if names else platform.machine()


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""


def _commit() -> str | None:
    """Give the checkout's commit; with ``+`` when tracked files differ from it."""
    try:
        words = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
        done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()
