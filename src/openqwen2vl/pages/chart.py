"""Line charts as inline SVG, in the page's colours."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 760, 300
LEFT, RIGHT, TOP, BOTTOM = 56, 12, 26, 34
COLOURS = 4


@dataclass(frozen=True)
class Series:
    """A named line; points whose y is no finite number are left out."""

    name: str
    points: Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Mark:
    """A vertical line at x with a word beside it."""

    x: float
    text: str


def line_chart(
    series: Sequence[Series], x_label: str, y_label: str, marks: Sequence[Mark] = ()
) -> str:
    """Draw lines over common axes.

    Args:
        series: at least one point between them; colours repeat after four.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.
        marks: events along x.

    Returns:
        An ``<svg>`` element that scales to its container.

    Raises:
        ValueError: no finite point to draw.
    """
    lines = [(s.name, [p for p in s.points if math.isfinite(p[1])]) for s in series]
    points = [point for _, line in lines for point in line]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    x_ticks = _ticks(min(p[0] for p in points), max(p[0] for p in points))
    y_ticks = _ticks(min(p[1] for p in points), max(p[1] for p in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (x - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        up = (y - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return (
            LEFT + across * (WIDTH - LEFT - RIGHT),
            HEIGHT - BOTTOM - up * (HEIGHT - TOP - BOTTOM),
        )

    parts = [_title(series, x_label, y_label)]
    for y in y_ticks:
        _, v = place(x_ticks[0], y)
        parts.append(_rule(LEFT, v, WIDTH - RIGHT, v))
        parts.append(f'<text x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in x_ticks:
        h, _ = place(x, y_ticks[0])
        parts.append(f'<text x="{h:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{x:g}</text>')
    for mark in marks:
        h, _ = place(mark.x, y_ticks[0])
        parts.append(_rule(h, TOP, h, HEIGHT - BOTTOM, dashed=True))
        parts.append(f'<text x="{h + 5:.1f}" y="{TOP + 12}">{escape(mark.text)}</text>')
    for number, (_, line) in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*place(*point)) for point in line)
        colour = f"var(--series-{number % COLOURS})"
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.8" '
            'stroke-linejoin="round"/>'
        )
    parts += _legend([name for name, _ in lines], x_label, y_label)
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{"".join(parts)}</svg>'


def _title(series: Sequence[Series], x_label: str, y_label: str) -> str:
    names = ", ".join(one.name for one in series)
    return f"<title>{escape(f'{y_label} over {x_label}: {names}')}</title>"


def _rule(x1: float, y1: float, x2: float, y2: float, dashed: bool = False) -> str:
    dash = ' stroke-dasharray="4 4"' if dashed else ""
    colour = "var(--soft)" if dashed else "var(--line)"
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}"{dash}/>'
    )


def _legend(names: Sequence[str], x_label: str, y_label: str) -> list[str]:
    parts = [
        f'<text x="{LEFT}" y="14">{escape(y_label)}</text>',
        f'<text x="{WIDTH - RIGHT}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>',
    ]
    right = WIDTH - RIGHT
    for number, name in reversed(list(enumerate(names))):
        # About seven units a letter at this size; the names are placed from the right.
        right -= 7 * len(name) + 34
        colour = f"var(--series-{number % COLOURS})"
        parts.append(
            f'<line x1="{right}" y1="10" x2="{right + 18}" y2="10" stroke="{colour}" '
            f'stroke-width="3"/><text x="{right + 24}" y="14">{escape(name)}</text>'
        )
    return parts


def _ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Give round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
