"""How fast and in how much memory is a selection made, from a table larger than one would load?

    python bench/selection.py

DataComp's metadata has 128M rows. Here 50M rows of uid and two scores, in files and row groups, are
drawn and written to a temporary folder (2.2 GB; ``--folder`` says where). Two selections are made
of them: decided alone (read, judge, give each sample its reason, count), and as ``openqwen2vl
curate`` makes them, with a table of what stays, one with a row for each sample that does not, and
the list of uids. Each runs in a process of its own, on one core, for its processor time and its
peak memory. Beside them stands the plain way: a file in memory as numpy arrays, the uids made into
two numbers one after the other; it gives the list alone, and it must be the same list.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    os.environ["POLARS_MAX_THREADS"] = "1"  # read when polars is imported

import figures
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from openqwen2vl.curation.selection.expression import parse_expression
from openqwen2vl.curation.selection.predicate import compile_expression
from openqwen2vl.curation.selection.ranks import rank
from openqwen2vl.curation.selection.select import Rule, Selection, export_uids, select
from openqwen2vl.curation.selection.sources import open_source
from openqwen2vl.curation.selection.uids import PAIR, join_uids, read_uids, write_uids
from openqwen2vl.curation.selection.verdicts import Question, Verdicts

EXPRESSIONS = {
    "paper": "uids('dfn') or semantic_understanding >= 85",
    "top": "top(clip_similarity, 0.3)",
}
FILE_ROWS, GROUP_ROWS = 1_000_000, 500_000
LISTED = 0.15  # of the rows, as 19.2M of DataComp-medium's 128M
GOAL = 5_000_000  # rows/s


def main() -> None:
    """Measure and print the table, then the headline; or be one of the processes measured."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=50_000_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="for the temporary files")
    parser.add_argument("--quick", action="store_true", help="two small rounds, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    parser.add_argument("--job", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.job:
        way, name, root = options.job
        print(json.dumps(_measured(WAYS[way], name, Path(root))))
        return
    if options.quick:
        options.rows, options.rounds = 200_000, 2
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = _report(options, Path(folder))
    _print(report)
    figures.finish(report, _headline(report), options.json)


def _report(options: argparse.Namespace, root: Path) -> dict[str, Any]:
    _make(root, options.rows)
    turns: dict[str, list[dict[str, Any]]] = {f"{w} {n}": [] for n in EXPRESSIONS for w in WAYS}
    for _ in range(options.rounds):
        for key, found in turns.items():
            found.append(_child(*key.split(), root))
    rates = {key: [_rate(one) for one in found] for key, found in turns.items()}
    return {
        "bench": "selection",
        "machine": {**figures.machine(), "polars": version("polars")},
        "rows": options.rows,
        "table_bytes": sum(path.stat().st_size for path in (root / "table").iterdir()),
        "runs": {key: found[-1] for key, found in turns.items()},
        "rows_per_s": {key: figures.spread(rate) for key, rate in rates.items()},
        "ratios": {
            n: figures.ratios(rates[f"decided {n}"], rates[f"plain {n}"]) for n in EXPRESSIONS
        },
        "same_uids": {n: turns[f"plain {n}"][-1]["same"] for n in EXPRESSIONS},
        "settings": {k: str(v) for k, v in vars(options).items() if k not in ("json", "job")},
    }


def _make(root: Path, rows: int) -> None:
    """Write the table and the list; the same for the same number of rows."""
    (root / "table").mkdir()
    listed = []
    for number, start in enumerate(range(0, rows, FILE_ROWS)):
        path = root / "table" / f"{number:08d}.parquet"
        sizes = [
            min(GROUP_ROWS, rows - first)
            for first in range(start, min(start + FILE_ROWS, rows), GROUP_ROWS)
        ]
        groups = [_group(np.random.default_rng([0, number, n]), s) for n, s in enumerate(sizes)]
        with pq.ParquetWriter(path, groups[0][0].schema, use_dictionary=False) as writer:
            for table, chosen in groups:
                writer.write_table(table)
                listed.append(chosen)
    write_uids(root / "dfn.npy", join_uids(np.concatenate(listed)))


def _group(rng: np.random.Generator, rows: int) -> tuple[pa.Table, np.ndarray]:
    pairs = np.frombuffer(rng.bytes(16 * rows), PAIR)
    scores = np.clip(np.round(rng.normal(60, 18, rows)), 0, 100).astype(np.float32)
    scores[rng.random(rows) < 0.02] = np.nan
    table = {
        "uid": join_uids(pairs).to_arrow(),
        "clip_similarity": rng.normal(0.22, 0.06, rows).astype(np.float32),
        "semantic_understanding": scores,
    }
    return pa.table(table), pairs[rng.random(rows) < LISTED]


def _rate(run: dict[str, Any]) -> float:
    """Give rows per second of processor time; what took all rows counts for all."""
    over_all = run.get("ranking_s", 0.0)
    return 1 / ((run["cpu_s"] - over_all) / run["rows"] + over_all / run.get("ranked", run["rows"]))


def _child(way: str, name: str, root: Path) -> dict[str, Any]:
    words = [sys.executable, __file__, "--job", way, name, str(root)]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout)


