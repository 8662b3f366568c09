"""A run in a dozen figures: how it stands, what it has cost, how well it went."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from openqwen2vl.training.report.files import RunFiles
from openqwen2vl.training.report.metrics import Floats, Metrics, smooth, window_of

GOOD = ("finished", "under way")


@dataclass(frozen=True, kw_only=True)
class Headline:
    """The figures at a page's top; None where a run has none.

    Attributes:
        state: finished, stopped, failed, killed, under way, or not known.
        step: the last one.
        steps: of the whole run.
        tokens: of the rows there are.
        documents: of the rows.
        images: of the rows.
        loss: mean over the last steps, as the smoothed line draws it.
        val_loss: the newest held-out loss.
        best_val_loss: the lowest.
        best_val_step: where that was.
        mfu: the median of the smoothed line.
        mfu_palm: likewise, counted as reports on language models do.
        tokens_per_second: over all rows that know their time.
        data_wait: share of the time that rank 0 waited for data.
        peak_memory_gib: the most of any step, on rank 0.
        hours: by the clock, over all starts.
        hours_by_device: device-hours by the devices' names.
        hours_left: by the median step; None unless the run is under way.
        restarts: starts after the first.
        skipped: steps that changed no weight.
        spikes: steps in spikes.jsonl that are more than skipped.
    """

    state: str
    step: int
    steps: int | None
    tokens: int | None
    documents: int | None
    images: int | None
    loss: float | None
    val_loss: float | None
    best_val_loss: float | None
    best_val_step: int | None
    mfu: float | None
    mfu_palm: float | None
    tokens_per_second: float | None
    data_wait: float | None
    peak_memory_gib: float | None
    hours: float | None
    hours_by_device: Mapping[str, float]
    hours_left: float | None
    restarts: int
    skipped: int
    spikes: int

    def record(self) -> dict[str, Any]:
        """Give plain values."""
        return asdict(self)


def headline(run: RunFiles) -> Headline:
    """Work the figures out."""
    metrics, record = run.metrics, run.record
    seconds = metrics.seconds
    held_out = metrics.column("val_loss")
    best = int(np.nanargmin(held_out)) if metrics.has("val_loss") else None
    state, steps = _state(run), record.get("steps") or run.plan.get("steps")
    left = None
    if state == "under way" and steps and np.isfinite(seconds).any():
        left = (int(steps) - run.step) * float(np.nanmedian(seconds)) / 3600
    return Headline(
        state=state,
        step=run.step,
        steps=None if steps is None else int(steps),
        tokens=_total(metrics, "tokens"),
        documents=_total(metrics, "documents"),
        images=_total(metrics, "images"),
        loss=_last(smooth(metrics.column("loss"), window_of(len(metrics.steps)))),
        val_loss=_last(held_out),
        best_val_loss=None if best is None else float(held_out[best]),
        best_val_step=None if best is None else int(metrics.steps[best]),
        mfu=_typical(metrics, "mfu"),
        mfu_palm=_typical(metrics, "mfu_palm"),
        tokens_per_second=_share(metrics.column("tokens"), seconds),
        data_wait=_share(metrics.column("data_wait") * seconds, seconds),
        peak_memory_gib=_most(metrics.column("peak_memory_gib")),
        hours=_hours(record),
        hours_by_device=dict(record.get("hours_by_device", {})),
        hours_left=left,
        restarts=max(0, len(run.starts) - 1) or len(run.restarts),
        skipped=int(np.nansum(metrics.column("skipped"))),
        spikes=sum(1 for spike in run.spikes if is_spike(spike.figures)),
    )


def is_spike(figures: Mapping[str, Any]) -> bool:
    """Tell a leap from a step that merely had no finite gradient."""
    return isinstance(figures.get("loss"), float) and isinstance(figures.get("grad_norm"), float)


def _state(run: RunFiles) -> str:
    told = str(run.record.get("state", "not known"))
    if told != "running":
        return told
    # A killed process cannot say so; its lock is gone, though.
    return "under way" if run.written else "killed"


def _hours(record: Mapping[str, Any]) -> float | None:
    starts = record.get("starts", [])
    if starts:
        return float(sum(one["hours"] for one in starts))
    if record.get("devices") and "device_hours" in record:
        return float(record["device_hours"]) / int(record["devices"])
    return None


def _total(metrics: Metrics, name: str) -> int | None:
    return int(np.nansum(metrics.column(name))) if metrics.has(name) else None


def _last(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _most(values: Floats) -> float | None:
    finite = values[np.isfinite(values)]
    return float(finite.max()) if len(finite) else None


def _typical(metrics: Metrics, name: str) -> float | None:
    means = smooth(metrics.column(name), window_of(len(metrics.steps)), metrics.seconds)
    middle = float(np.nanmedian(means)) if np.isfinite(means).any() else math.nan
    return middle if math.isfinite(middle) else None


def _share(part: Floats, whole: Floats) -> float | None:
    known = np.isfinite(part) & np.isfinite(whole)
    total = float(whole[known].sum())
    return float(part[known].sum()) / total if total else None
