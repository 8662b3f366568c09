"""How full and how fast does packing get, beside its definition and beside packs of pixels?

    python bench/packing.py

Three questions, each on one core and in processor time, so that other work on the machine counts
little: how much faster first fit decreasing is than its definition, which sums every bin anew for
every document; how full each packer's packs are on five kinds of documents, beside the fewest packs
that could hold the tokens; and how fast a folder is packed with the images' bytes kept, beside
decoding, resizing and pickling them.
"""

import argparse
import io
import pickle
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import corpora
import figures
import numpy as np
from PIL import Image

from openqwen2vl.formats.documents import Document, ImageRef
from openqwen2vl.formats.raw import raw_shards, read_raw_shard
from openqwen2vl.formats.templates import encode_documents, template
from openqwen2vl.formats.tokens import train_tokenizer
from openqwen2vl.packing.bins import Limits, first_fit_decreasing
from openqwen2vl.packing.fill import seed_fill_close
from openqwen2vl.packing.packers import pack
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

CONTEXT, GRID, SIDE, VOCABULARY = 4096, 12, 384, 2048
PHOTO = (392, 344)  # about 42 KiB at the quality of the corpora
SIZES = (1_000, 10_000, 50_000)
TIMED = ("captions", "conversations")  # in which the definition is measured
PACKERS = ("first_fit_decreasing", "seed_fill_close", "cutting_stock", "auto")
GOALS_FROM = 10_000  # documents: in few packs, the last one's pads weigh too much
GOALS = {  # share of the positions that are not pads, and by which packer
    "captions": ("seed_fill_close", 0.997),
    "conversations": ("cutting_stock", 0.992),
    "interleaved": ("auto", 0.993),
}
RATE_GOAL = 1_000_000  # captions/s
Items = tuple[list[int], list[int]]
"""Tokens and images of each document."""


def main() -> None:
    """Answer the three questions and print the tables, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, help="documents")
    parser.add_argument("--window", type=int, default=10_000, help="documents to measure fill on")
    parser.add_argument("--many", type=int, default=100_000, help="captions to measure speed on")
    parser.add_argument("--packs", type=int, default=24, help="packs to write, in each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.sizes, options.window, options.many = (300, 1_000), 1_000, 5_000
        options.packs, options.rounds = 2, 2
    report = {
        "bench": "packing",
        "machine": figures.machine(),
        "speed": {n: {s: _speed(s, n, options.rounds) for s in TIMED} for n in options.sizes},
        "captions_per_s": _rate(options.many, options.rounds),
        "fill": {name: _fill(name, options.window) for name in KINDS},
        "end_to_end": _end_to_end(options.packs, options.rounds),
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
    }
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _lognormal(rng: np.random.Generator, count: int, median: float, sigma: float) -> np.ndarray:
    return np.round(rng.lognormal(np.log(median), sigma, count)).astype(int)


def _captions(rng: np.random.Generator, count: int, median: float, sigma: float) -> Any:
    images = np.ones(count, int)
    return 144 * images + 3 + _lognormal(rng, count, median, sigma), images


def _conversations(rng: np.random.Generator, count: int, without: float) -> Any:
    images = (rng.random(count) >= without).astype(int)
    return 729 * images + 24 + _lognormal(rng, count, 220, 0.9), images


def _interleaved(rng: np.random.Generator, count: int) -> Any:
    images = rng.integers(1, 10, count)
    return 144 * images + _lognormal(rng, count, 600, 0.8), images


KINDS: dict[str, Callable[[np.random.Generator, int], Any]] = {
    "captions": lambda rng, n: _captions(rng, n, 18, 0.8),
    "long captions": lambda rng, n: _captions(rng, n, 110, 0.5),
    "conversations": lambda rng, n: _conversations(rng, n, 0.0),
    "15 % without image": lambda rng, n: _conversations(rng, n, 0.15),
    "interleaved": _interleaved,
}


def items(name: str, count: int) -> Items:
    """Draw documents that fit into a pack."""
    lengths, images = KINDS[name](np.random.default_rng(0), count + count // 5 + 100)
    fits = lengths <= CONTEXT
    return lengths[fits][:count].tolist(), images[fits][:count].tolist()


def definition(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Longest first, each into the first bin whose documents, summed anew, leave room."""
    bins: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True):
        for members in bins:
            if sum(lengths[i] for i in members) + lengths[index] <= capacity:
                members.append(index)
                break
        else:
            bins.append([index])
    return bins


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def _speed(name: str, count: int, rounds: int) -> dict[str, Any]:
    lengths, images = items(name, count)
    # The definition takes minutes at the larger sizes: one round of it will do there.
    turns = [
        (
            _timed(first_fit_decreasing, lengths, images, Limits(CONTEXT)),
            _timed(definition, lengths, CONTEXT),
        )
        for _ in range(rounds if count <= SIZES[0] else 1)
    ]
    ours, theirs = ([pair[i][0] for pair in turns] for i in (0, 1))
    return {
        "ours_s": figures.spread(ours),
        "definition_s": figures.spread(theirs),
        "ratio": figures.ratios(theirs, ours),
        "same_bins": all(mine[1] == other[1] for mine, other in turns),
    }


def _rate(count: int, rounds: int) -> dict[str, dict[str, float]]:
    problem = *items("captions", count), Limits(CONTEXT)
    return {
        packer.__name__: figures.spread(
            [count / _timed(packer, *problem)[0] for _ in range(rounds)]
        )
        for packer in (seed_fill_close, first_fit_decreasing)
    }


