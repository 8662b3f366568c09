"""The page of `curate`: the funnel, what thresholds cut, examples, overlap between sources."""

import io
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from openqwen2vl.curation.examples import Example, draw_examples
from openqwen2vl.curation.funnel import LOSSES, funnel
from openqwen2vl.curation.histograms import Histogram, histograms
from openqwen2vl.curation.request import Curation
from openqwen2vl.curation.samples import Sample
from openqwen2vl.curation.shards import of_conversations
from openqwen2vl.formats.errors import ImageError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.formats.rejects import Unusable
from openqwen2vl.pages.axes import Mark
from openqwen2vl.pages.bars import STYLE, Bar, bars
from openqwen2vl.pages.histogram import Layer, histogram
from openqwen2vl.pages.page import Page, Tile

_EXAMPLES = 6
_SIDE = 144  # pixels of an example
_CAPTION = 160  # letters of a caption or a turn
_TURNS = 4  # of a conversation
_SPEAKERS = {"user": "soft", "system": "soft"}  # answers stand out from what is asked
_WIDTH = "@media (min-width: 40rem) { .tile { overflow-wrap: anywhere; } }"


def build_page(curation: Curation, found: Mapping[str, Any]) -> Page:
    """Build the page of what a curation has done so far; selection at least.

    Args:
        curation: what was asked.
        found: what `curate` returned.

    Raises:
        UserError: what it shows is no longer there.
    """
    sources = list(curation.chosen.sources)
    page = Page("What was kept, and why", f"{', '.join(sources)} in {curation.out}", STYLE + _WIDTH)
    _funnels(page, found, sources, _talking(curation))
    _unreadable(page, curation.out, sources)
    _overlap(page, curation.out, sources)
    _contamination(page, found.get("deduplicate", {}).get("contamination", {}))
    tables = curation.open_inputs()
    for name, rule in curation.chosen.sources.items():
        figures = histograms(tables[rule.input], rule, _selection(curation.out, name))
        seen = found["select"]["sources"][name]["seen"]
        page.section(f"{name}: {rule.keep}", f"selected from {rule.input}{_part(figures, seen)}")
        for drawn in figures:
            page.svg(_histogram(drawn))
        if curation.shards_of(rule.input):
            _examples(page, curation, name, rule.input)
    return page


def _selection(out: Path, name: str) -> Path:
    return out / "selection" / f"{name}.parquet"


def _talking(curation: Curation) -> list[str]:
    """Name the sources of conversations."""
    rules = curation.chosen.sources.items()
    return [name for name, rule in rules if of_conversations(curation.shards_of(rule.input))]


def _funnels(
    page: Page, found: Mapping[str, Any], sources: Sequence[str], talking: Sequence[str]
) -> None:
    """One bar for each source and step, and the same in figures."""
    text = "How many samples each step lost, by reason, and how many are left."
    if talking:
        text += (
            f" {', '.join(talking)}: a sample is a conversation; two are duplicates by their uid, or "
            "by their whole text and all their pictures, never by a picture alone."
        )
    page.section("The funnel", text)
    for name in sources:
        told = funnel(found, name)
        whole = told["delivered"]["samples"]
        rows = [Bar(f"{name}: delivered", whole, f"{whole:,}")]
        for step in LOSSES:
            for reason, count in told.get(step, {}).items():
                share = f"-{count:,} ({count / max(whole, 1):.1%})"
                rows.append(Bar(f"{step}: {reason}", count, share))
        kept = told["kept"]["samples"]
        rows.append(Bar(f"{name}: kept", kept, f"{kept:,} ({kept / max(whole, 1):.1%})"))
        page.svg(f'<div class="chart">{bars(rows)}</div>')
    terms = [
        [f"{name}: {text}", f"{lost:,}"]
        for name in sources
        for text, lost in found["select"]["sources"][name]["terms"].items()
    ]
    page.table(["condition", "samples that it loses"], terms)


