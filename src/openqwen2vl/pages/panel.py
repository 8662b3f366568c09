"""Small line charts that share an x axis, several on a page, one drawing each for all screens."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

from openqwen2vl.pages.axes import LEFT, RIGHT, Frame, colour, rule, ticks

WIDTH, HEIGHT = 440, 236
TOP, BOTTOM = 22, 38
_DOTS = 12  # a line of so few points shows where they are
_LETTER = 6.5  # about the width of one on a phone, where they are larger

STYLE = """
.panels { display: grid; gap: 1.1rem 1.6rem;
  grid-template-columns: repeat(auto-fill, minmax(min(100%, 27rem), 1fr)); }
.panel { margin: 0; min-width: 0; }
.panel h3 { font-size: .95rem; margin: 0; display: flex; gap: .8rem; align-items: baseline;
  justify-content: space-between; }
.panel h3 strong { font-variant-numeric: tabular-nums; white-space: nowrap; }
.panel p { font-size: .8rem; margin: 0; color: var(--soft); overflow-wrap: anywhere; }
.panel svg { width: 100%; height: auto; display: block; }
.panel text { fill: var(--soft); font-size: 11px; font-variant-numeric: tabular-nums; }
.panel .band { fill: var(--series-0); opacity: .09; }
.panel .event { stroke: var(--bad); stroke-width: 1.5; }
.panel p.keys { display: flex; flex-wrap: wrap; gap: 0 .9rem; }
.keys i { display: inline-block; width: 1.1rem; height: 0; border-top: 3px solid; margin-right: .35rem;
  vertical-align: .22rem; }
.keys i.dashed { border-top: 2px dashed var(--ink); } .keys i.faint { opacity: .4; }
.keys i.event { border-top: 0; border-left: 2px solid var(--bad); width: 0; height: .7rem;
  vertical-align: -.05rem; }
