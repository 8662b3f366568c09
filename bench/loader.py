"""How many tokens a second does one core load, with and without decoding pictures?

    python bench/loader.py

Packs as in pre-training (JPEGs, 144 tokens an image, captions of the paper's lengths, context
4096) are read, expanded and collated one at a time, by one process on one thread, in turns with the
naive loader of ``naive.py`` on the same files. Pillow decodes, simplejpeg where it is installed
(extra ``fast``), and for large pictures Pillow in drafts. Speeds are per second of processor time,
so that other work on the machine counts little. Pads are no tokens.
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import corpora
import figures
import naive
import numpy as np
import torch

from openqwen2vl.data_modules.packed import PackedDataModule
from openqwen2vl.formats.decoders import PictureDecoder
from openqwen2vl.formats.images import decode_image
from openqwen2vl.packing.batch import Decoder, collate, expand
from openqwen2vl.packing.reader import PackFolder

SIDE, GRID, CONTEXT = 384, 12, 4096
GOALS = {"overhead": 1_500_000, "pillow": 85_000, "simplejpeg": 170_000}  # tokens/s a core
PASSES = 6  # over the packs through a worker, whose start takes a while
SIZES = {"384 x 384": (384, 384), "512 x 384": (512, 384), "1024 x 768": (1024, 768)}
LARGE = "1024 x 768"  # what drafts are for; a few packs of it are enough, and no goal is set
DECODERS = {"pillow": PictureDecoder(), "drafts": PictureDecoder(draft=True)}
if find_spec("simplejpeg"):
    DECODERS["simplejpeg"] = PictureDecoder("simplejpeg")
COMPARED = ("input_ids", "labels", "position_ids", "document_ids")
Batches = Callable[[], Iterable[Mapping[str, Any]]]


def main() -> None:
    """Measure every way in turns and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--packs", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.packs, options.rounds = 3, 2
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as root:
        folders = {}
        for name, size in SIZES.items():
            at = Path(root) / name
            packs = max(2, options.packs // 4) if name == LARGE else options.packs
            folders[name] = corpora.photo_packs(at, packs, CONTEXT, GRID, size)
        report = _measure(folders, options.rounds)
    report["settings"] = {"packs": options.packs, "rounds": options.rounds, "quick": options.quick}
    _print(report)
    figures.finish(report, _headline(report), options.json)


def ours(folder: PackFolder, decode: Decoder = decode_image) -> Iterator[Mapping[str, Any]]:
    """Give one batch a pack, as the loader's workers make them."""
    spec, most = folder.manifest.spec, folder.manifest.max_documents
    for number in range(len(folder)):
        row = expand(folder.read(number), spec, SIDE, decode=decode)
        yield collate([row], spec, most)


def fixed(data: bytes, side: int) -> np.ndarray:
    """Give the same picture always, in no time: what is left is the loader's overhead."""
    return _BLANK


_BLANK = np.full((SIDE, SIDE, 3), 127, np.uint8)


def _measure(folders: Mapping[str, PackFolder], rounds: int) -> dict[str, Any]:
    square = folders["384 x 384"]
    # Of each question, ours in all its ways and the naive one.
    turns: list[dict[str, Batches]] = [
        {
            "overhead": _bound(ours, square, fixed),
            "naive": _bound(naive.stream, square, SIDE, fixed),
        }
    ]
    for name, folder in folders.items():
        decoders = {k: v for k, v in DECODERS.items() if k != "drafts" or name == LARGE}
        ways = {f"{k} {name}": _bound(ours, folder, v) for k, v in decoders.items()}
        turns.append({**ways, "naive": _bound(naive.stream, folder, SIDE)})
    speeds = _paired(turns, rounds)
    workers = {
        name: [_data_loader(folders[name]) for _ in range(min(rounds, 3))]
        for name in folders
        if name != LARGE
    }
    counts = square.manifest.counts
    return {
        "bench": "loader",
        "machine": figures.machine(),
        "data": {
            "tokens_per_document": counts.tokens / counts.documents,
            "fill": square.manifest.fill,
            "kib_per_image": {n: _image_kib(folder) for n, folder in folders.items()},
        },
        "same_batches": all(_same(folder) for folder in folders.values()),
        "pixel_difference": {
            name: max(
                _difference(folder, decoder)
                for size, folder in folders.items()
                if name != "drafts" or size == LARGE
            )
            for name, decoder in DECODERS.items()
        },
        "tokens_per_s": {
            name: {who: figures.spread(values) for who, values in speeds[name].items()}
            for ways in turns
            for name in ways
            if name != "naive"
        },
        "ratios": {name: figures.ratios(p["ours"], p["naive"]) for name, p in speeds.items()},
        "data_loader_tokens_per_s": {n: figures.spread(values) for n, values in workers.items()},
    }


def _paired(
    turns: Sequence[Mapping[str, Batches]], rounds: int
) -> dict[str, dict[str, list[float]]]:
    """Time each way beside the naive one of its turn; tokens/s of both, a round each."""
    speeds: dict[str, dict[str, list[float]]] = {}
    for turn in range(rounds + 1):  # the first one fills the page cache
        for ways in turns:
            found = {who: _speed(batches(), time.process_time) for who, batches in ways.items()}
            for who in set(found) - {"naive"} if turn else ():
                pair = speeds.setdefault(who, {"ours": [], "naive": []})
                pair["ours"].append(found[who])
                pair["naive"].append(found["naive"])
    return speeds


def _bound(function: Callable[..., Any], *arguments: Any) -> Batches:
    return lambda: function(*arguments)


def _speed(batches: Iterable[Mapping[str, Any]], clock: Callable[[], float]) -> float:
    start = clock()
    tokens = sum(batch["tokens"] for batch in batches)
    return tokens / (clock() - start)


def _data_loader(folder: PackFolder) -> float:
    """Tokens a second through the real data module and one worker; both processes' time counts."""
    data = PackedDataModule(
        mixture={"sources": {"bench": {"packs": str(folder.path)}}},
        resolution={"plan": [{"grid": GRID, "until": 1.0}]},
        budget={"passes": PASSES},
        image_side=SIDE,
        global_batch=1,
        num_workers=1,
        decoder="pillow",
    )
    # All that the loader asks of a Trainer; a real one prints.
    data.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1)
    return _speed(data.train_dataloader(), _family_seconds)


