"""The goals of the performance study, held against what `gpu.py` measured."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Report = Mapping[str, Any]
# FLOPs that 5 billion tokens of the paper's pre-training cannot do without; see docs/planning.md.
PAPER_FLOPS = 5.94e19
A100_TFLOPS = 312.0
WORKERS = 4


@dataclass(frozen=True)
class Goal:
    """One figure and its bound.

    Attributes:
        name: of the study.
        words: what is measured.
        bound: the least, or the most where ``most``.
        found: gives it; None where what it takes was not measured.
        shown: how it is printed.
        most: whether less is better.
    """

    name: str
    words: str
    bound: float
    found: Callable[[Report], float | None]
    shown: str = "{:.2f}x"
    most: bool = False


def verdicts(report: Report) -> list[dict[str, Any]]:
    """Say of each goal what was found and whether it is met, missed or not measured.

    The goals are for a GPU; on a CPU none is measured. Where some row computed what it should not,
    nothing that was found is believed.
    """
    believed = sound(report)
    told = []
    for goal in GOALS:
        found = goal.found(report) if report["device"] != "cpu" else None
        met = None if found is None else found <= goal.bound if goal.most else found >= goal.bound
        verdict = {None: "not measured", True: "met", False: "missed"}[met]
        if met is not None and not believed:
            verdict = "not believed"
        sign = "<=" if goal.most else ">="
        told.append(
            {
                "goal": goal.name,
                "of": goal.words,
                "bound": f"{sign} {goal.shown.format(goal.bound)}",
                "found": None if found is None else found,
                "shown": "-" if found is None else goal.shown.format(found),
                "verdict": verdict,
            }
        )
    return told


def sound(report: Report) -> bool:
    """Say whether all losses agree and the gate, if it was asked, is kept."""
    gate = report["rows"].get("correctness", {"checks": {}})
    kept = "checks" in gate and all(check["kept"] for check in gate["checks"].values())
    return kept and not report["disagreeing"]


def _rate(report: Report, *names: str) -> float | None:
    """The best tokens a second among rows whose names begin with one of these."""
    rates = [
        row["tokens_per_s"]
        for name, row in report["rows"].items()
        if name.startswith(names) and "tokens_per_s" in row
    ]
    return max(rates, default=None)


def _over(ours: str, *theirs: str) -> Callable[[Report], float | None]:
    """How many times the speed of another row ours has."""

    def found(report: Report) -> float | None:
        fast, slow = _rate(report, ours), _rate(report, *theirs)
        return None if fast is None or slow is None else fast / slow

    return found


def _mfu(name: str) -> Callable[[Report], float | None]:
    """The best share of the peak among rows of that name."""

    def found(report: Report) -> float | None:
        shares = [
            row["strict_tflops"] / report["peak_tflops"]
            for key, row in report["rows"].items()
            if key.startswith(name) and "strict_tflops" in row and report["peak_tflops"]
        ]
        return max(shares, default=None)

    return found


def _a100_hours(report: Report) -> float | None:
    """The paper's pre-training on A100s that reach this GPU's share of their peak."""
    share = _mfu("ours, 144")(report)
    return None if share is None else PAPER_FLOPS / (share * A100_TFLOPS * 1e12) / 3600


def _keeps(report: Report) -> float | None:
    found: float | None = report["rows"].get("Lightning's fit", {}).get("keeps")
    return found


def _loader(report: Report) -> float | None:
    """Images a second of at most four workers over what our fastest row takes."""
    row = report["rows"].get("loader", {})
    demand = [r["images_per_s"] for n, r in report["rows"].items() if _takes(n, r)]
    counts = row.get("by_workers", {}).items()
    given = [one["images_per_s"] for count, one in counts if int(count) <= WORKERS]
    return max(given) / max(demand) if demand and given else None


def _takes(name: str, row: Mapping[str, Any]) -> bool:
    return name.startswith("ours, 144") and "images_per_s" in row


GOALS = (
    Goal("G1", "144 tokens an image, share of the peak", 0.45, _mfu("ours, 144"), "{:.1%}"),
    Goal("G2", "729 tokens an image, share of the peak", 0.45, _mfu("ours, 729"), "{:.1%}"),
    Goal("G3", "over the official step, real tokens/s", 1.6, _over("ours, 144", "official step")),
    Goal(
        "G4",
        "over transformers' own packed way",
        1.5,
        _over("ours, 144", "transformers' Trainer", "2 isolated by transformers"),
    ),
    Goal(
        "G5",
        "the paper's 5B tokens on A100s at this share, GPU-hours",
        110,
        _a100_hours,
        "{:.0f}",
        most=True,
    ),
    Goal("G6", "Lightning's fit over a bare loop", 0.98, _keeps, "{:.3f}"),
    Goal("G7", f"loader with at most {WORKERS} workers over the GPU's demand", 2, _loader),
)
