"""metrics.csv: one row per optimizer step, each step once, whatever happened in between."""

import csv
import io
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only

from openqwen2vl.formats.files import atomic_file

STEP = "step"
_TAIL = 1 << 16


class StepCSVLogger(Logger):
    """Appends and flushes row by row; a resumed run drops the rows that it will write again.

    Lightning's own CSV logger keeps rows in memory and deletes the file when a run resumes.

    Args:
        path: the csv file.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__()
        self.path = Path(path)
        self._columns: list[str] | None = None

    @property
    def name(self) -> str:
        """Give the logger's name."""
        return "csv"

    @property
    def version(self) -> int:
        """Give 0: a run folder is one version."""
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing: the run folder holds the config."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Append the row of a step; only rows with a loss are steps."""
        if step is None or "loss" not in metrics:
            return
        row = {STEP: step, **metrics}
        if self._columns is None:
            self._columns = self._open(step, list(row))
        unknown = [key for key in row if key not in self._columns]
        if unknown:
            self._widen(unknown)
        with self.path.open("a", newline="") as file:
            file.write(_line([_text(row.get(column)) for column in self._columns]))

    def _open(self, step: int, columns: list[str]) -> list[str]:
        """Keep the rows before ``step`` and the old columns; a torn last line goes."""
        known, rows = read_rows(self.path)
        columns = [*known, *(column for column in columns if column not in known)]
        self._rewrite(columns, [row for row in rows if int(row[STEP]) < step])
        return columns

    def _widen(self, unknown: list[str]) -> None:
        known, rows = read_rows(self.path)
        self._columns = [*known, *unknown]
        self._rewrite(self._columns, rows)

    def _rewrite(self, columns: list[str], rows: list[dict[str, str]]) -> None:
        with atomic_file(self.path) as file:
            file.write(_line(columns).encode())
            for row in rows:
                file.write(_line([row.get(column, "") for column in columns]).encode())


def read_rows(path: Path) -> tuple[list[str], list[dict[str, str]]]:
    """Read columns and complete rows of a metrics.csv; a last line cut off by a kill is left out."""
    if not path.is_file():
        return [], []
    text = path.read_text()
    whole = text[: text.rfind("\n") + 1]
    reader = csv.DictReader(io.StringIO(whole))
    columns = list(reader.fieldnames or [])
    return columns, [row for row in reader if None not in row.values()]


def last_step(path: Path) -> int:
    """Give the step of a metrics.csv's last complete row; 0 when it has none."""
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        # Rows are far shorter, and their first cell is the step.
        file.seek(max(0, path.stat().st_size - _TAIL))
        lines = file.read().split(b"\n")
    told = lines[-2].partition(b",")[0] if len(lines) > 1 else b""
    return int(told) if told.isdigit() else 0


def _line(cells: list[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow(cells)
    return buffer.getvalue()


def _text(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, float):
        # Every digit: two runs are compared by their rows, bit for bit.
        return "nan" if math.isnan(value) else repr(value)
    return str(value)
