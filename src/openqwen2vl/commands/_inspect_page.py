"""The page of `inspect`: packs as the model sees them, after `expand`."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from itertools import groupby

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from transformers import PreTrainedTokenizerFast

from openqwen2vl.formats.manifest import PackSpec
from openqwen2vl.formats.tokens import IGNORE_INDEX
from openqwen2vl.packing.batch import Row, expand
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.summary import Bin, PackSummary
from openqwen2vl.pages.bars import STYLE, Bar, Segment, bars, strip
from openqwen2vl.pages.page import Page, Tile

PAGE_STYLE = f"""{STYLE}
:root {{ --target: #cfe3fb; --image: #f6dcc6; --pad: #e4e7ec; --context: #b9c2ce; --asked: #2b63c6;
  --visual: #c2571a; }}
@media (prefers-color-scheme: dark) {{ :root {{ --target: #1d3d6b; --image: #5a3a22;
  --pad: #262e38; --context: #56616f; --asked: #7ba7f5; --visual: #f0985c; }} }}
.strip .target {{ background: var(--asked); }} .strip .image {{ background: var(--visual); }}
.strip .context {{ background: var(--context); }} .strip .pad {{ background: var(--pad); }}
.key {{ display: inline-block; width: .8rem; height: .8rem; border-radius: .2rem;
  vertical-align: -.08rem; margin-right: .3rem; }}
.columns {{ display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 17rem), 1fr)); }}
.tile {{ overflow-wrap: anywhere; }}
.legend span {{ margin-right: 1.1rem; white-space: nowrap; }}
.document {{ background: var(--panel); border-radius: .5rem; padding: .8rem; margin: .8rem 0; }}
.document header {{ font-size: .85rem; color: var(--soft); overflow-wrap: anywhere; }}
.document header b {{ color: var(--ink); }}
.document img {{ width: 8rem; height: 8rem; border-radius: .3rem; margin: .5rem .5rem 0 0; }}
.tokens {{ margin: .6rem 0 0; max-width: none; white-space: pre-wrap; overflow-wrap: anywhere;
  font: .9rem/1.75 ui-monospace, monospace; }}
.tokens span {{ box-shadow: inset 1px 0 0 var(--context); padding-left: 1px; }}
.tokens .target {{ background: var(--target); text-decoration: underline;
  text-underline-offset: .2em; }}
.tokens .image {{ background: var(--image); padding: .1rem .4rem; }}
.tokens .mark {{ font-weight: 600; }}
"""

KINDS = {
    "target": "text that the model is asked for",
    "context": "text that it is only given",
    "image": "visual tokens",
    "pad": "pads",
}


@dataclass(frozen=True)
class Piece:
    """A few tokens that make up whole letters, or all visual tokens of an image.

    Attributes:
        kind: one of ``KINDS``.
        text: what to write.
        first: place of the first token in the row.
        ids: of the tokens; one only for an image.
        mark: whether it is a special token.
    """

    kind: str
    text: str
    first: int
    ids: tuple[int, ...]
    mark: bool = False


def build_page(
    folder: PackFolder,
    summary: PackSummary,
    numbers: Sequence[int],
    tokenizer: PreTrainedTokenizerFast | None,
    image_side: int,
) -> Page:
    """Compose the page.

    Args:
        folder: the packs.
        summary: its figures.
        numbers: of the packs to show.
        tokenizer: the packs' own; None shows ids.
        image_side: pixels to which pictures are squashed, as for the model.
    """
    manifest, spec = folder.manifest, folder.manifest.spec
    page = Page(
        f"Packs of {manifest.source}",
        f"{folder.path}, {manifest.split} split, context {spec.context:,}, grid {spec.grid} "
        f"({spec.tokens_per_image} tokens an image), template {spec.template}",
        PAGE_STYLE,
    )
    _summarise(page, summary)
    page.section(
        "Packs as the model sees them",
        "Rows as the loader gives them to the model: marks expanded, labels shifted, pictures "
        "squashed to a square. Positions start again with each document.",
    )
    if tokenizer is None:
        page.section("", "Packs hold ids only: give tokenizer=PATH_OR_NAME to read them as text.")
    page.svg(_legend())
    for number in numbers:
        row = expand(folder.read(number), spec, image_side)
        page.section(f"Pack {number}")
        page.svg(_pack(row, spec, tokenizer))
    return page


def _summarise(page: Page, summary: PackSummary) -> None:
    manifest, counts = summary.manifest, summary.manifest.counts
    page.section("In all", f"Laid out by {', '.join(manifest.packers) or 'a packer not stated'}.")
    figures = {
        "packs": f"{counts.packs:,}",
        "fewest possible": f"{manifest.lower_bound:,}",
        "documents": f"{counts.documents:,}",
        "images": f"{counts.images:,}",
        "tokens": f"{counts.tokens:,}",
        "targets": f"{counts.targets:,}",
        "fill": f"{manifest.fill:.2%}",
        "pads": f"{summary.pad_share:.2%}",
        "rejected": f"{sum(manifest.rejects.values()):,}",
    }
    page.tiles([Tile([(value, "big"), (name, "soft")]) for name, value in figures.items()])
    page.section("Tokens", f"By source over {summary.sampled:,} packs, spread evenly.")
    kinds = {"targets": summary.target_share, "visual tokens": summary.image_share}
    shares = {**summary.sources, **kinds}
    page.svg(bars([Bar(name, share, f"{share:.1%}") for name, share in shares.items()]))
    histograms = {
        "Tokens of a document": summary.lengths,
        "Documents in a pack": summary.documents,
        "Images in a pack": summary.images,
    }
    drawn = "".join(_histogram(title, bins) for title, bins in histograms.items())
    page.svg(f'<div class="columns">{drawn}</div>')


def _histogram(title: str, bins: Sequence[Bin]) -> str:
    rows = [Bar(one.label, one.count, f"{one.count:,}") for one in bins]
    return f"<div><h2>{escape(title)}</h2>{bars(rows)}</div>"


def _legend() -> str:
    keys = "".join(
        f'<span><i class="key" style="background:var(--{colour})"></i>{escape(KINDS[kind])}</span> '
        for kind, colour in zip(KINDS, ("asked", "context", "visual", "pad"), strict=True)
    )
    return f'<p class="legend">{keys}</p>'


def _pack(row: Row, spec: PackSpec, tokenizer: PreTrainedTokenizerFast | None) -> str:
    pads = len(row.input_ids) - row.tokens
    targets = int((row.labels != IGNORE_INDEX).sum())
    head = (
        f"{len(row.documents)} documents, {len(row.images)} images, {row.tokens:,} tokens, "
        f"{targets:,} of them targets, {pads:,} pads ({pads / len(row.input_ids):.1%})"
    )
    pictures = iter(row.images)
    faults = dict(row.corrupt)
    parts = [f'<p class="soft">{escape(head)}</p>', strip(list(_segments(row, spec)), head)]
    for number, document in enumerate(row.documents):
        places = np.flatnonzero(row.document_ids == number)
        pieces = list(read_pieces(row, places, spec, tokenizer))
        mine = [next(pictures) for _ in range(document["images"])]
        parts.append(_document(document, row.position_ids[places], places, mine, faults))
        parts.append(f'<p class="tokens">{"".join(map(_token, pieces))}</p></section>')
    return "".join(parts)


def _kinds(row: Row, spec: PackSpec) -> list[str]:
    """Give the kind of each place; a label belongs to the token after its place."""
    asked = np.concatenate([[False], row.labels[:-1] != IGNORE_INDEX])
    kinds = np.where(asked, "target", "context")
    kinds[row.input_ids == spec.special.image] = "image"
    kinds[row.document_ids < 0] = "pad"
    found: list[str] = kinds.tolist()
    return found


def _segments(row: Row, spec: PackSpec) -> Iterator[Segment]:
    """Cut a row where the kind or the document changes."""
    labelled = zip(row.document_ids.tolist(), _kinds(row, spec), strict=True)
    last = -1
    for (document, kind), run in groupby(labelled):
        yield Segment(len(list(run)) / len(row.input_ids), kind, begins=document != last)
        last = document


def read_pieces(
    row: Row,
    places: NDArray[np.int64],
    spec: PackSpec,
    tokenizer: PreTrainedTokenizerFast | None,
) -> Iterator[Piece]:
    """Cut the places of a document into pieces to write."""
    special = spec.special
    marks = {special.bos: "<s>", special.eos: "<|im_end|>", special.im_start: "<|im_start|>"}
    kinds, ids = _kinds(row, spec), row.input_ids.tolist()
    first, stop = int(places[0]), int(places[-1]) + 1
    image = 0
    while first < stop:
        end = first + 1
        if kinds[first] == "image":
            image += 1
            end = first + spec.tokens_per_image
            text = f"image {image}: {spec.tokens_per_image} tokens"
            yield Piece("image", text, first, (special.image,))
        elif ids[first] in marks:
            yield Piece(kinds[first], marks[ids[first]], first, (ids[first],), mark=True)
        elif tokenizer is None:
            yield Piece(kinds[first], f"{ids[first]} ", first, (ids[first],))
        else:
            # A letter may be spread over tokens: until it is whole, decoding gives U+FFFD.
            while (text := tokenizer.decode(ids[first:end])).endswith("\ufffd") and end < min(
                stop, first + 8
            ):
                end += 1
            yield Piece(kinds[first], text, first, tuple(ids[first:end]))
        first = end


def _document(
    document: dict[str, object],
    positions: NDArray[np.int64],
    places: NDArray[np.int64],
    pictures: Sequence[NDArray[np.uint8]],
    faults: dict[str, str],
) -> str:
    scores = document.get("scores")
    told_scores = scores.items() if isinstance(scores, dict) else ()
    others = "".join(f", {name} {value:g}" for name, value in told_scores)
    name = f"{document['source']} / {document['shard']} / {document['key']}"
    where = (
        f"uid {document['uid']}{others}: {len(places)} tokens, places {places[0]} to {places[-1]} "
        f"of the row, positions {positions[0]} to {positions[-1]}"
    )
    fault = faults.get(str(document["uid"]))
    told = f'<p class="bad">masked: an image {escape(fault)}</p>' if fault else ""
    images = "".join(_picture(pixels, number) for number, pixels in enumerate(pictures, 1))
    return (
        f'<section class="document"><header><b>{escape(name)}</b><br>{escape(where)}</header>'
        f"{told}<div>{images}</div>"
    )


def _picture(pixels: NDArray[np.uint8], number: int) -> str:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=80)
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img src="data:image/jpeg;base64,{data}" alt="image {number} of the document">'


def _token(piece: Piece) -> str:
    shown = escape(piece.text.replace("\n", "\u21b5\n"))
    ids = " ".join(map(str, piece.ids))
    style = f"{piece.kind} mark" if piece.mark else piece.kind
    return f'<span class="{style}" title="place {piece.first}, id {ids}">{shown}</span>'
