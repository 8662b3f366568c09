"""The page of a run, composed from what its folder tells."""

import json
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from openqwen2vl.pages.page import Page, Tile
from openqwen2vl.pages.panel import STYLE as PANELS
from openqwen2vl.pages.panel import panels, short
from openqwen2vl.training.report import answers, mixture
from openqwen2vl.training.report.files import RunFiles, Spike, read_run
from openqwen2vl.training.report.headline import GOOD, Headline, headline, is_spike
from openqwen2vl.training.report.panels import charts

REPORT = "report.html"
_STYLE = f"""{PANELS}{mixture.STYLE}{answers.STYLE}
.state {{ font-weight: 600; }} .tile .big {{ overflow-wrap: anywhere; }}
.tiles {{ margin-top: 1rem; }}
td:first-child {{ overflow-wrap: anywhere; }}
details {{ margin: .8rem 0; }} summary {{ cursor: pointer; font-weight: 600; }}
pre {{ overflow-x: auto; background: var(--panel); border-radius: .5rem; padding: .9rem;
  font: .8rem/1.45 ui-monospace, monospace; }}
"""
_SPIKES = 30


def write_report(path: Path) -> Path:
    """Write ``report.html`` into a run's folder, atomically; gives its place.

    Args:
        path: of the folder.

    Raises:
        UserError: no run there, a damaged file, or no space.
    """
    out = path / REPORT
    build_page(read_run(path)).save(out)
    return out


def build_page(run: RunFiles) -> Page:
    """Compose the page: a function of the folder's files alone."""
    figures = headline(run)
    stage = run.config.get("stage")
    page = Page(f"Run {run.name}", f"{f'{stage}, ' if stage else ''}{_standing(figures)}", _STYLE)
    page.tiles([Tile(lines) for lines in _tiles(run, figures)])
    if len(run.metrics.steps):
        _charts(page, run)
    else:
        page.section("Charts", "No step has been written yet.")
    _mixture(page, run)
    _answers(page, run)
    _spikes(page, run)
    _starts(page, run)
    _settings(page, run)
    return page


def _standing(figures: Headline) -> str:
    of_all = f" of {figures.steps:,}" if figures.steps is not None else ""
    told = f"{figures.state} at step {figures.step:,}{of_all}"
    if figures.hours_left is not None:
        told += f", about {_duration(figures.hours_left)} to go"
    return told


def _tiles(run: RunFiles, figures: Headline) -> list[list[tuple[str, str]]]:
    look = "good" if figures.state in GOOD else "bad"
    tiles = [[(figures.state, f"big {look}"), (_progress(figures), "soft")]]
    counts = {"tokens": figures.tokens, "documents": figures.documents, "images": figures.images}
    tiles += [[(short(n), "big"), (name, "soft")] for name, n in counts.items() if n is not None]
    if figures.loss is not None:
        tiles.append([(f"{figures.loss:.3f}", "big"), ("loss, mean of the last steps", "soft")])
    if figures.val_loss is not None:
        best = f"best {figures.best_val_loss:.3f} at step {figures.best_val_step:,}"
        tiles.append(
            [(f"{figures.val_loss:.3f}", "big"), ("held-out loss", "soft"), (best, "soft")]
        )
    if figures.hours is not None:
        tiles.append([(_duration(figures.hours), "big"), ("by the clock", "soft")])
    for device, hours in figures.hours_by_device.items():
        kind = "CPU" if device == "cpu" else "GPU"
        name = "" if device == "cpu" else f" of {device}"
        tiles.append([(f"{hours:,.3g}", "big"), (f"{kind}-hours{name}", "soft")])
    if figures.tokens_per_second is not None:
        rate = short(figures.tokens_per_second)
        tiles.append([(rate, "big"), ("tokens a second, all devices", "soft")])
    if figures.mfu is not None:
        palm = f"{figures.mfu_palm:.1%} as PaLM counts" if figures.mfu_palm is not None else ""
        tiles.append([(f"{figures.mfu:.1%}", "big"), ("MFU, median", "soft"), (palm, "soft")])
    if figures.data_wait is not None:
        tiles.append(
            [(f"{figures.data_wait:.1%}", "big"), ("of the time waiting for data", "soft")]
        )
    if figures.peak_memory_gib is not None:
        tiles.append([(f"{figures.peak_memory_gib:.1f} GiB", "big"), ("peak memory", "soft")])
    troubles = {
        "restart": figures.restarts,
        "skipped step": figures.skipped,
        "spike": figures.spikes,
    }
    for name, count in troubles.items():
        tiles.append([(f"{count:,}", "big"), (name if count == 1 else f"{name}s", "soft")])
    return tiles


