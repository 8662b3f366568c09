import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench" / "scorers.py"


@pytest.mark.slow
def test_scorers_are_measured_beside_the_bare_model_and_a_plain_loop(tmp_path: Path) -> None:
    words = [sys.executable, BENCH, "--quick", "--json", tmp_path / "scorers.json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "scorers.json").read_text())
    for name, ways in {"clip": 3, "judge": 4}.items():
        speeds = figures["pairs_per_s"][name]
        assert len(speeds) == ways
        assert all(0 < speed["min"] <= speed["max"] for speed in speeds.values())
        # Tiny models: nearly all of the time goes into pictures, so only the order can be held.
        assert 0 < figures["over_bare"][name]["median"] < 1.2
    assert done.stdout.splitlines()[-1] == figures["headline"]
    assert "x (" in figures["headline"]
