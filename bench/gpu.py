"""How near does training come to the limit of one GPU, and what does each technique give?

    python bench/gpu.py --json gpu.json        # the 2B model's shapes, at most eight minutes

Every row runs in a process of its own under a time cap, so that running out of memory or a hang
costs one row. Random weights, JPEG-like pictures, captions of the paper's lengths; nothing is
fetched, and Hydra is not needed. The first line is this machine's own ceilings, the last table the
study's goals. With accelerate installed the Trainer of transformers runs itself, else its loop
written out.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import corpora
import figures
import torch
from gpu_goals import sound, verdicts
from gpu_step import CHOICES

from openqwen2vl.callbacks.throughput import PEAKS

HERE = Path(__file__).resolve().parent
LOW, HIGH = 12, 27
OFFICIAL = {
    "isolate": "none",
    "head": "all",
    "checkpointing": "full",
    "compile": False,
    "all_blocks": True,
    "fused": False,
}
# One toggle after the other, from the official step to ours.
LADDER: dict[str, dict[str, Any]] = {
    "official step": {},
    "1 no checkpointing": {"checkpointing": "none"},
    "2 isolated by transformers' mask": {"isolate": "mask"},
    "3 isolated by varlen": {"isolate": "ours"},
    "4 logits at targets": {"head": "targets"},
    "5 compiled": {"compile": True},
    "6 no unread block, fused AdamW": {"all_blocks": False, "fused": True},
}
BASELINES = {"padded rows": "padded", "transformers' Trainer": "trainer"}
GATE = "correctness"
CAP_S = 75
SAME_LOSS = 0.02  # relative, between ways that compute the same thing in bf16


def main() -> int:
    """Run all rows that the time allows, then print the tables and the headline.

    Returns:
        1 when some row computed what it should not.
    """
    options = _options()
    started = time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as root:
        packs = {grid: _packs(Path(root), options, grid) for grid in _grids(options)}
        ceilings = _ceilings(options.device)
        for name, words in _plan(options, packs, Path(root)).items():
            if options.row and not any(part in name for part in options.row):
                continue
            left = options.minutes * 60 - (time.monotonic() - started)
            rows[name] = _row(words, min(CAP_S, left))
            print(f"{name}: {rows[name].get('error') or _speed(rows[name])}", file=sys.stderr)
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    report: dict[str, Any] = {
        "bench": "gpu",
        "machine": figures.machine(),
        "device": device,
        "peak_tflops": next((peak for key, peak in PEAKS.items() if key in device), None),
        "seconds": time.monotonic() - started,
        "ceilings": ceilings,
        "rows": rows,
        "disagreeing": _disagreeing(rows),
    }
    report["goals"] = verdicts(report)
    _print(report)
    figures.finish(report, _headline(report), options.json)
    return 0 if sound(report) else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--model", choices=("2b", "tiny"), default="2b")
    parser.add_argument("--minutes", type=float, default=8, help="no row starts after that")
    parser.add_argument("--row", action="append", help="run rows whose name has this in it only")
    parser.add_argument("--quick", action="store_true", help="the tiny model on the CPU, for CI")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    if options.quick:
        options.device, options.model = "cpu", "tiny"
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device here; --quick runs the same rows on the tiny model")
    return options


def _grids(options: argparse.Namespace) -> tuple[int, int]:
    return (3, 6) if options.model == "tiny" else (LOW, HIGH)


def _plan(
    options: argparse.Namespace, packs: dict[int, Path], root: Path
) -> dict[str, list[str | Path]]:
    """Give each row's command: the gate, then the most wanted first."""
    low, high = _grids(options)
    steps: list[str | Path] = ["--warm", "2", "--timed", "2"] if options.quick else []
    place: list[str | Path] = ["--model", options.model, "--device", options.device]
    at: list[str | Path] = ["--packs-at", packs[low]]

    def step(grid: int, **ways: Any) -> list[str | Path]:
        told = ["--packs-at", packs[grid], "--ways", json.dumps(ways)]
        return ["gpu_step.py", *told, *place, *steps]

    sizes, few = ((2,), 2) if options.quick else ((8, 4, 12), 4)
    plan: dict[str, list[str | Path]] = {GATE: ["gpu_gate.py", *at, *place]}
    plan |= {f"ours, {low**2} tokens, {b} packs": step(low, packs=b) for b in sizes}
    plan[f"ours, {high**2} tokens"] = step(high, packs=sizes[0])
    ways = dict(OFFICIAL)
    for name, change in LADDER.items():
        ways |= change
        plan[name] = step(low, **ways, packs=few)
    for name, way in BASELINES.items():
        plan[name] = ["gpu_baselines.py", *at, "--way", way, "--packs", str(few), *place, *steps]
    # Two packs: two models lie in memory at once.
    fit = ["--steps", "4" if options.quick else "16", "--micro-batch", "2"]
    fit += ["--workers", "0" if options.quick else "4"]
    plan["Lightning's fit"] = [*["trainer.py", *at], *place, *fit, "--json", root / "fit.json"]
    side = ["--side", "84", "--seconds", "0.5"] if options.model == "tiny" else []
    plan["loader"] = ["gpu_loader.py", *at, *side]
    plan["ours, feed-forwards again"] = step(low, packs=sizes[0], checkpointing="mlp")
    return plan | {name: step(low, packs=sizes[0], **way) for name, way in CHOICES.items()}


