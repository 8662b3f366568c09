"""The GPU bench's verdicts on its goals, and that it needs no Hydra."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench"
SCRIPTS = (
    "gpu",
    "gpu_step",
    "gpu_gate",
    "gpu_baselines",
    "gpu_loader",
    "gpu_goals",
    "trainer",
    "losses",
)


def row(tokens: float, tflops: float, images: float = 190) -> dict[str, float]:
    return {"tokens_per_s": tokens, "strict_tflops": tflops, "images_per_s": images}


def report(device: str = "NVIDIA H200", **rows: dict[str, Any]) -> dict[str, Any]:
    peak = 989.4 if "H200" in device else None
    return {"device": device, "peak_tflops": peak, "rows": rows, "disagreeing": []}


def full() -> dict[str, dict[str, Any]]:
    return {
        "ours, 144 tokens, 8 packs": row(40_000, 480),
        "ours, 144 tokens, 4 packs": row(38_000, 451),
        "ours, 144 tokens, 12 packs": {"error": "out of memory"},
        "ours, 729 tokens": row(48_000, 440),
        "official step": row(24_000, 285),
        "2 isolated by transformers' mask": row(30_000, 350),
        "transformers' Trainer": row(22_000, 260),
        "Lightning's fit": {"keeps": 0.985},
        "loader": {"by_workers": {"1": {"images_per_s": 200}, "4": {"images_per_s": 700}, "8": {"images_per_s": 9000}}},
    }  # fmt: skip


@pytest.fixture
def verdicts(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCH))
    from gpu_goals import verdicts

    return verdicts


def test_goals_are_held_against_the_best_rows(verdicts: Any) -> None:
    told = {one["goal"]: (one["shown"], one["verdict"]) for one in verdicts(report(**full()))}
    assert told == {
        "G1": ("48.5%", "met"),  # 480 / 989.4
        "G2": ("44.5%", "missed"),
        "G3": ("1.67x", "met"),
        "G4": ("1.33x", "missed"),  # the faster of transformers' own two ways
        "G5": ("109", "met"),  # 5.94e19 / (0.485 * 312e12) / 3600
        "G6": ("0.985", "met"),
        "G7": ("3.68x", "met"),  # not the eight workers'
    }


def test_what_was_not_measured_is_neither_met_nor_missed(verdicts: Any) -> None:
    def told(**changes: Any) -> dict[str, str]:
        made = report(**{**full(), **changes})
        return {one["goal"]: one["verdict"] for one in verdicts(made)}

    assert told(**{"official step": {"error": "took longer than 75 s"}})["G3"] == "not measured"
    assert told(loader={"error": "died"})["G7"] == "not measured"
    assert told(**{"Lightning's fit": {"error": "died"}})["G6"] == "not measured"
    unknown = {one["goal"]: one["verdict"] for one in verdicts(report("NVIDIA X1", **full()))}
    assert [goal for goal, one in unknown.items() if one == "not measured"] == ["G1", "G2", "G5"]
    on_cpu = verdicts(report("cpu", **full()))
    assert {one["verdict"] for one in on_cpu} == {"not measured"}


@pytest.mark.parametrize(
    "changes",
    [
        {"disagreeing": ["3 isolated by varlen"]},
        {"rows": {**full(), "correctness": {"error": "took longer than 75 s"}}},
        {
            "rows": {
                **full(),
                "correctness": {"checks": {"a": {"kept": True}, "b": {"kept": False}}},
            }
        },
    ],
    ids=["another loss", "no gate", "a leak"],
)
def test_what_computes_wrongly_is_not_believed(verdicts: Any, changes: dict[str, Any]) -> None:
    told = verdicts(report(**full()) | changes)
    assert {one["verdict"] for one in told} == {"not believed"}


@pytest.mark.slow
def test_the_bench_runs_without_hydra() -> None:
    code = (
        "import sys; sys.modules['hydra'] = sys.modules['omegaconf'] = None; "
        f"sys.path.insert(0, {str(BENCH)!r}); import {', '.join(SCRIPTS)}"
    )
    words = [sys.executable, "-c", code]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr
