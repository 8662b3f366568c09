import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench" / "evaluation.py"


@pytest.mark.slow
def test_batches_are_faster_than_one_by_one_and_say_the_same(tmp_path: Path) -> None:
    words = [sys.executable, BENCH, "--quick", "--json", tmp_path / "evaluation.json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "evaluation.json").read_text())
    assert figures["same_answers"] is True
    assert figures["different_answers"] > figures["data"]["questions"] / 2
    # 48 questions make one full batch; the goal of 3 is for the 128 of a whole run.
    assert figures["over_one_by_one"]["median"] > 1.5
    assert figures["over_no_cache"]["median"] > figures["over_one_by_one"]["median"]
    assert done.stdout.splitlines()[-1] == figures["headline"]
    assert "x (" in figures["headline"]