def _unreadable(page: Page, out: Path, sources: Sequence[str]) -> None:
    """The first of what could not be read, one of each reason and source."""
    rows = []
    for name in sources:
        path = out / "dropped" / f"unreadable-{name}.parquet"
        if path.exists():
            first = pl.scan_parquet(path).unique("reason", keep="first", maintain_order=True)
            rows += [[name, *map(str, row)] for row in first.collect().iter_rows()]
    if rows:
        page.section("Not readable", "The first of each reason; dropped/unreadable-* names all.")
        page.table(["source", "shard", "key", "uid", "reason", "what was found"], rows)


def _overlap(page: Page, out: Path, sources: Sequence[str]) -> None:
    """How many of what a source keeps other sources held as well."""
    paths = {name: out / "kept" / f"{name}.parquet" for name in sources}
    if len(sources) < 2 or not all(path.exists() for path in paths.values()):
        return
    page.section(
        "Overlap",
        "Samples kept for the source of a row that the source of a column held, too, itself or in "
        "a duplicate. They are kept once, for the source of higher priority.",
    )
    rows = []
    for name, path in paths.items():
        held: Counter[str] = Counter(
            dict(
                pl.scan_parquet(path)
                .select(pl.col("sources").explode())
                .group_by("sources")
                .len()
                .collect()
                .iter_rows()
            )
        )
        rows.append([name, *(f"{held[other]:,}" for other in sources)])
    page.table(["kept for", *sources], rows)


def _contamination(page: Page, told: Mapping[str, Mapping[str, int]]) -> None:
    """Which evaluations have pictures that samples show."""
    if told:
        page.section("Contamination", "Pictures of evaluations that samples show.")
        names = ("pictures", "unreadable", "shown", "samples")
        rows = [[file, *(f"{counts[name]:,}" for name in names)] for file, counts in told.items()]
        page.table(["file", *names], rows)


def _part(figures: Sequence[Histogram], seen: int) -> str:
    """Say it when histograms show only the beginning of a source."""
    if not figures or figures[0].samples >= seen:
        return ""
    return f"; histograms show its first {figures[0].samples:,} of {seen:,} samples"


def _histogram(drawn: Histogram) -> str:
    layers = [Layer("kept", drawn.kept), Layer("dropped", drawn.dropped)]
    marks = [Mark(value, text) for value, text in drawn.cuts]
    return histogram(drawn.low, drawn.high, layers, drawn.column, marks)


def _examples(page: Page, curation: Curation, name: str, source: str) -> None:
    out, folder, root = curation.out, curation.inputs[source], curation.image_roots.get(source)
    kept = out / "kept" / f"{name}.parquet"
    groups = {
        "kept": kept if kept.exists() else _selection(out, name),
        "not selected": out / "dropped" / f"select-{name}.parquet",
        "duplicates": out / "dropped" / f"deduplicate-{name}.parquet",
    }
    for title, table in groups.items():
        found = draw_examples(table, folder, source, _EXAMPLES, root) if table.exists() else []
        if found:
            page.svg(f"<h3>{name}, {title}</h3>")
            page.tiles([_tile(example) for example in found])


def _tile(example: Example) -> Tile:
    sample = example.sample
    caption = sample.caption.strip()
    turns = [(turn.text.strip(), _SPEAKERS.get(turn.role, "")) for turn in sample.turns]
    lines = [(_short(text), who) for text, who in turns[:_TURNS] or [(caption, "")]]
    if sample.is_conversation:
        lines.append((f"{len(turns)} turns, {len(sample.images)} images", "soft"))
    if example.reason:
        lines.append((example.reason, "bad"))
    if example.detail:
        lines.append((example.detail, "soft"))
    return Tile(lines, _picture(sample), caption)


def _short(text: str) -> str:
    return text if len(text) <= _CAPTION else f"{text[:_CAPTION]}..."


def _picture(sample: Sample) -> bytes | None:
    """Give a small JPEG, nothing without a picture that can be read and decoded."""
    if sample.image is None:
        return None
    try:
        pixels = decode_image(sample.read(), _SIDE)
    except (ImageError, Unusable):
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()