@media (max-width: 36rem) { .panel text { font-size: 12.5px; } }
"""


@dataclass(frozen=True)
class Band:
    """A stretch of x with words above it, fewer where it is narrow; every other one is shaded."""

    start: float
    stop: float
    text: str
    brief: str


@dataclass(frozen=True)
class Line:
    """A named line, already thin enough to draw.

    Attributes:
        name: what it is.
        points: x and finite y, in the order in which they are joined.
        colour: number of its colour.
        faint: whether it lies behind, for raw figures under their mean.
    """

    name: str
    points: Sequence[tuple[float, float]]
    colour: int = 0
    faint: bool = False


@dataclass(frozen=True)
class Level:
    """A horizontal line at y with its name, such as a bound."""

    y: float
    text: str


@dataclass(frozen=True)
class Scene:
    """What all panels of a page have in common.

    Attributes:
        x_range: what the x axes enclose.
        x_name: what x is.
        bands: stretches of x, in their order.
        marks: x of dashed vertical lines.
        mark_name: what they are.
        second: a second reading of x, to stand below the first, NaN where it is not known; None:
            there is none.
        second_name: what that is.
    """

    x_range: tuple[float, float]
    x_name: str
    bands: Sequence[Band] = ()
    marks: Sequence[float] = ()
    mark_name: str = ""
    second: Callable[[float], float] | None = None
    second_name: str = ""


@dataclass(frozen=True)
class Panel:
    """One chart of a scene.

    Attributes:
        title: its heading.
        lines: from back to front.
        y_range: what the y axis encloses; what lies outside is drawn at the border.
        now: the newest figure, to stand beside the heading.
        note: a sentence below.
        level: a bound.
        events: x of short strokes at the bottom.
        event_name: what they are.
    """

    title: str
    lines: Sequence[Line]
    y_range: tuple[float, float]
    now: str = ""
    note: str = ""
    level: Level | None = None
    events: Sequence[float] = field(default=())
    event_name: str = ""


def panels(scene: Scene, drawn: Sequence[Panel]) -> str:
    """Draw charts side by side, as many as fit.

    Args:
        scene: what they share.
        drawn: in their order.

    Returns:
        HTML in the page's colours; the page needs `STYLE`.
    """
    return f'<div class="panels">{"".join(_panel(scene, one) for one in drawn)}</div>'


def short(number: float) -> str:
    """Write a figure in at most six letters or so: 12k, 3.4M, 1.5e-4."""
    size = abs(number)
    for power, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if size >= power * 0.9995:
            return f"{number / power:.3g}{letter}"
    if 0 < size < 1e-3:
        mantissa, _, power_ = f"{number:.1e}".partition("e")
        return f"{mantissa.removesuffix('.0')}e{int(power_)}"
    return f"{number:.3g}"


def _panel(scene: Scene, panel: Panel) -> str:
    frame = Frame(
        WIDTH,
        ticks(*scene.x_range, 5),
        ticks(*panel.y_range, 4),
        height=HEIGHT,
        top=TOP,
        bottom=BOTTOM,
    )
    content = "".join(
        (
            _bands(scene.bands, frame),
            _axes(scene, frame),
            _level(panel.level, frame),
            _lines(panel, frame),
            _marks(scene.marks, frame),
            _events(panel.events, frame),
        )
    )
    now = f"<strong>{escape(panel.now)}</strong>" if panel.now else ""
    note = f"<p>{escape(panel.note)}</p>" if panel.note else ""
    return (
        f'<figure class="panel"><h3><span>{escape(panel.title)}</span>{now}</h3>'
        f"{_keys(scene, panel)}"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{escape(panel.title)} over '
        f"{escape(scene.x_name)}</title>{content}</svg>{note}</figure>"
    )


def _keys(scene: Scene, panel: Panel) -> str:
    """Write what the lines are; a single one is what the heading says."""
    keys = []
    for one in panel.lines if len(panel.lines) > 1 else ():
        keys.append(("faint" if one.faint else "", f"border-color:{colour(one.colour)}", one.name))
    if panel.level is not None:
        keys.append(("", "border-top:2px dotted var(--ink)", panel.level.text))
    if scene.marks:
        keys.append(("dashed", "", scene.mark_name))
    if panel.events:
        keys.append(("event", "", panel.event_name))
    told = "".join(
        f'<span><i class="{style}" style="{inline}"></i>{escape(name)}</span>'
        for style, inline, name in keys
    )
    return f'<p class="keys">{told}</p>' if keys else ""


def _axes(scene: Scene, frame: Frame) -> str:
    right, floor = frame.width - RIGHT, frame.height - frame.bottom
    parts = [
        f'<text x="{LEFT - 8}" y="{floor + 16}" text-anchor="end">{escape(scene.x_name)}</text>'
    ]
    if scene.second is not None:
        name = escape(scene.second_name)
        parts.append(f'<text x="{LEFT - 8}" y="{floor + 31}" text-anchor="end">{name}</text>')
    for y in frame.y_ticks:
        v = frame.down(y)
        parts.append(rule((LEFT, v), (right, v), "var(--line)"))
        parts.append(f'<text x="{LEFT - 8}" y="{v + 4:.1f}" text-anchor="end">{short(y)}</text>')
    anchors = ["start", *["middle"] * (len(frame.x_ticks) - 2), "end"]
    for x, anchor in zip(frame.x_ticks, anchors, strict=True):
        h = frame.across(x)
        readings = [short(x)]
        if scene.second is not None and math.isfinite(reading := scene.second(x)):
            readings.append(short(reading))
        for line, text in enumerate(readings):
            parts.append(
                f'<text x="{h:.1f}" y="{floor + 16 + 15 * line}" text-anchor="{anchor}">{text}</text>'
            )
    return "".join(parts)


def _bands(bands: Sequence[Band], frame: Frame) -> str:
    parts = []
    floor = frame.height - frame.bottom
    for number, band in enumerate(bands):
        left, right = frame.across(band.start), frame.across(band.stop)
        if number % 2:
            parts.append(
                f'<rect class="band" x="{left:.1f}" y="{frame.top}" width="{right - left:.1f}" '
                f'height="{floor - frame.top}"/>'
            )
        words = (one for one in (band.text, band.brief) if right - left > _LETTER * len(one))
        if text := next(words, ""):
            middle = (left + right) / 2
            parts.append(
                f'<text x="{middle:.1f}" y="{frame.top - 6}" text-anchor="middle">'
                f"{escape(text)}</text>"
            )
    return "".join(parts)


def _level(level: Level | None, frame: Frame) -> str:
    if level is None or not frame.y_ticks[0] <= level.y <= frame.y_ticks[-1]:
        return ""
    v = frame.down(level.y)
    return rule((LEFT, v), (frame.width - RIGHT, v), "var(--ink)", dash="2 3")


def _lines(panel: Panel, frame: Frame) -> str:
    parts = []
    low, high = frame.y_ticks[0], frame.y_ticks[-1]
    for one in panel.lines:
        path = " ".join(
            f"{frame.across(x):.1f},{frame.down(min(max(y, low), high)):.1f}" for x, y in one.points
        )
        look = 'stroke-width="1" opacity="0.4"' if one.faint else 'stroke-width="1.8"'
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour(one.colour)}" '
            f'stroke-linejoin="round" {look}/>'
        )
        if len(one.points) <= _DOTS and not one.faint:
            dots = (point.split(",") for point in path.split())
            look = f'r="2.6" fill="{colour(one.colour)}"'
            parts += [f'<circle cx="{x}" cy="{y}" {look}/>' for x, y in dots]
    return "".join(parts)


def _marks(marks: Sequence[float], frame: Frame) -> str:
    floor = frame.height - frame.bottom
    lines = ((frame.across(x), frame.top, floor) for x in marks)
    return "".join(rule((h, top), (h, low), "var(--ink)", dash="5 3") for h, top, low in lines)


def _events(events: Sequence[float], frame: Frame) -> str:
    floor = frame.height - frame.bottom
    places = sorted({round(frame.across(x), 1) for x in events})
    return "".join(
        f'<line class="event" x1="{h}" y1="{floor}" x2="{h}" y2="{floor - 9}"/>' for h in places
    )