def _progress(figures: Headline) -> str:
    of_all = f" of {figures.steps:,}" if figures.steps is not None else ""
    return f"step {figures.step:,}{of_all}"


def _duration(hours: float) -> str:
    seconds = round(3600 * hours)
    if seconds < 120:
        return f"{seconds} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def _charts(page: Page, run: RunFiles) -> None:
    drawn = charts(run)
    page.section("Learning")
    page.svg(panels(drawn.scene, drawn.learning))
    page.section("Speed", "Of all devices; waiting and memory are rank 0's.")
    page.svg(panels(drawn.scene, drawn.speed))
    for name, why in drawn.left_out.items():
        page.svg(f'<p class="soft">Left out: {escape(name)}: {escape(why)}.</p>')


def _mixture(page: Page, run: RunFiles) -> None:
    rows = mixture.shares(run)
    if not rows:
        return
    step = int(run.record.get("step") or 0)
    planned = any(row.planned for row in rows)
    stroke = "; the stroke is what the mixture means it to take" if planned else ""
    page.section("Mixture", f"Each source's share of the tokens up to step {step:,}{stroke}.")
    page.svg(mixture.share_bars(rows))
    page.svg("<br>")
    page.table(*mixture.share_table(rows))


def _answers(page: Page, run: RunFiles) -> None:
    asked = answers.documents(run)
    if not asked:
        page.section("Sample answers", "None: callbacks.answers has not asked yet, or is off.")
        return
    page.section("Sample answers", "Of held-out documents, greedily, as training went on.")
    for rounds in asked:
        page.svg(answers.sample(rounds, run.pictures))


def _spikes(page: Page, run: RunFiles) -> None:
    if not run.spikes:
        page.section("Spikes and skipped steps", "None.")
        return
    shown = run.spikes[-_SPIKES:]
    left = len(run.spikes) - len(shown)
    page.section(
        "Spikes and skipped steps",
        "z: robust standard deviations above the median of the steps before. Each step's documents, "
        f"with pictures: openqwen2vl trace run={run.path} step=N loss=true."
        + (f" The last {len(shown)}; {left:,} more are in spikes.jsonl." if left else ""),
    )
    columns = [
        "step",
        "what",
        "loss",
        "z of the loss",
        "gradient norm",
        "z of the norm",
        "weights",
        "documents",
        "most from",
    ]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join(_spike(spike) for spike in shown)
    page.svg(
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _spike(spike: Spike) -> str:
    figures = spike.figures
    step = f"{spike.step:,}"
    if spike.traced is not None:
        step = f'<a href="{escape(spike.traced)}">{step}</a>'
    total = sum(spike.sources.values())
    most = max(spike.sources, key=lambda name: spike.sources[name], default="")
    cells = [
        "spike" if is_spike(figures) else "not finite",
        *(_figure(figures.get(name)) for name in ("loss", "loss_z", "grad_norm", "grad_norm_z")),
        "left alone" if figures.get("skipped") else "changed",
        f"{total:,}",
        f"{most} {spike.sources[most] / total:.0%}" if total else "",
    ]
    return f"<tr><td>{step}</td>{''.join(f'<td>{escape(cell)}</td>' for cell in cells)}</tr>"


def _figure(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float | int) else "-"


def _starts(page: Page, run: RunFiles) -> None:
    if len(run.starts) < 2:
        return
    page.section("Starts", "Steps that were taken again came after the checkpoint of the restart.")
    rows = [
        [
            f"from step {one['step']:,}",
            f"{one['again']:,}",
            f"{one['devices']} x {one['device']}",
            _duration(one["hours"]),
        ]
        for one in run.starts
    ]
    page.table(["start", "taken again", "on", "by the clock"], rows)


def _settings(page: Page, run: RunFiles) -> None:
    page.section("Settings")
    versions: Mapping[str, Any] = run.record.get("versions", {})
    folded = {
        "Versions": "\n".join(f"{name} {number}" for name, number in versions.items()),
        "Config": json.dumps(run.config, indent=1) if run.config else "",
    }
    for name, text in folded.items():
        if text:
            page.svg(f"<details><summary>{name}</summary><pre>{escape(text)}</pre></details>")
