"""The charts of a run: which there are, what each draws, why one is left out."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from openqwen2vl.pages.panel import Band, Level, Line, Panel, Scene, panels, short
from openqwen2vl.training.report.files import RunFiles
from openqwen2vl.training.report.metrics import Floats, Metrics, smooth, thin, window_of

_LINES = 4  # of a panel, as many as the page has colours
# What lies beyond is drawn at the border: the first steps or a leap would flatten all the rest.
_PERCENT = 98
_EVENTS = 400


@dataclass
class Charts:
    """Panels of a run and what there was nothing to draw for.

    Attributes:
        scene: the x axis of all.
        learning: loss and what moves it.
        speed: of the run and where its time went.
        left_out: names of panels with the reason.
    """

    scene: Scene
    learning: list[Panel] = field(default_factory=list)
    speed: list[Panel] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def charts(run: RunFiles) -> Charts:
    """Compose the charts of a run that has at least one row."""
    drawing = _Drawing(run)
    found = Charts(scene(run))
    found.learning = [*drawing.learning(found.left_out)]
    found.speed = [*drawing.speed(found.left_out)]
    return found


def loss_chart(run: RunFiles) -> str:
    """Draw a run's loss alone, for pages with `STYLE` of panels that tell of more than this run."""
    return panels(scene(run), [_Drawing(run).loss()])


def scene(run: RunFiles) -> Scene:
    """Give the x axis of a run: steps and tokens, phases of resolution, restarts."""
    metrics = run.metrics
    steps = metrics.steps
    before, last = max(0.0, float(steps[0]) - 1), float(steps[-1])
    tokens = np.concatenate([[0.0], np.cumsum(np.nan_to_num(metrics.column("tokens")))])
    places = np.concatenate([[before], steps])

    def read(step: float) -> float:
        return float(np.interp(step, places, tokens, right=np.nan))

    return Scene(
        x_range=(before, last),
        x_name="step",
        bands=_bands(metrics),
        marks=[step for step in run.restarts if before <= step <= last],
        mark_name="restart",
        second=read if tokens[-1] > 0 else None,
        second_name="tokens",
    )


def _bands(metrics: Metrics) -> list[Band]:
    grids = metrics.column("grid")
    known = np.flatnonzero(np.isfinite(grids))
    if not len(known):
        return []
    steps, grids = metrics.steps[known], grids[known]
    edges = [0, *(np.flatnonzero(np.diff(grids)) + 1).tolist(), len(grids)]
    found = []
    for start, stop in pairwise(edges):
        visual = int(grids[start]) ** 2
        found.append(
            Band(
                max(0.0, float(steps[start]) - 1),
                float(steps[stop - 1]),
                text=f"{visual} tokens an image",
                brief=str(visual),
            )
        )
    return found


