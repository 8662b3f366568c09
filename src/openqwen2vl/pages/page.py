"""A self-contained HTML page: no script, no network, light and dark, phone and wide screen."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from openqwen2vl.formats.files import atomic_file

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #5b6675; --line: #d9dee6;
  --paper: #ffffff; --panel: #f5f7fa; --good: #1a7f4b; --bad: #b3362b;
  --series-0: #2b63c6; --series-1: #c2571a; --series-2: #1a7f4b; --series-3: #8a3ea8; }
@media (prefers-color-scheme: dark) { :root { --ink: #e7ebf1; --soft: #9aa6b5; --line: #333d4a;
  --paper: #12171e; --panel: #1b222c; --good: #5cc98d; --bad: #f08579;
  --series-0: #7ba7f5; --series-1: #f0985c; --series-2: #5cc98d; --series-3: #cf93e6; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 1.5rem 1rem 4rem; background: var(--paper);
  color: var(--ink); font: 16px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .3rem; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; }
p { max-width: 44rem; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; } .scroll + .scroll { margin-top: 1rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .9rem .35rem 0; text-align: right; border-bottom: 1px solid var(--line);
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; white-space: normal; min-width: 8rem; } th { color: var(--soft); font-weight: 500; }
.tiles { display: grid; gap: .8rem; grid-template-columns: repeat(auto-fill, minmax(9rem, 1fr)); }
.tile { background: var(--panel); border-radius: .5rem; padding: .8rem; }
.tile img { width: 100%; max-width: 9rem; image-rendering: auto; border-radius: .3rem;
  display: block; margin-bottom: .5rem; }
.tile p { margin: .15rem 0; } .good { color: var(--good); } .bad { color: var(--bad); }
.big { font-size: 1.7rem; font-weight: 600; line-height: 1.2; }
.chart { margin: .6rem 0; } .chart svg { width: 100%; height: auto; display: block; }
.chart text { fill: var(--soft); font-size: 12px; } .chart .narrow { display: none; }
@media (max-width: 36rem) { th, td { font-size: .85rem; padding-right: .5rem; }
  th:first-child, td:first-child { min-width: 6rem; }
  .tile img { max-width: 100%; } .chart .wide { display: none; } .chart .narrow { display: block; } }
"""


@dataclass(frozen=True)
class Tile:
    """A small panel: an optional picture and lines, each with an optional class of the style."""

    lines: Sequence[tuple[str, str]]
    image: bytes | None = None
    alt: str = ""


class Page:
    """Collects sections from top to bottom; everything given as text is escaped.

    Args:
        title: heading and window title.
        subtitle: one line below it.
        style: CSS beside that of all pages.
    """

    def __init__(self, title: str, subtitle: str = "", style: str = "") -> None:
        self._title, self._style = title, style
        self._parts = [f"<h1>{escape(title)}</h1>", f'<p class="soft">{escape(subtitle)}</p>']

    def section(self, title: str, text: str = "") -> None:
        """Begin a section with an optional paragraph."""
        self._parts.append(f"<h2>{escape(title)}</h2>")
        if text:
            self._parts.append(f"<p>{escape(text)}</p>")

    def table(self, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Add a table; the first column is text, the others figures."""
        head = "".join(f"<th>{escape(column)}</th>" for column in columns)
        body = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows
        )
        self._parts.append(
            f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>{body}</tbody></table></div>"
        )

    def tiles(self, tiles: Sequence[Tile]) -> None:
        """Add panels side by side, as many in a row as fit."""
        self._parts.append(f'<div class="tiles">{"".join(_tile(tile) for tile in tiles)}</div>')

    def svg(self, drawing: str) -> None:
        """Add a drawing that `chart` or `bars` made, or other HTML that is escaped already."""
        self._parts.append(drawing)

    def html(self) -> str:
        """Give the whole page."""
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(self._title)}</title><style>{STYLE}{self._style}</style></head>"
            f"<body><main>{''.join(self._parts)}</main></body></html>\n"
        )

    def save(self, path: Path) -> None:
        """Write the page, atomically."""
        with atomic_file(path) as file:
            file.write(self.html().encode())


def _tile(tile: Tile) -> str:
    parts = []
    if tile.image is not None:
        kind = "png" if tile.image.startswith(b"\x89PNG") else "jpeg"
        data = base64.b64encode(tile.image).decode()
        parts.append(f'<img src="data:image/{kind};base64,{data}" alt="{escape(tile.alt)}">')
    for text, style in tile.lines:
        parts.append(f'<p class="{escape(style)}">{escape(text)}</p>')
    return f'<div class="tile">{"".join(parts)}</div>'
