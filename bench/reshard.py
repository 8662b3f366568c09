"""How fast are kept samples written into new shards, beside a loop over the samples of all tars?

    python bench/reshard.py

On one core: raw shards of pictures of 42 KiB, of which a share is kept. Ours looks the tars through
once, then copies what is kept into shuffled shards by offset, hashes them and writes a manifest. The
loop is the one that public curation tools run: webdataset's reader over every tar, a look-up of each
sample's uid, and webdataset's writer, one sample after the other, without any shuffling. Raw shards
are in the page cache. Processor time is what is compared, so that other work on the machine and a
slow disk count little; the wall clock is told beside it.
"""

import argparse
import json
import random
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import figures
import pyarrow as pa
import pyarrow.parquet as pq
import webdataset

from openqwen2vl.corpus.shards import Sample, write_raw_shard
from openqwen2vl.curation.resharding.reshard import ReshardRequest, reshard

IMAGE_BYTES = 42 * 1024
GOAL = 5_000  # samples/s


def main() -> None:
    """Reshard in turns, ours and the loop's, and print the table, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shards", type=int, default=12, help="raw shards")
    parser.add_argument("--samples", type=int, default=1_000, help="samples in a raw shard")
    parser.add_argument("--keep", type=float, default=0.7, help="share that is kept")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.shards, options.samples, options.rounds = 3, 100, 2
    with tempfile.TemporaryDirectory() as root:
        report = {
            "bench": "reshard",
            "machine": figures.machine(),
            **_measured(Path(root), options),
            "settings": {k: v for k, v in vars(options).items() if k != "json"},
        }
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _measured(root: Path, options: argparse.Namespace) -> dict[str, Any]:
    kept = _write(root / "raw", options)
    uids = set(pq.read_table(kept)["uid"].to_pylist())
    turns: dict[str, list[tuple[float, float]]] = {"ours": [], "loop": []}
    same = True
    for _ in range(options.rounds):
        out = {name: root / name for name in turns}
        request = ReshardRequest(
            kept=kept, input=root / "raw", out=out["ours"], source="bench", name="bench"
        )
        turns["ours"].append(_timed(lambda request=request: reshard(request)))
        turns["loop"].append(_timed(lambda out=out: _loop(root / "raw", out["loop"], uids)))
        same = same and _contents(out["ours"]) == _contents(out["loop"])
        for folder in out.values():
            shutil.rmtree(folder)
    rates = {
        name: {
            clock: [len(uids) / turn[number] for turn in found]
            for number, clock in enumerate(("processor", "wall"))
        }
        for name, found in turns.items()
    }
    return {
        "kept": len(uids),
        "same_samples": same,
        "samples_per_s": {
            name: {clock: figures.spread(values) for clock, values in clocks.items()}
            for name, clocks in rates.items()
        },
        "ratios": {
            clock: figures.ratios(rates["ours"][clock], rates["loop"][clock])
            for clock in ("processor", "wall")
        },
    }


def _write(raw: Path, options: argparse.Namespace) -> Path:
    """Write raw shards of bytes that stand for pictures, and a kept table; none are decoded."""
    rng = random.Random(0)
    rows: dict[str, list[str]] = {"shard": [], "key": [], "uid": []}
    for shard in range(options.shards):
        samples = [
            Sample(f"{rng.getrandbits(128):032x}", rng.randbytes(IMAGE_BYTES), 512, 384, "a cat")
            for _ in range(options.samples)
        ]
        path = raw / f"{shard:05d}.tar"
        write_raw_shard(path, samples)
        for number, sample in enumerate(samples):
            if rng.random() < options.keep:
                rows["shard"].append(path.stem)
                rows["key"].append(f"{path.stem}{number:04d}")
                rows["uid"].append(sample.uid)
    kept = raw.parent / "kept.parquet"
    pq.write_table(pa.table(rows), kept)
    return kept


def _timed(function: Callable[[], object]) -> tuple[float, float]:
    """Give seconds of the processor and of the clock."""
    processor, wall = time.process_time(), time.perf_counter()
    function()
    return time.process_time() - processor, time.perf_counter() - wall


def _loop(raw: Path, out: Path, uids: set[str]) -> None:
    """Copy as one would first: read every sample of every tar, write those that are kept."""
    out.mkdir()
    urls = [str(path) for path in sorted(raw.glob("*.tar"))]
    with webdataset.ShardWriter(str(out / "%08d.tar"), maxcount=10_000, verbose=0) as writer:
        for sample in webdataset.WebDataset(urls, shardshuffle=False):
            if json.loads(sample["json"])["uid"] in uids:
                writer.write({"__key__": sample["__key__"], **_files(sample)})


def _files(sample: Mapping[str, Any]) -> dict[str, bytes]:
    return {ending: sample[ending] for ending in ("jpg", "txt", "json")}


def _contents(folder: Path) -> Counter[tuple[str, int, bytes]]:
    """Tell the samples of a folder apart by uid, picture and caption."""
    return Counter(_told(folder))


def _told(folder: Path) -> Iterator[tuple[str, int, bytes]]:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(urls, shardshuffle=False):
        yield json.loads(sample["json"])["uid"], hash(sample["jpg"]), sample["txt"]


def _print(report: Mapping[str, Any]) -> None:
    rows = [
        (
            name,
            *(f"{rates[clock]['median']:,.0f}" for clock in ("processor", "wall")),
            f"{GOAL:,} ({_verdict(rates['processor']['median'])})" if name == "ours" else "",
        )
        for name, rates in report["samples_per_s"].items()
    ]
    figures.table(("samples/s a core", "processor time", "wall clock", "goal"), rows)
    print(f"{report['kept']:,} kept samples, the same of both: {report['same_samples']}")


def _verdict(rate: float) -> str:
    return "met" if rate >= GOAL else "missed"


def _headline(report: Mapping[str, Any]) -> str:
    rate = report["samples_per_s"]["ours"]["processor"]["median"]
    return (
        f"ours over the loop: {figures.show(report['ratios']['processor'])} in processor time, "
        f"{figures.show(report['ratios']['wall'])} by the clock; {rate:,.0f} samples/s a core"
    )


if __name__ == "__main__":
    main()