class _Drawing:
    def __init__(self, run: RunFiles) -> None:
        self.run, self.metrics = run, run.metrics
        self.steps = run.metrics.steps
        self.window = window_of(len(self.steps))
        skipped = self.steps[self.metrics.column("skipped") > 0]
        self.skipped: list[float] = skipped[:: 1 + len(skipped) // _EVENTS].tolist()

    def loss(self) -> Panel:
        """Give the loss over all sources."""
        values, targets = self.metrics.column("loss"), self.metrics.column("target_tokens")
        weights = targets if self.metrics.has("target_tokens") else None
        return self._smoothed("Loss, nats a target token", values, weights=weights, events=True)

    def learning(self, left_out: dict[str, str]) -> Iterator[Panel]:
        """Yield loss, held-out loss, learning rate and gradient norm."""
        metrics = self.metrics
        yield self.loss()
        weights = metrics.parts("target_tokens")
        yield from self._by_source("Loss by source", metrics.parts("loss"), weights)
        if metrics.has("val_loss"):
            yield self._plain("Held-out loss", {"held out": metrics.column("val_loss")})
            yield from self._by_source("Held-out loss by source", metrics.parts("val_loss"))
        else:
            left_out["held-out loss"] = (
                "not measured yet: callbacks.validation does so now and then and at the end, on "
                "packs that have a held-out part"
            )
        yield self._plain("Learning rate", {"lr": metrics.column("lr")}, zero=True)
        clip = self.run.config.get("clip")
        level = Level(float(clip), f"clipped above {clip:g}") if isinstance(clip, float) else None
        norm = metrics.column("grad_norm")
        yield self._smoothed("Gradient norm", norm, zero=True, level=level, events=True)

    def speed(self, left_out: dict[str, str]) -> Iterator[Panel]:
        """Yield rates, MFU, waiting, step time and memory, as far as the run has them."""
        metrics, seconds = self.metrics, self.metrics.seconds
        if np.isfinite(seconds).any():
            rate = metrics.column("tokens_per_second")
            yield self._smoothed("Tokens a second", rate, weights=seconds, zero=True)
        else:
            left_out["speed"] = "not recorded: callbacks.throughput is off"
        if metrics.has("mfu"):
            yield self._mfu(seconds)
        else:
            device = self.run.record.get("device", "the device")
            left_out["MFU"] = (
                f"no peak is known for {device}; +callbacks.throughput.peak_tflops=N gives one"
            )
        if metrics.has("data_wait") and np.isfinite(seconds).any():
            wait = 100 * metrics.column("data_wait")
            title = "Time waiting for data, %"
            yield self._smoothed(title, wait, weights=seconds, zero=True)
        if np.isfinite(seconds).any():
            yield self._smoothed("Seconds a step", seconds, zero=True)
        if metrics.has("peak_memory_gib"):
            memory = {"rank 0": metrics.column("peak_memory_gib")}
            yield self._plain("Peak memory, GiB", memory, zero=True)
        else:
            left_out["peak memory"] = "recorded on GPUs only"

    def _mfu(self, seconds: Floats) -> Panel:
        kinds = {"strict": "mfu", "as PaLM counts": "mfu_palm"}
        means = {
            name: smooth(100 * self.metrics.column(column), self.window, seconds)
            for name, column in kinds.items()
            if self.metrics.has(column)
        }
        return self._plain("MFU, %", means, zero=True, note=f"Means of {self.window} steps.")

    def _by_source(
        self, title: str, parts: Mapping[str, Floats], weights: Mapping[str, Floats] | None = None
    ) -> Iterator[Panel]:
        """Yield panels of as many sources as there are colours; smoothed where weights are given."""
        note = "" if weights is None else f"Means of {self.window} steps, by target tokens."
        names = list(parts)
        charts = -(-len(names) // _LINES)
        for number in range(charts):
            # As equally full as can be: 5 sources are 3 and 2.
            mine = names[len(names) * number // charts : len(names) * (number + 1) // charts]
            lines = {name: parts[name] for name in mine}
            if weights is not None:
                lines = {n: smooth(v, self.window, weights.get(n)) for n, v in lines.items()}
            yield self._plain(title, lines, note=note)

    def _smoothed(
        self,
        title: str,
        values: Floats,
        *,
        weights: Floats | None = None,
        zero: bool = False,
        level: Level | None = None,
        events: bool = False,
    ) -> Panel:
        """Draw each step faintly under the mean of the last ones."""
        means = smooth(values, self.window, weights)
        low, high = _span([values, means], zero)
        beyond = int(np.count_nonzero(values > high))
        told = "1 step lies" if beyond == 1 else f"{beyond:,} steps lie"
        drawn = [
            Line("each step", thin(self.steps, values), faint=True),
            Line(f"mean of {self.window}", thin(self.steps, means)),
        ]
        shown = events and bool(self.skipped)
        return Panel(
            title=title,
            lines=drawn,
            y_range=(low, high),
            now=_now(means),
            note=f"{told} above the chart." if beyond else "",
            level=level,
            events=self.skipped if shown else (),
            event_name="changed no weight" if shown else "",
        )

    def _plain(
        self, title: str, lines: Mapping[str, Floats], *, zero: bool = False, note: str = ""
    ) -> Panel:
        """Draw lines as they are."""
        return Panel(
            title=title,
            lines=[
                Line(name, thin(self.steps, values), colour=number)
                for number, (name, values) in enumerate(lines.items())
            ],
            y_range=_span(list(lines.values()), zero),
            now=_now(next(iter(lines.values()))) if len(lines) == 1 else "",
            note=note,
        )


def _span(lines: Sequence[Floats], zero: bool) -> tuple[float, float]:
    """Give what an axis should enclose; all-NaN lines count as 0."""
    known = np.concatenate([line[np.isfinite(line)] for line in lines])
    if not len(known):
        return 0.0, 1.0
    low, high = float(known.min()), float(np.percentile(known, _PERCENT))
    return (min(0.0, low) if zero else low), max(high, low)


def _now(values: Floats) -> str:
    finite = values[np.isfinite(values)]
    return short(float(finite[-1])) if len(finite) else ""