def _measured(way: Callable[[str, Path], dict[str, Any]], name: str, root: Path) -> dict[str, Any]:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    pa.set_cpu_count(1)
    pa.set_io_thread_count(1)
    start, begun = time.process_time(), time.perf_counter()
    found = way(name, root)
    seconds = {"cpu_s": time.process_time() - start, "wall_s": time.perf_counter() - begun}
    return {**seconds, "peak_mib": _peak_mib(), **found, **_compared(name, root)}


def _peak_mib() -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _ours(name: str, root: Path) -> dict[str, Any]:
    source = open_source("table", root / "table", root / "scores")
    rule = Rule(input="table", keep=EXPRESSIONS[name])
    selection = Selection(sources={name: rule}, lists={"dfn": str(root / "dfn.npy")})
    counts = select(selection, {"table": source}, root / "out")[name]
    export_uids(root / "out" / "selection" / f"{name}.parquet", root / f"ours-{name}.npy")
    return {"rows": counts["seen"], "kept": counts["kept"]}


def _decided(name: str, root: Path) -> dict[str, Any]:
    source = open_source("table", root / "table", root / "scores")
    expression = parse_expression(EXPRESSIONS[name])
    columns = source.resolve(expression.columns)
    kinds = {word: column.dtype for word, column in columns.items()}
    predicate = compile_expression(expression, kinds, ["dfn"])
    lists = {"dfn": read_uids(root / "dfn.npy")}
    question = Question(
        tables=source, expression=expression, predicate=predicate, columns=columns, lists=lists
    )
    verdicts = Verdicts(question, rank(source, expression, predicate, columns))
    for piece in source.pieces(columns):
        verdicts.judge(piece)
    return {"rows": verdicts.seen, "kept": verdicts.kept}


def _plain(name: str, root: Path) -> dict[str, Any]:
    """Do it as one would first; of many files one will do, but for the threshold of the top."""
    files = sorted((root / "table").iterdir())
    column = {"paper": "semantic_understanding", "top": "clip_similarity"}[name]
    lowest, listed = 85.0, None
    begun, ranked = time.process_time(), np.zeros(1)
    if name == "top":
        ranked = np.sort(np.concatenate([_column(path, column) for path in files]))
        lowest = ranked[len(ranked) - int(len(ranked) * 0.3)]
    else:
        listed = np.load(root / "dfn.npy")
    ranking = (
        {"ranking_s": time.process_time() - begun, "ranked": len(ranked)} if len(ranked) > 1 else {}
    )
    uids, scores = pq.read_table(files[0], columns=["uid"])["uid"], _column(files[0], column)
    keep, rows = scores >= lowest, len(scores)
    if listed is None:
        uids, keep = uids.filter(pa.array(keep)), keep[keep]
    pairs = np.array([(int(u[:16], 16), int(u[16:], 16)) for u in _texts(uids)], PAIR)
    if listed is not None:
        place = np.minimum(np.searchsorted(listed, pairs), len(listed) - 1)
        keep |= listed[place] == pairs
    np.save(root / f"plain-{name}.npy", np.sort(pairs[keep]))
    return {"rows": rows, "kept": int(keep.sum()), **ranking}


def _column(path: Path, name: str) -> np.ndarray:
    return pq.read_table(path, columns=[name])[name].to_numpy()


def _texts(uids: pa.ChunkedArray) -> Iterator[str]:
    for chunk in uids.chunks:
        yield from chunk.to_pylist()


def _compared(name: str, root: Path) -> dict[str, Any]:
    """Tell whether both ways kept the same uids of the first file, once both lists are there."""
    ours, plain = (root / f"{way}-{name}.npy" for way in ("ours", "plain"))
    if not plain.exists():
        return {}
    first = pl.read_parquet(sorted((root / "table").iterdir())[0], columns=["uid"])["uid"]
    kept = int(read_uids(ours).contains(first).sum())
    alike, theirs = read_uids(ours), np.load(plain)
    found = alike.index.find(*(np.ascontiguousarray(theirs[side]) for side in ("f0", "f1")))
    # Of values that stand on the threshold together, the plain way keeps all.
    return {"same": bool(len(theirs) - kept < 10 and (found >= 0).sum() == kept)}


WAYS = {"decided": _decided, "ours": _ours, "plain": _plain}


def _print(report: dict[str, Any]) -> None:
    rows = [
        (
            EXPRESSIONS[key.split()[1]],
            key.split()[0],
            f"{run['rows']:,}",
            f"{run['kept'] / run['rows']:.1%}",
            f"{run['cpu_s']:.1f} s",
            f"{run['wall_s']:.1f} s",
            f"{report['rows_per_s'][key]['median']:,.0f}",
            f"{run['peak_mib']:,.0f} MiB",
        )
        for key, run in report["runs"].items()
    ]
    header = ("expression", "way", "rows", "kept", "processor", "wall", "rows/s", "peak memory")
    figures.table(header, rows)
    for name in EXPRESSIONS:
        for way in ("decided", "ours"):
            rate = report["rows_per_s"][f"{way} {name}"]["median"]
            print(f"{name}, {way}: {rate:,.0f} rows/s ({'met' if rate >= GOAL else 'missed'})")
        print(f"{name}, same uids: {report['same_uids'][name]}")


def _headline(report: dict[str, Any]) -> str:
    said = [f"{figures.show(report['ratios'][n])} for {EXPRESSIONS[n]}" for n in EXPRESSIONS]
    return f"deciding over the plain way, one core, {report['rows']:,} rows: {'; '.join(said)}"


if __name__ == "__main__":
    main()
