"""Line charts as inline SVG, in the page's colours; all lengths are pixels at full size."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from openqwen2vl.pages.axes import Frame, axes, colour, figure, legend


@dataclass(frozen=True)
class Series:
    """A named line; points whose y is no finite number are left out.

    Attributes:
        name: what the legend calls it.
        points: x and y, in the order in which they are joined.
    """

    name: str
    points: Sequence[tuple[float, float]]


def line_chart(series: Sequence[Series], x_label: str, y_label: str) -> str:
    """Draw lines over common axes, once for wide screens and once for phones.

    Args:
        series: at least one point between them; colours repeat after four.
        x_label: what x is, with its unit.
        y_label: what y is, with its unit.

    Returns:
        A ``<figure>`` with two ``<svg>`` elements.

    Raises:
        ValueError: no finite point to draw.
    """
    drawn = [replace(s, points=[p for p in s.points if math.isfinite(p[1])]) for s in series]
    points = [point for one in drawn for point in one.points]
    if not points:
        raise ValueError("a chart needs at least one finite point")
    x_range = min(p[0] for p in points), max(p[0] for p in points)
    y_range = min(p[1] for p in points), max(p[1] for p in points)
    names = [one.name for one in drawn]

    def content(frame: Frame) -> str:
        return axes(frame, x_label, y_label) + _lines(drawn, frame) + legend(names, frame)

    return figure(x_range, y_range, f"{y_label} over {x_label}: {', '.join(names)}", content)


def _lines(series: Sequence[Series], frame: Frame) -> str:
    parts = []
    for number, one in enumerate(series):
        path = " ".join(f"{frame.across(x):.1f},{frame.down(y):.1f}" for x, y in one.points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour(number)}" '
            f'stroke-width="1.8" stroke-linejoin="round"/>'
        )
    return "".join(parts)