def _family_seconds() -> float:
    """Processor time of this process and of those it has waited for: the worker's, at its end."""
    workers = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + workers.ru_utime + workers.ru_stime


def _same(folder: PackFolder) -> bool:
    pairs = zip(ours(folder, fixed), naive.stream(folder, SIDE, fixed), strict=True)
    return all(torch.equal(a[key], b[key]) for a, b in pairs for key in COMPARED)


def _difference(folder: PackFolder, decode: Decoder) -> int:
    """The largest difference between our pictures and PIL's, of 255, in one pack."""
    pictures = folder.read(0).images
    return max(
        int(np.abs(decode(p, SIDE).astype(int) - naive.decode_image(p, SIDE)).max())
        for p in pictures
    )


def _image_kib(folder: PackFolder) -> float:
    sizes = [len(image) for image in folder.read(0).images]
    return sum(sizes) / len(sizes) / 1024


def _print(report: Mapping[str, Any]) -> None:
    rows = []
    for name, speed in report["tokens_per_s"].items():
        goal = None if LARGE in name else GOALS[name.split()[0]]
        pair = (f"{speed[who]['median']:,.0f}" for who in ("ours", "naive"))
        ratio = figures.show(report["ratios"][name])
        told = (f"{goal:,}", _verdict(speed["ours"]["median"], goal)) if goal else ("", "")
        rows.append((name, *pair, ratio, *told))
    figures.table(("tokens/s a core", "ours", "naive", "ours is", "goal", ""), rows)
    if "simplejpeg" not in DECODERS:
        print("simplejpeg is not installed: its goal was not tried")
    for name, speed in report["data_loader_tokens_per_s"].items():
        print(f"pillow {name} by a PackedDataModule worker: {speed['median']:,.0f} tokens/s")
    differ = ", ".join(f"{name} {most}" for name, most in report["pixel_difference"].items())
    print(
        f"same batches: {report['same_batches']}; pictures differ from PIL's by at most {differ} "
        "of 255"
    )


def _verdict(value: float, goal: float) -> str:
    return "met" if value >= goal else "missed"


def _headline(report: Mapping[str, Any]) -> str:
    return (
        f"ours over webdataset, PIL and loops: {figures.show(report['ratios']['overhead'])} without "
        f"decoding, {figures.show(report['ratios']['pillow 512 x 384'])} with"
    )


if __name__ == "__main__":
    main()
