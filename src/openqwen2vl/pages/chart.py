"""Line charts as inline SVG, in the page's colours; all lengths are pixels at full size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from html import escape

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 44, 34
LETTER = 7
"""About the width of a letter at the style's 12 pixels."""
COLOURS = 4


@dataclass(frozen=True)
class Series:
    """A named line; points whose y is no finite number are left out.

    Attributes:
        name: what the legend calls it.
        points: x and y, in the order in which they are joined.
        faint: whether it lies behind, for raw figures under their mean.
    """

    name: str
    points: Sequence[tuple[float, float]]
    faint: bool = False


@dataclass(frozen=True)
class Mark:
    """A vertical line at x with a word beside it."""

    x: float
    text: str


@dataclass(frozen=True)
class _Frame:
    """A plot's width in pixels and the ticks whose first and last span its axes."""

    width: int
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]

    def across(self, x: float) -> float:
        """Where a value of x lies, in pixels from the left."""
        share = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        return LEFT + share * (self.width - LEFT - RIGHT)

    def down(self, y: float) -> float:
        """Where a value of y lies, in pixels from the top."""
        share = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return HEIGHT - BOTTOM - share * (HEIGHT - TOP - BOTTOM)


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, marks: Sequence[Mark] = ()
) -> str:
    """Draw lines over common axes, once for wide screens and once for phones.

    A drawing that only shrinks would shrink its letters too; the page's style shows the one that
    fits, so that they stay readable.

    Args:
        series: at least one point between them; colours repeat after four.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        marks: events along x.

    Returns:
        A ``<figure>`` with two ``<svg>`` elements.

    Raises:
        ValueError: no finite point to draw.
    """
    drawn = [replace(s, points=[p for p in s.points if math.isfinite(p[1])]) for s in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    x_range = [min(p[0] for p in points), max(p[0] for p in points)]
    y_ticks = _ticks(min(p[1] for p in points), max(p[1] for p in points), 5)
    drawings = [
        f'<svg class="{name}" viewBox="0 0 {width} {HEIGHT}" role="img">'
        f"<title>{escape(_title(drawn, x_label, y_label))}</title>"
        f"{_axes(frame, x_label, y_label)}{_lines(drawn, frame)}{_marks(marks, frame)}"
        f"{_legend(drawn, frame)}</svg>"
        for name, width, count in (("wide", 760, 8), ("narrow", 360, 4))
        for frame in (_Frame(width, _ticks(x_range[0], x_range[1], count), y_ticks),)
    ]
    return f'<figure class="chart">{"".join(drawings)}</figure>'


def _title(series: Sequence[Series], x_label: str, y_label: str) -> str:
    return f"{y_label} over {x_label}: {', '.join(one.name for one in series)}"


def _axes(frame: _Frame, x_label: str, y_label: str) -> str:
    right = frame.width - RIGHT
    parts = [
        f'<text x="{LEFT}" y="{TOP - 12}">{escape(y_label)}</text>',
        f'<text x="{right}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>',
    ]
    for y in frame.y_ticks:
        v = frame.down(y)
        parts.append(_rule((LEFT, v), (right, v), "var(--line)"))
        parts.append(f'<text x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in frame.x_ticks:
        h = frame.across(x)
        parts.append(f'<text x="{h:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{x:g}</text>')
    return "".join(parts)


def _lines(series: Sequence[Series], frame: _Frame) -> str:
    parts = []
    for number, one in enumerate(series):
        path = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in one.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{_colour(number)}" '
            f'stroke-width="1.8" stroke-linejoin="round" opacity="{0.35 if one.faint else 1}"/>'
        )
    return "".join(parts)


def _marks(marks: Sequence[Mark], frame: _Frame) -> str:
    """A dashed line for each mark; its words stand on the side that has more room."""
    parts = []
    for mark in marks:
        h = frame.across(mark.x)
        parts.append(_rule((h, TOP), (h, HEIGHT - BOTTOM), "var(--soft)", dash="4 4"))
        room_right = frame.width - RIGHT - h > h - LEFT
        x, anchor = (h + 5, "start") if room_right else (h - 5, "end")
        parts.append(
            f'<text x="{x:.1f}" y="{TOP + 12}" text-anchor="{anchor}">{escape(mark.text)}</text>'
        )
    return "".join(parts)


def _legend(series: Sequence[Series], frame: _Frame) -> str:
    """Names in one line above the plot, placed from the right."""
    parts = []
    right = frame.width - RIGHT
    for number, one in reversed(list(enumerate(series))):
        right -= LETTER * len(one.name) + 34
        parts.append(_rule((right, 10), (right + 18, 10), _colour(number), width=3))
        parts.append(f'<text x="{right + 24}" y="14">{escape(one.name)}</text>')
    return "".join(parts)


def _colour(number: int) -> str:
    return f"var(--series-{number % COLOURS})"


def _rule(
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    dash: str = "none",
    width: int = 1,
) -> str:
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{colour}" stroke-dasharray="{dash}" stroke-width="{width}"/>'
    )


def _ticks(low: float, high: float, count: int) -> list[float]:
    """Give round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
