"""The GPU bench's rows, on the tiny model and the CPU: that they run and agree, not their speed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.slow


def test_the_ladder_runs_and_its_rungs_compute_the_same_loss(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    rows = ["--row", "official", "--row", "mask", "--row", "varlen", "--row", "fused"]
    words = [sys.executable, BENCH / "gpu.py", "--quick", "--json", out, *rows]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    assert len(figures["rows"]) == 4
    assert not [row for row in figures["rows"].values() if "error" in row], figures["rows"]
    assert figures["disagreeing"] == []
    # One causal document a pack is another loss: the gate could tell.
    first = {name: row["loss_first"] for name, row in figures["rows"].items()}
    assert first["official step"] != pytest.approx(first["3 isolated by varlen"], rel=1e-5)
    assert first["2 isolated by transformers' mask"] == pytest.approx(
        first["3 isolated by varlen"], rel=1e-4
    )
