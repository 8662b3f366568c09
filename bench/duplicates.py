"""How fast are duplicates found, and in how much memory?

    python bench/duplicates.py

Two questions. Perceptual hashes within a distance: ours beside a scan that compares each hash with
all that stay so far (one numpy call a row), at a size that such a scan can do, with the same result;
then ours alone at larger sizes. And de-duplication by uid from file to file, with the memory that a
row needs. Times are processor time; every size has a process of its own, whose peak is its memory.
"""

import argparse
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import figures
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.duplicates.deduplicate import DuplicateRules, deduplicate
from openqwen2vl.curation.duplicates.groups import equal_groups
from openqwen2vl.curation.duplicates.independent import Nearness, first_independent
from openqwen2vl.curation.duplicates.selected import Selected

DISTANCE = 4
SIZES = (1_000_000, 5_000_000)
CHUNK = 1_000_000  # rows of a table that are made at a time
DIGITS = np.frombuffer(b"0123456789abcdef", np.uint8)


def main() -> None:
    """Answer both questions and print the tables, then the headline."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--scan", type=int, default=100_000, help="hashes for the plain scan")
    parser.add_argument("--sizes", type=int, nargs="*", default=SIZES, help="hashes for ours alone")
    parser.add_argument("--uids", type=int, default=20_000_000, help="rows for uids")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.scan, options.sizes, options.rounds = 5_000, (50_000,), 2
        options.uids = 100_000
    report = {
        "bench": "duplicates",
        "machine": figures.machine(),
        "scan": _beside_scan(options.scan, options.rounds),
        "near": {n: _alone(near, n) for n in options.sizes},
        "uids": _alone(uids, options.uids),
        "settings": {k: v for k, v in vars(options).items() if k != "json"},
    }
    _print(report)
    figures.finish(report, _headline(report), options.json)


def hashes(count: int) -> np.ndarray:
    """Draw hashes: of ten, seven of their own, one equal to another, two up to 6 bits away.

    One in a hundred is of a single large cluster, as placeholders of a site are.
    """
    rng = np.random.default_rng(0)
    drawn = rng.integers(0, 2**64, count, dtype=np.uint64)
    kind = rng.random(count)
    copies = np.flatnonzero(kind < 0.3)
    drawn[copies] = drawn[rng.integers(0, count, len(copies))]
    cluster = np.flatnonzero(kind > 0.99)
    drawn[cluster] = drawn[0]
    for most, changed in ((6, np.flatnonzero(kind < 0.2)), (3, cluster)):
        flips = rng.integers(0, most + 1, len(changed))
        for turn in range(most):
            bit = np.uint64(1) << rng.integers(0, 64, len(changed), dtype=np.uint64)
            drawn[changed] ^= np.where(turn < flips, bit, np.uint64(0))
    return drawn


def scan(values: np.ndarray) -> np.ndarray:
    """Compare each hash with all that stay so far; gives the row each one gives way to."""
    kept, places = np.empty_like(values), np.empty(len(values), np.int64)
    keeper = np.arange(len(values))
    count = 0
    for row, value in enumerate(values):
        near_ones = np.bitwise_count(kept[:count] ^ value) <= DISTANCE
        first = int(near_ones.argmax()) if count else 0
        if count and near_ones[first]:
            keeper[row] = places[first]
        else:
            kept[count], places[count] = value, row
            count += 1
    return keeper


def ours(values: np.ndarray) -> np.ndarray:
    """Do the same with bands."""
    valid = np.ones(len(values), bool)
    looks = Nearness(values, valid, DISTANCE, equal_groups([values], valid))
    return first_independent([], looks, len(values)).keeper


def near(count: int) -> dict[str, Any]:
    """Measure ours at one size."""
    values = hashes(count)
    seconds, keeper = _timed(ours, values)
    kept = int((keeper == np.arange(count)).sum())
    return {"s": seconds, "rows_per_s": count / seconds, "kept": kept, **_memory(count)}


def uids(count: int) -> dict[str, Any]:
    """Measure de-duplication by uid, from two tables to four."""
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root)
        selections = [Selected(name, folder / f"{name}.parquet") for name in ("first", "second")]
        for number, selected in enumerate(selections):
            _write_table(selected.path, count // 2, number)
        before = _memory(count)["peak_mib"]
        rules = DuplicateRules(by=("uid",))
        seconds, counts = _timed(deduplicate, selections, folder / "kept", folder / "out", rules)
    kept = sum(found.kept for found in counts.values())
    figures_of = {"s": seconds, "rows_per_s": count / seconds, "kept": kept, **_memory(count)}
    return {**figures_of, "peak_before_mib": before}


def _write_table(path: Path, count: int, number: int) -> None:
    """Write random uids; a fifth of the second table's are of the first."""
    kinds = pa.schema({"shard": pa.string(), "key": pa.string(), "uid": pa.string()})
    with pq.ParquetWriter(path, kinds) as writer:
        for first in range(0, count, CHUNK):
            rows = min(CHUNK, count - first)
            data = np.random.default_rng([0, first]).bytes(16 * rows)
            words = np.frombuffer(data, np.uint8).reshape(rows, 16).copy()
            if number:
                words[rows // 5 :, 0] ^= 1 << 7
                words[rows // 5 :, 1] ^= 1
            digits = DIGITS[np.stack([words >> 4, words & 15], -1)].reshape(-1)
            places = first + np.arange(rows)
            decimals = (places[:, None] // 10 ** np.arange(8, -1, -1) % 10 + 48).astype(np.uint8)
            shards = pa.array([f"{p:05d}" for p in range(first // 10_000, first // 10_000 + 101)])
            columns = {
                "shard": shards.take(pa.array(places // 10_000 - first // 10_000)),
                "key": _strings(decimals.reshape(-1), 9),
                "uid": _strings(digits, 32),
            }
            writer.write_table(pa.table(columns, schema=kinds))


def _strings(letters: np.ndarray, width: int) -> pa.Array:
    ends = np.arange(0, len(letters) + 1, width, dtype=np.int32)
    buffers = (pa.py_buffer(ends), pa.py_buffer(letters.tobytes()))
    return pa.StringArray.from_buffers(len(ends) - 1, *buffers)


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[float, Any]:
    start = time.process_time()
    result = function(*arguments)
    return time.process_time() - start, result


def _memory(count: int) -> dict[str, float]:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"peak_mib": peak / 2**20, "peak_bytes_per_row": peak / count}


def _alone(function: Callable[[int], dict[str, Any]], count: int) -> dict[str, Any]:
    """Call in a fresh process, so that its peak is of this call."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, count).result()


def _beside_scan(count: int, rounds: int) -> dict[str, Any]:
    values = hashes(count)
    turns = [(_timed(ours, values), _timed(scan, values)) for _ in range(rounds)]
    mine, theirs = ([pair[i][0] for pair in turns] for i in (0, 1))
    return {
        "hashes": count,
        "ours_s": figures.spread(mine),
        "scan_s": figures.spread(theirs),
        "ratio": figures.ratios(theirs, mine),
        "same": all(np.array_equal(a[1], b[1]) for a, b in turns),
    }


def _print(report: Mapping[str, Any]) -> None:
    found = report["scan"]
    header = (f"{found['hashes']:,} hashes, {DISTANCE} bits", "s", "", "same result")
    rows = [
        ("ours", f"{found['ours_s']['median']:.3f}", figures.show(found["ratio"]), found["same"]),
        ("plain scan", f"{found['scan_s']['median']:.3f}", "1x", ""),
    ]
    figures.table(header, rows)
    sizes = [(f"{n:,} hashes", one) for n, one in report["near"].items()]
    sizes.append((f"{report['settings']['uids']:,} uids, file to file", report["uids"]))
    rows = [
        (
            name,
            f"{one['s']:.1f}",
            f"{one['rows_per_s']:,.0f}",
            f"{one['kept']:,}",
            f"{one['peak_mib']:,.0f}",
            f"{one['peak_bytes_per_row']:.0f}",
        )
        for name, one in sizes
    ]
    figures.table(("ours alone", "s", "rows/s", "kept", "peak MiB", "bytes/row"), rows)


def _headline(report: Mapping[str, Any]) -> str:
    found, count = report["scan"], max(report["near"], default=None)
    alone = f"; {count:,} in {report['near'][count]['s']:.1f} s" if count else ""
    rate = report["uids"]["rows_per_s"]
    return (
        f"near duplicates of {found['hashes']:,} hashes: {figures.show(found['ratio'])} over a "
        f"plain scan{alone}; by uid: {rate:,.0f} rows/s"
    )


if __name__ == "__main__":
    main()
