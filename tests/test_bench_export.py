import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench" / "export.py"


@pytest.mark.slow
def test_an_export_holds_the_weights_once(tmp_path: Path) -> None:
    words = [sys.executable, BENCH, "--quick", "--json", tmp_path / "export.json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "export.json").read_text())
    assert figures["logits_apart"] < 1e-4
    # At this size the libraries weigh more than the weights; activations and buffers are the rest.
    own = figures["peak"]["export"]["median"] - figures["libraries"]["export"]["median"]
    assert own < 3.5
    assert done.stdout.splitlines()[-1] == figures["headline"]