def _fill(name: str, count: int) -> dict[str, Any]:
    lengths, images = items(name, count)
    limits = Limits(CONTEXT)
    found = {packer: _timed(pack, packer, lengths, images, limits) for packer in PACKERS}
    full = sum(lengths) / CONTEXT
    return {
        "packers": {
            packer: {"fill": full / len(packing.bins), "documents_per_s": count / seconds}
            for packer, (seconds, packing) in found.items()
        },
        "auto_took": found["auto"][1].packer,
        "bound": full / limits.lower_bound(lengths, images),
    }


def _end_to_end(packs: int, rounds: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as root:
        made = corpora.photo_packs(Path(root), packs, CONTEXT, GRID, PHOTO)
        raw, count = Path(root) / "raw", made.manifest.counts.documents
        texts = [document.turns[0].text for document in _documents(raw)]
        tokenizer = train_tokenizer(texts, VOCABULARY)
        spec = make_spec(tokenizer, CONTEXT, GRID, "qwen2_5")
        ours, theirs = [], []
        for turn in range(rounds):
            out, pixels = Path(root) / f"ours-{turn}", Path(root) / f"pixels-{turn}"
            index = Path(root) / f"index-{turn}"  # else later rounds would find lengths ready
            request = PackRequest(input=raw, out=out, source="bench", spec=spec, index=index)
            ours.append(count / _timed(pack_folder, request, tokenizer)[0])
            theirs.append(count / _timed(_pixel_packs, raw, pixels, tokenizer)[0])
        return {
            "kib_per_image": _bytes(raw, "*.tar") / count / 1024,
            "documents_per_s": {
                "ours": figures.spread(ours),
                "pixels": figures.spread(theirs),
            },
            "ratio": figures.ratios(ours, theirs),
            "kib_per_document": {
                "ours": _bytes(out, "*") / count / 1024,
                "pixels": _bytes(pixels, "*") / count / 1024,
            },
        }


def _documents(raw: Path) -> Iterator[Document]:
    for shard in raw_shards(raw):
        yield from (d for d in read_raw_shard(shard, "bench") if isinstance(d, Document))


def _bytes(folder: Path, pattern: str) -> int:
    return sum(path.stat().st_size for path in folder.glob(pattern) if path.is_file())


def _pixel_packs(raw: Path, out: Path, tokenizer: Any) -> None:
    """Pack as one would first: resized pixels, and a pickle for each pack."""
    out.mkdir()
    documents = list(_documents(raw))
    encoded = encode_documents(documents, tokenizer, template("qwen2_5"))
    lengths = [len(e.ids) + e.num_images * (GRID * GRID - 1) for e in encoded]
    for number, members in enumerate(definition(lengths, CONTEXT)):
        content = {
            "ids": [encoded[i].ids for i in members],
            "images": [_pixels(image) for i in members for image in documents[i].images],
        }
        with (out / f"{number:06d}.pkl").open("wb") as file:
            pickle.dump(content, file)


def _pixels(image: ImageRef) -> np.ndarray:
    with open(image.path, "rb") as file:
        file.seek(image.offset)
        picture = Image.open(io.BytesIO(file.read(image.size))).convert("RGB")
    return np.asarray(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def _print(report: Mapping[str, Any]) -> None:
    rows = [
        (
            f"{name}, {count:,}",
            f"{found['ours_s']['median']:.4f} s",
            f"{found['definition_s']['median']:.3f} s",
            figures.show(found["ratio"]),
            found["same_bins"],
        )
        for count, names in report["speed"].items()
        for name, found in names.items()
    ]
    figures.table(("first fit decreasing", "ours", "definition", "ours is", "same bins"), rows)
    for name, rate in report["captions_per_s"].items():
        verdict = _verdict(rate["median"], RATE_GOAL) if name == "seed_fill_close" else "no goal"
        print(f"{name}: {rate['median']:,.0f} captions/s ({verdict})")
    rows = []
    for name, found in report["fill"].items():
        cells = (
            f"{p['fill']:.2%} ({p['documents_per_s']:,.0f}/s)" for p in found["packers"].values()
        )
        judged = report["settings"]["window"] >= GOALS_FROM
        packer, goal = GOALS.get(name, ("", 0.0)) if judged else ("", 0.0)
        verdict = _verdict(found["packers"][packer]["fill"], goal) if packer else ""
        goal_cell = f"{packer} {goal:.1%}" if packer else ""
        rows.append((name, *cells, found["auto_took"], f"{found['bound']:.2%}", goal_cell, verdict))
    figures.table(("fill", *PACKERS, "auto took", "bound", "goal", ""), rows)
    whole = report["end_to_end"]
    for who in ("ours", "pixels"):
        print(
            f"a folder, {who}: {whole['documents_per_s'][who]['median']:,.0f} documents/s, "
            f"{whole['kib_per_document'][who]:.1f} KiB a document "
            f"of {whole['kib_per_image']:.1f} KiB raw"
        )


def _verdict(value: float, goal: float) -> str:
    return "met" if value >= goal else "missed"


def _headline(report: Mapping[str, Any]) -> str:
    count = max(report["speed"])
    sizes = report["end_to_end"]["kib_per_document"]
    return (
        f"ours over the definition at {count:,} captions: "
        f"{figures.show(report['speed'][count]['captions']['ratio'])}; a folder: "
        f"{figures.show(report['end_to_end']['ratio'])} over packs of pixels, "
        f"{sizes['pixels'] / sizes['ours']:.1f} times smaller"
    )


if __name__ == "__main__":
    main()