def _packs(root: Path, options: argparse.Namespace, grid: int) -> Path:
    context, count = (256, 8) if options.model == "tiny" else (4096, 48)
    made = corpora.photo_packs(root / f"g{grid}", count, context, grid, (384, 384))
    return made.path


def _row(words: list[str | Path], cap: float) -> dict[str, Any]:
    """Run one row's command; gives the JSON that it wrote or that is its last line."""
    if cap < 5:
        return {"error": "no time left"}
    script, *rest = words
    command = [sys.executable, HERE / script, *rest]
    # On a CPU beside other work, threads that wait for each other spin.
    env = {**os.environ, "OMP_NUM_THREADS": "1"} if "cpu" in words else None
    try:
        done = subprocess.run(
            command, env=env, capture_output=True, text=True, timeout=cap, check=False
        )
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {cap:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["died"])[-1][:200]}
    file = words[-1] if "--json" in words else None
    told = done.stdout.splitlines()[-1] if file is None else Path(file).read_text()
    return dict(json.loads(told))


def _ceilings(device: str) -> dict[str, float]:
    """Matrix products and copies of this machine: TFLOP/s and TB/s."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    operands = [torch.randn(side, side, device=device, dtype=dtype) for _ in range(2)]
    out = torch.empty_like(operands[0])
    product = _fastest(lambda: torch.mm(*operands, out=out), device)
    copy = _fastest(lambda: out.copy_(operands[0]), device)
    moved = 2 * side**2 * dtype.itemsize
    return {"matmul_tflops": 2 * side**3 / product / 1e12, "copy_tb_per_s": moved / copy / 1e12}


def _fastest(work: Callable[[], object], device: str) -> float:
    found = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        work()
        if device == "cuda":
            torch.cuda.synchronize()
        found = min(found, time.perf_counter() - start)
    return found


def _disagreeing(rows: dict[str, dict[str, Any]]) -> list[str]:
    """Name the rows whose first loss is not that of the first which ran of those on equal packs."""
    ours = next((name for name in rows if name.startswith("ours, ")), GATE)
    found = []
    for names in ([*list(LADDER)[2:], *BASELINES], [ours, *CHOICES]):
        ran = [name for name in names if "loss_first" in rows.get(name, {})]
        found += [
            name
            for name in ran
            if abs(rows[name]["loss_first"] / rows[ran[0]]["loss_first"] - 1) > SAME_LOSS
        ]
    return found


def _speed(row: dict[str, Any]) -> str:
    if "keeps" in row:
        return f"{row['keeps']:.3f} of a bare loop"
    if "checks" in row:
        found = (f"{name} {one['error']:.1e}" for name, one in row["checks"].items())
        return ", ".join(found)
    if "by_workers" in row:
        rates = (f"{n}: {one['images_per_s']:,.0f}" for n, one in row["by_workers"].items())
        return f"images/s by workers, {row['cores']} cores: {', '.join(rates)}"
    by = f", {row['by']}" if "by" in row else ""
    return f"{row['tokens_per_s']:,.0f} tokens/s{by}"


def _print(report: dict[str, Any]) -> None:
    peak, ceilings = report["peak_tflops"], report["ceilings"]
    base = report["rows"].get("official step", {}).get("tokens_per_s")
    table, others = [], []
    for name, row in report["rows"].items():
        if "error" in row or "tokens_per_s" not in row:
            others.append(f"{name}: {row.get('error') or _speed(row)}")
            continue
        tflops = row["strict_tflops"]
        table.append(
            (
                name,
                f"{row['tokens_per_s']:,.0f}",
                f"{row['images_per_s']:,.0f}",
                f"{row['ms']['median']:.1f} ({row['ms']['p10']:.1f}-{row['ms']['p90']:.1f})",
                f"{tflops:.1f}",
                f"{tflops / peak:.1%}" if peak else "-",
                f"{row['palm_tflops'] / peak:.1%}" if peak else "-",
                f"{row['tokens_per_s'] / base:.2f}x" if base else "-",
                "-" if row["peak_gib"] is None else f"{row['peak_gib']:.1f}",
            )
        )
    print(
        f"{report['device']}: {ceilings['matmul_tflops']:.1f} TFLOP/s in a matrix product, "
        f"{ceilings['copy_tb_per_s']:.2f} TB/s in a copy"
    )
    columns = ("", "tokens/s", "images/s", "ms (p10-p90)", "TFLOP/s", "MFU", "MFU PaLM")
    figures.table((*columns, "official", "GiB"), table)
    print("\n".join(others))
    if report["disagreeing"]:
        print(f"WRONG: the loss differs in {', '.join(report['disagreeing'])}")
    for name, check in report["rows"].get(GATE, {}).get("checks", {}).items():
        if not check["kept"]:
            print(f"WRONG: {name} is off by {check['error']:.1e}, above {check['bound']:.0e}")
    keys = ("goal", "of", "bound", "shown", "verdict")
    figures.table(
        ("goal", "", "bound", "found", ""), [[g[k] for k in keys] for g in report["goals"]]
    )


def _headline(report: dict[str, Any]) -> str:
    rows = report["rows"]
    ours = next((row for name, row in rows.items() if name.startswith("ours")), {"error": "none"})
    official = rows.get("official step", {"error": "not run"})
    if "error" in ours or "error" in official:
        return "no ratio: ours and the official step did not both run"
    ratio = ours["tokens_per_s"] / official["tokens_per_s"]
    return f"ours over the official step, real tokens/s: {ratio:.2f}x"


if __name__ == "__main__":
    sys.exit(main())
