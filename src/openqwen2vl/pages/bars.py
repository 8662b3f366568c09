"""Bars as plain HTML: lists of labelled lengths, and one bar cut into parts."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

STYLE = """
.bars { display: grid; grid-template-columns: fit-content(45%) 1fr max-content; gap: .2rem .7rem;
  align-items: center; font-variant-numeric: tabular-nums; max-width: 44rem;
  overflow-wrap: anywhere; }
.bars .fill { background: var(--series-0); height: .75rem; border-radius: .2rem; }
.bars .figure { text-align: right; color: var(--soft); }
.strip { display: flex; height: 1.1rem; border-radius: .25rem; overflow: hidden; outline: 1px solid var(--line); }
.strip > span { display: block; height: 100%; }
.strip > .edge { box-shadow: inset 2px 0 0 var(--paper); }
"""


@dataclass(frozen=True)
class Bar:
    """A label, a length, and the figure to write beside it."""

    label: str
    value: float
    figure: str


def bars(rows: Sequence[Bar]) -> str:
    """Draw bars below each other; the longest fills the width."""
    most = max((row.value for row in rows), default=0.0) or 1.0
    cells = "".join(
        f'<span>{escape(row.label)}</span><span><span class="fill" style="display:block;'
        f'width:{100 * row.value / most:.2f}%"></span></span>'
        f'<span class="figure">{escape(row.figure)}</span>'
        for row in rows
    )
    return f'<div class="bars">{cells}</div>'


@dataclass(frozen=True)
class Segment:
    """A part of a strip: its share, its class of the style, and whether something begins there."""

    share: float
    style: str
    begins: bool = False


def strip(segments: Sequence[Segment], title: str) -> str:
    """Draw one bar cut into parts; ``title`` says in words what it shows."""
    parts = "".join(
        f'<span class="{escape(segment.style)}{" edge" if segment.begins else ""}" '
        f'style="width:{100 * segment.share:.3f}%"></span>'
        for segment in segments
    )
    return f'<div class="strip" role="img" aria-label="{escape(title)}">{parts}</div>'
