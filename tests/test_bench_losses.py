"""The bench of the losses' implementations: that it runs, and tells a wrong one."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench"
# The bench itself, with a way in it whose gradient is twice what it should be.
PLANTED = """
import sys
sys.path.insert(0, {bench!r})
sys.argv = ["losses.py", "--quick", "--json", {out!r}]
import losses
plain = losses._ways
def planted(device):
    ways, lacking = plain(device)
    return ways | {{"twice": lambda *given: 2 * losses._full(*given)}}, lacking
losses._ways = planted
losses.main()
"""


@pytest.mark.slow
def test_every_way_that_runs_here_is_measured_and_a_wrong_gradient_is_told(tmp_path: Path) -> None:
    out = tmp_path / "losses.json"
    words = [sys.executable, "-c", PLANTED.format(bench=str(BENCH), out=str(out))]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    figures = json.loads(out.read_text())
    (shape,) = figures["shapes"]
    named = set(shape["ms"]) | set(shape["lacking"])
    assert named >= {"chunked", "linear_cross_entropy", "liger", "all logits at once"}
    assert set(shape["ratios"]) == set(shape["ms"]) - {"chunked"}
    assert "need a CUDA device" in shape["lacking"]["liger"]
    assert shape["wrong"] == ["twice"]
    assert "WRONG: the gradient differs in twice" in done.stdout
    assert done.stdout.splitlines()[-1] == figures["headline"]
