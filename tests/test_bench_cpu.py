"""The gates on counts, kept on every change."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.runs import environment

BENCH = Path(__file__).parents[1] / "bench"

pytestmark = pytest.mark.slow


def test_every_gate_is_kept(tmp_path: Path) -> None:
    words = [sys.executable, BENCH / "cpu.py", "--quick", "--json", tmp_path / "cpu.json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    figures = json.loads((tmp_path / "cpu.json").read_text())
    assert len(figures["gates"]) == 10
    assert not figures["missed"]


def test_a_missed_gate_fails_the_command(tmp_path: Path) -> None:
    code = (
        f"import sys; sys.path.insert(0, {str(BENCH)!r}); sys.argv = ['cpu.py', '--quick']\n"
        "import cpu\n"
        "cpu._gates = lambda settings: [cpu.Gate('kept', 1, 1), cpu.Gate('broken', 2, 1)]\n"
        "cpu.main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1
    assert done.stdout.splitlines()[-1] == "missed: broken"


def test_fit_is_measured_beside_a_bare_loop(tmp_path: Path) -> None:
    words = [sys.executable, BENCH / "trainer.py", "--quick", "--json", tmp_path / "t.json"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    figures = json.loads((tmp_path / "t.json").read_text())
    assert set(figures["ms_per_step"]) == {"bare loop", "fit"}
    assert figures["pairs"] == 8
    assert 0.2 < figures["quartiles"][0] <= figures["keeps"] <= figures["quartiles"][1] < 5
