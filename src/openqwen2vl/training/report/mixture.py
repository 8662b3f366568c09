"""What a run took of each source, beside what its mixture meant it to take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

from openqwen2vl.pages.panel import short
from openqwen2vl.training.report.files import RunFiles

STYLE = """
.shares { display: grid; grid-template-columns: fit-content(42%) 1fr max-content; gap: .35rem .8rem;
  align-items: center; font-variant-numeric: tabular-nums; max-width: 44rem; overflow-wrap: anywhere; }
.shares .track { position: relative; height: .8rem; background: var(--panel); border-radius: .2rem; }
.shares .took { display: block; height: 100%; background: var(--series-0); border-radius: .2rem; }
.shares .plan { position: absolute; top: -.2rem; bottom: -.2rem; width: 3px; margin-left: -1.5px;
  background: var(--series-1); border-radius: 2px; }
.shares .figure { text-align: right; color: var(--soft); }
"""


@dataclass(frozen=True)
class Share:
    """One source: numbers taken and planned up to the same step."""

    source: str
    took: Mapping[str, float]
    planned: Mapping[str, float]


def shares(run: RunFiles) -> list[Share]:
    """Pair each source's consumption with its plan, in the mixture's order.

    Returns:
        One a source; without a plan ``planned`` is empty.
    """
    planned = _planned(run.plan, int(run.record.get("step") or 0))
    return [Share(name, took, planned.get(name, {})) for name, took in run.consumed.items()]


def _planned(plan: Mapping[str, Any], steps: int) -> dict[str, dict[str, float]]:
    totals: dict[str, dict[str, float]] = {}
    for phase in plan.get("phases", []):
        done = max(0, min(steps, phase["stop"]) - phase["start"])
        for source, counts in phase["per_step"].items():
            mine = totals.setdefault(source, {})
            for name, count in counts.items():
                mine[name] = mine.get(name, 0.0) + done * count
    return totals


def of_all(rows: Sequence[Share], name: str) -> tuple[list[float], list[float]]:
    """Give each source's share of what was taken and of what was planned, as fractions."""
    took = [float(row.took.get(name, 0)) for row in rows]
    planned = [float(row.planned.get(name, 0)) for row in rows]
    return _fractions(took), _fractions(planned)


def _fractions(values: Sequence[float]) -> list[float]:
    total = sum(values)
    return [value / total if total else 0.0 for value in values]


def share_bars(rows: Sequence[Share]) -> str:
    """Draw each source's share of the tokens as a bar, with a stroke where it was planned."""
    took, planned = of_all(rows, "tokens")
    most = max([*took, *planned], default=0.0) or 1.0
    cells = []
    for row, mine, wanted in zip(rows, took, planned, strict=True):
        stroke = f'<span class="plan" style="left:{100 * wanted / most:.2f}%"></span>'
        cells.append(
            f'<span>{escape(row.source)}</span><span class="track">'
            f'<span class="took" style="width:{100 * mine / most:.2f}%"></span>'
            f'{stroke if row.planned else ""}</span><span class="figure">{mine:.1%}</span>'
        )
    return f'<div class="shares">{"".join(cells)}</div>'


def share_table(rows: Sequence[Share]) -> tuple[list[str], list[list[str]]]:
    """Give columns and rows: tokens and documents, shares, planned ones where known, passes."""
    columns, cells = ["source"], [[row.source] for row in rows]
    known = any(row.planned for row in rows)
    for name in ("tokens", "documents"):
        columns += [name, "share", *(["planned", "off by, points"] if known else [])]
        for cell, row, mine, wanted in zip(cells, rows, *of_all(rows, name), strict=True):
            cell += [short(float(row.took.get(name, 0))), f"{mine:.1%}"]
            if known:
                cell += [f"{wanted:.1%}", f"{100 * (mine - wanted):+.2f}"]
    for cell, row in zip(cells, rows, strict=True):
        cell.append(f"{row.took.get('passes', 0):.2f}")
    return [*columns, "passes"], cells
