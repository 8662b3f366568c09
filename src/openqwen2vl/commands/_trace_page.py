"""The page of `trace`: the documents of one step, with pictures, text and provenance."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from openqwen2vl.commands._trace_run import Found, TracedRun
from openqwen2vl.formats.errors import ImageError
from openqwen2vl.formats.images import decode_image
from openqwen2vl.pages.page import Page, Tile

_SIDE = 144
_FIGURES = ("loss", "grad_norm", "lr", "grid", "tokens", "images", "skipped", "loss_z")


def build_page(
    traced: TracedRun, step: int, documents: Sequence[Found], total: int, judge: Path | None
) -> Page:
    """Compose the page.

    Args:
        traced: the run.
        step: from 1.
        documents: those to show.
        total: documents of the step.
        judge: the checkpoint that gave their losses; None: no losses.
    """
    page = Page(f"Step {step} of {traced.path.name}", f"{traced.path}: {total:,} documents")
    row = traced.row(step)
    figures = [(name, row[name]) for name in _FIGURES if row.get(name)]
    page.tiles([Tile([(_short(value), "big"), (name, "soft")]) for name, value in figures])
    counts: dict[str, int] = {}
    for one in documents:
        counts[one.traced.source] = counts.get(one.traced.source, 0) + 1
    shown = ", ".join(f"{count:,} of {name}" for name, count in counts.items())
    ordered = f"Losses by {judge.name}, the hardest first. " if judge is not None else ""
    page.section("Documents", f"{ordered}Shown: {shown}.")
    page.tiles([_tile(one) for one in documents])
    return page


def _tile(one: Found) -> Tile:
    record = one.traced.record
    lines = [(f"loss {one.loss:.3f}", "big")] if one.loss is not None else []
    lines.append((one.said[:400] or "(no text)", ""))
    lines.append((f"{one.traced.source} / {record['shard']} / {record['key']}", "soft"))
    lines.append((f"uid {record['uid']}", "soft"))
    lines.append((f"pack {one.traced.pack.pack}, {one.tokens:,} tokens", "soft"))
    scores = record.get("scores")
    if isinstance(scores, dict) and scores:
        lines.append((", ".join(f"{k} {v:g}" for k, v in scores.items()), "soft"))
    return Tile(lines, _thumbnail(one.pictures), "the document's first picture")


def _thumbnail(pictures: Sequence[bytes]) -> bytes | None:
    if not pictures:
        return None
    try:
        pixels = decode_image(pictures[0], _SIDE)
    except ImageError:
        return None
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    return file.getvalue()


def _short(text: str) -> str:
    number = float(text)
    return f"{number:,.0f}" if number.is_integer() else f"{number:.4g}"
