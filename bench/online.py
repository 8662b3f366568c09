"""How much slower are packs that are made while training than packs that were written before?

    python bench/online.py

The same corpus of captions with photos, once as a folder of packs and once as raw shards that are
packed online, is read pack by pack in a random order that both share, on one core, without decoding
a picture. Speeds are per second of processor time, with the files in memory, so that other work on
the machine and the disk count little. The length index is there already: making it is a part of
packing, which ``packing.py`` measures; here only planning by it is timed, once.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import corpora
import figures

from openqwen2vl.formats.tokens import train_tokenizer
from openqwen2vl.packing.online import OnlinePacks, open_online
from openqwen2vl.packing.reader import PackFolder
from openqwen2vl.packing.request import PackRequest, make_spec
from openqwen2vl.packing.writer import pack_folder

CONTEXT, GRID, VOCABULARY = 4096, 12, 2048
PHOTO = (392, 344)  # about 42 KiB at the quality of the corpora


def main() -> None:
    """Read both in turns and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=8, help="raw shards, each an index file")
    parser.add_argument("--documents", type=int, default=1_000, help="in a raw shard")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.shards, options.documents, options.rounds = 2, 120, 2
    with tempfile.TemporaryDirectory() as root:
        report = _measure(Path(root), options)
    report["settings"] = {k: v for k, v in vars(options).items() if k != "json"}
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _measure(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    corpora.write_photos(root, options.shards, options.documents, PHOTO)
    rng = random.Random(0)
    tokenizer = train_tokenizer([corpora.caption(rng) for _ in range(2000)], VOCABULARY)
    spec = make_spec(tokenizer, CONTEXT, GRID, "qwen2_5")
    request = PackRequest(input=root / "raw", out=root / "packs", source="bench", spec=spec)
    pack_folder(request, tokenizer)
    start = time.process_time()
    (online,) = open_online([request], tokenizer)
    planned = time.process_time() - start
    written = PackFolder(request.out)
    order = rng.sample(range(len(written)), len(written))
    turns = [(_pass(online, order), _pass(written, order)) for _ in range(options.rounds + 1)][1:]
    tokens = int(written.tokens.sum())
    speeds = [[tokens / turn[i] for turn in turns] for i in (0, 1)]
    return {
        "bench": "online",
        "machine": figures.machine(),
        "tokens_per_s": {
            "online": figures.spread(speeds[0]),
            "packed": figures.spread(speeds[1]),
        },
        "ratio": figures.ratios(speeds[0], speeds[1]),
        "planning_s": planned,
        "same_packs": all(_same(online, written, number) for number in order),
        "data": {"packs": len(order), "documents": online.manifest.counts.documents},
    }


def _pass(packs: OnlinePacks | PackFolder, order: list[int]) -> float:
    start = time.process_time()
    for number in order:
        packs.read(number)
    return time.process_time() - start


def _same(online: OnlinePacks, written: PackFolder, number: int) -> bool:
    one, other = online.read(number), written.read(number)
    return (
        (one.ids == other.ids).all()
        and one.documents == other.documents
        and one.images == other.images
    )


def _print(report: Mapping[str, Any]) -> None:
    rows = [
        (name, f"{speed['median']:,.0f}", f"{speed['min']:,.0f}", f"{speed['max']:,.0f}")
        for name, speed in report["tokens_per_s"].items()
    ]
    figures.table(("tokens/s a core, without decoding", "median", "min", "max"), rows)
    data = report["data"]
    print(
        f"{data['packs']} packs of {data['documents']:,} documents planned in "
        f"{report['planning_s']:.2f} s; the same packs: {report['same_packs']}"
    )


def _headline(report: Mapping[str, Any]) -> str:
    return f"online over data=packed, without decoding: {figures.show(report['ratio'])}"


if __name__ == "__main__":
    main()
