"""How near does training come to the limit of one GPU, and what does each technique give?

    python bench/gpu.py --json gpu.json        # the 2B model's shapes, at most eight minutes

Every row runs in a process of its own under a time cap, so that running out of memory or a hang
costs one row. Random weights, JPEG-like pictures, captions of the paper's lengths; nothing is
fetched, and Hydra is not needed. The first rows are this machine's own ceilings.
"""

import argparse
import json
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

HERE = Path(__file__).resolve().parent
# Dense bf16 peaks by the makers' data sheets, in TFLOP/s.
PEAKS = {"H200": 989.4, "H100": 989.4, "A100": 312.0}
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
CAP_S = 75
SAME_LOSS = 0.02  # relative, between ways that compute the same thing in bf16


def main() -> None:
    """Run all rows that the time allows, then print the table and the headline."""
    options = _options()
    started = time.monotonic()
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as root:
        packs = {grid: _packs(Path(root), options, grid) for grid in _grids(options)}
        ceilings = _ceilings(options.device)
        for name, (grid, ways) in _plan(options).items():
            if options.row and not any(part in name for part in options.row):
                continue
            left = options.minutes * 60 - (time.monotonic() - started)
            rows[name] = _row(packs[grid], ways, options, min(CAP_S, left))
            print(f"{name}: {rows[name].get('error') or _speed(rows[name])}", file=sys.stderr)
    report = {
        "bench": "gpu",
        "machine": figures.machine(),
        "device": torch.cuda.get_device_name() if options.device == "cuda" else "cpu",
        "ceilings": ceilings,
        "rows": rows,
        "disagreeing": _disagreeing(rows),
    }
    _print(report)
    figures.finish(report, _headline(report), options.json)


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


def _plan(options: argparse.Namespace) -> dict[str, tuple[int, dict[str, Any]]]:
    """Give each row's grid and ways, the most wanted first."""
    low, high = _grids(options)
    sizes = (2,) if options.quick else (8, 4, 12)
    plan = {f"ours, {low**2} tokens, {b} packs": (low, {"packs": b}) for b in sizes}
    plan[f"ours, {high**2} tokens"] = (high, {"packs": sizes[0]})
    ways = dict(OFFICIAL)
    for name, change in LADDER.items():
        ways |= change
        plan[name] = (low, {**ways, "packs": 2 if options.quick else 4})
    plan["ours, feed-forwards again"] = (low, {"packs": sizes[0], "checkpointing": "mlp"})
    return plan


def _packs(root: Path, options: argparse.Namespace, grid: int) -> Path:
    context, count = (256, 8) if options.model == "tiny" else (4096, 48)
    made = corpora.photo_packs(root / f"g{grid}", count, context, grid, (384, 384))
    return made.path


def _row(
    packs: Path, ways: dict[str, Any], options: argparse.Namespace, cap: float
) -> dict[str, Any]:
    if cap < 5:
        return {"error": "no time left"}
    words = [sys.executable, HERE / "gpu_step.py", "--packs-at", packs, "--ways", json.dumps(ways)]
    words += ["--model", options.model, "--device", options.device]
    words += ["--warm", "2", "--timed", "2"] if options.quick else []
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=cap, check=False)
    except subprocess.TimeoutExpired:
        return {"error": f"took longer than {cap:.0f} s"}
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["died"])[-1][:200]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


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
    """Name the rungs whose first loss is not that of the isolated rung before them."""
    exact = [name for name in list(LADDER)[2:] if "error" not in rows.get(name, {"error": 1})]
    return [
        name
        for name in exact
        if abs(rows[name]["loss_first"] / rows[exact[0]]["loss_first"] - 1) > SAME_LOSS
    ]


def _speed(row: dict[str, Any]) -> str:
    return f"{row['tokens_per_s']:,.0f} tokens/s"


def _print(report: dict[str, Any]) -> None:
    peak = next((v for k, v in PEAKS.items() if k in report["device"]), None)
    ceilings = report["ceilings"]
    base = report["rows"].get("official step", {}).get("tokens_per_s")
    table = []
    for name, row in report["rows"].items():
        if "error" in row:
            table.append((name, row["error"], *[""] * 7))
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
    if report["disagreeing"]:
        print(f"WRONG: the loss differs in {', '.join(report['disagreeing'])}")


def _headline(report: dict[str, Any]) -> str:
    rows = report["rows"]
    ours = next(iter(rows.values()))
    official = rows.get("official step", {"error": "not run"})
    if "error" in ours or "error" in official:
        return "no ratio: ours and the official step did not both run"
    ratio = ours["tokens_per_s"] / official["tokens_per_s"]
    return f"ours over the official step, real tokens/s: {ratio:.2f}x"


if __name__ == "__main__":
    main()
