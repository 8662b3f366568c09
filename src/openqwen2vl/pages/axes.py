"""What charts share: a frame with axes, marks along x, a legend; all lengths are pixels."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

HEIGHT = 300
LEFT, RIGHT, TOP, BOTTOM = 52, 20, 44, 34
LETTER = 7
"""About the width of a letter at the style's 12 pixels."""
COLOURS = 4


@dataclass(frozen=True)
class Mark:
    """A vertical line at x with a word beside it."""

    x: float
    text: str


@dataclass(frozen=True)
class Frame:
    """A plot's width in pixels and the ticks whose first and last span its axes.

    Attributes:
        width: of the drawing.
        x_ticks: figures of the x axis.
        y_ticks: figures of the y axis.
        height: of the drawing.
        top: margin above the plot.
        bottom: margin below it.
    """

    width: int
    x_ticks: Sequence[float]
    y_ticks: Sequence[float]
    height: int = HEIGHT
    top: int = TOP
    bottom: int = BOTTOM

    def across(self, x: float) -> float:
        """Where a value of x lies, in pixels from the left."""
        share = (x - self.x_ticks[0]) / (self.x_ticks[-1] - self.x_ticks[0])
        return LEFT + share * (self.width - LEFT - RIGHT)

    def down(self, y: float) -> float:
        """Where a value of y lies, in pixels from the top."""
        share = (y - self.y_ticks[0]) / (self.y_ticks[-1] - self.y_ticks[0])
        return self.height - self.bottom - share * (self.height - self.top - self.bottom)


def figure(
    x_range: tuple[float, float],
    y_range: tuple[float, float],
    title: str,
    content: Callable[["Frame"], str],
) -> str:
    """Draw twice, for wide screens and for phones: one drawing that shrinks would shrink its letters.

    Args:
        x_range: what the x axis encloses.
        y_range: what the y axis encloses.
        title: what the drawing shows, in words.
        content: gives the SVG within a frame.

    Returns:
        A ``<figure>`` with two ``<svg>`` elements, of which the page's style shows one.
    """
    y_ticks = ticks(*y_range, 5)
    drawings = [
        f'<svg class="{name}" viewBox="0 0 {width} {HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>{content(frame)}</svg>"
        for name, width, count in (("wide", 760, 8), ("narrow", 360, 4))
        for frame in (Frame(width, ticks(*x_range, count), y_ticks),)
    ]
    return f'<figure class="chart">{"".join(drawings)}</figure>'


def axes(frame: Frame, x_label: str, y_label: str) -> str:
    """Draw both axes with their figures and labels."""
    right = frame.width - RIGHT
    parts = [
        f'<text x="{LEFT}" y="{TOP - 12}">{escape(y_label)}</text>',
        f'<text x="{right}" y="{HEIGHT - 2}" text-anchor="end">{escape(x_label)}</text>',
    ]
    for y in frame.y_ticks:
        v = frame.down(y)
        parts.append(rule((LEFT, v), (right, v), "var(--line)"))
        parts.append(f'<text x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in frame.x_ticks:
        h = frame.across(x)
        parts.append(f'<text x="{h:.1f}" y="{HEIGHT - 16}" text-anchor="middle">{x:g}</text>')
    return "".join(parts)


def mark_lines(marks: Sequence[Mark], frame: Frame) -> str:
    """Draw a dashed line for each mark; its words stand on the side that has more room."""
    parts = []
    for mark in marks:
        h = frame.across(mark.x)
        parts.append(rule((h, TOP), (h, HEIGHT - BOTTOM), "var(--soft)", dash="4 4"))
        room_right = frame.width - RIGHT - h > h - LEFT
        x, anchor = (h + 5, "start") if room_right else (h - 5, "end")
        parts.append(
            f'<text x="{x:.1f}" y="{TOP + 12}" text-anchor="{anchor}">{escape(mark.text)}</text>'
        )
    return "".join(parts)


def legend(names: Sequence[str], frame: Frame) -> str:
    """Write names in one line above the plot, placed from the right, each with its colour."""
    parts = []
    right = frame.width - RIGHT
    for number, one in reversed(list(enumerate(names))):
        right -= LETTER * len(one) + 34
        parts.append(rule((right, 10), (right + 18, 10), colour(number), width=3))
        parts.append(f'<text x="{right + 24}" y="14">{escape(one)}</text>')
    return "".join(parts)


def colour(number: int) -> str:
    """Give the page's colour of a series by its number; they repeat after four."""
    return f"var(--series-{number % COLOURS})"


def rule(
    start: tuple[float, float],
    end: tuple[float, float],
    colour: str,
    dash: str = "none",
    width: int = 1,
) -> str:
    """Draw a straight line."""
    return (
        f'<line x1="{start[0]:.1f}" y1="{start[1]:.1f}" x2="{end[0]:.1f}" y2="{end[1]:.1f}" '
        f'stroke="{colour}" stroke-dasharray="{dash}" stroke-width="{width}"/>'
    )


def ticks(low: float, high: float, count: int) -> list[float]:
    """Give round numbers that enclose a range: steps of 1, 2 or 5 times a power of ten."""
    if high - low < 1e-12:
        low, high = low - 0.5, high + 0.5
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * m for m in (1, 2, 5, 10) if power * m >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(k * step, 10) for k in range(first, last + 1)]
