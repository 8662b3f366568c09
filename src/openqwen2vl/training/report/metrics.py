"""The figures of metrics.csv as columns: read in one pass, smoothed, thinned for drawing."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from pyarrow import csv as arrow_csv

from openqwen2vl.formats.errors import UserError
from openqwen2vl.training.csv_log import STEP

Floats = NDArray[np.float64]
Points = list[tuple[float, float]]

_BUCKETS = 300


@dataclass(frozen=True)
class Metrics:
    """Rows of a run, each step once.

    Attributes:
        steps: float64 (N,), rising.
        columns: by name float64 (N,); NaN where a row has no figure.
        again: steps that the file holds once more, where a later start went on; the later row counts.
    """

    steps: Floats
    columns: Mapping[str, Floats] = field(repr=False)
    again: list[int]

    def column(self, name: str) -> Floats:
        """Give a column; NaN throughout where there is none."""
        none = np.full(len(self.steps), np.nan)
        return self.columns.get(name, none)

    def has(self, name: str) -> bool:
        """Tell whether a column holds any finite figure."""
        return bool(np.isfinite(self.column(name)).any())

    def parts(self, prefix: str) -> dict[str, Floats]:
        """Give the columns ``prefix/NAME`` that hold something, by NAME."""
        start = f"{prefix}/"
        names = [name for name in self.columns if name.startswith(start)]
        return {name.removeprefix(start): self.columns[name] for name in names if self.has(name)}

    @property
    def seconds(self) -> Floats:
        """Seconds of each step, of which its rate was worked out."""
        rate = self.column("tokens_per_second")
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.where(rate > 0, self.column("tokens") / rate, np.nan)


def read_metrics(path: Path) -> Metrics:
    """Read a metrics.csv that may be under way; a last line cut off by a kill is left out.

    Args:
        path: of the file; one that is missing or empty has no rows.

    Raises:
        UserError: a cell that is no number, or no column of steps.
    """
    empty = Metrics(np.zeros(0), {}, [])
    if not path.is_file() or not path.stat().st_size:
        return empty
    with pa.memory_map(str(path)) as file:
        # Mapped, not copied: pages come from the disk as the reader gets to them.
        content = file.read_buffer()
        whole = content.slice(0, _whole(content))
        if not whole.size:
            return empty
        try:
            return _columns(path, whole)
        except pa.ArrowInvalid as error:
            raise UserError(f"{path} is no table of figures ({error}); it is damaged") from error


def _whole(content: pa.Buffer) -> int:
    """Give the size of what ends with a line break."""
    view = memoryview(content)
    stop = len(view)
    while stop:
        start = max(0, stop - 65536)
        found = bytes(view[start:stop]).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        stop = start
    return 0


def _columns(path: Path, content: pa.Buffer) -> Metrics:
    with path.open(newline="") as file:
        names = next(csv.reader(file))
    if STEP not in names:
        raise UserError(f"{path} has no column {STEP!r}; it is of no run, or damaged")
    table = arrow_csv.read_csv(
        pa.BufferReader(content),
        # Rows of another width were torn by a kill.
        parse_options=arrow_csv.ParseOptions(invalid_row_handler=lambda row: "skip"),
        convert_options=arrow_csv.ConvertOptions(
            column_types=dict.fromkeys(names, pa.float64()), null_values=["", "nan"]
        ),
    )
    columns = {
        name: np.asarray(table.column(place).to_numpy(), np.float64)
        for place, name in enumerate(names)
    }
    steps = columns.pop(STEP)
    kept, again = _last_of_each(steps)
    return Metrics(steps[kept], {name: values[kept] for name, values in columns.items()}, again)


def _last_of_each(steps: Floats) -> tuple[NDArray[np.int64], list[int]]:
    """Give the rows that count, by step, and the steps at which the file goes back."""
    good = np.flatnonzero(np.isfinite(steps))
    told = steps[good]
    _, backwards = np.unique(told[::-1], return_index=True)
    rows = good[len(told) - 1 - backwards]
    back = np.flatnonzero(np.diff(told) <= 0) + 1
    return rows, [int(told[place]) for place in back]


def smooth(values: Floats, window: int, weights: Floats | None = None) -> Floats:
    """Give means over the last rows, those without a finite figure left out.

    Args:
        values: float64 (N,).
        window: rows of a mean.
        weights: float64 (N,), what each counts for; None: alike.

    Returns:
        float64 (N,), NaN where the window holds nothing.
    """
    counts = np.ones_like(values) if weights is None else weights
    finite = np.isfinite(values) & np.isfinite(counts)
    parts = [np.where(finite, values * counts, 0.0), np.where(finite, counts, 0.0)]
    sums = [np.concatenate([np.zeros(1), np.cumsum(part)]) for part in parts]
    stop = np.arange(1, len(values) + 1)
    start = np.maximum(0, stop - window)
    total, count = (one[stop] - one[start] for one in sums)
    # A difference of sums is never quite 0.
    enough = count > 1e-12 * np.maximum(1.0, sums[1][-1])
    return np.where(enough, total / np.where(enough, count, 1.0), np.nan)


def window_of(rows: int) -> int:
    """Give how many rows a smoothed line's means span: about a twentieth, from 5 to 200."""
    return min(200, max(5, rows // 20))


def thin(x: Floats, y: Floats, buckets: int = _BUCKETS) -> Points:
    """Give the points to draw: of each stretch the lowest and the highest, in their order.

    Args:
        x: float64 (N,), rising.
        y: float64 (N,); what is not finite is left out.
        buckets: stretches of equally many points; no more than twice as many points come back,
            and all of them where there are no more.
    """
    keep = np.isfinite(y)
    x, y = x[keep], y[keep]
    if len(y) > 2 * buckets:
        edges = np.linspace(0, len(y), buckets + 1).astype(np.int64)
        places = {0, len(y) - 1}
        for start, stop in pairwise(edges.tolist()):
            part = y[start:stop]
            places |= {start + int(part.argmin()), start + int(part.argmax())}
        chosen = np.array(sorted(places))
        x, y = x[chosen], y[chosen]
    return list(zip(x.tolist(), y.tolist(), strict=True))
