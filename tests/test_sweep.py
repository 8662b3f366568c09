"""Multirun sweeps: one folder a job, and one group of processes a job."""

import json
import subprocess
from pathlib import Path

import pytest
from support.runs import PackedCorpora, command, environment, rows

pytestmark = pytest.mark.slow


def test_a_sweep_over_mixtures_runs_each_job_in_processes_of_its_own(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    overlay = tmp_path / "conf" / "mixture"
    overlay.mkdir(parents=True)
    for source in ("red", "blue"):
        packs = f"[{corpora.packs(source, 3)}, {corpora.packs(source, 6)}]"
        (overlay / f"only_{source}.yaml").write_text(f"sources:\n  {source}: {{packs: {packs}}}\n")
    words = command(corpora, tmp_path, {"mixture": "only_red,only_blue", "budget.steps": 4})
    # The sweep names the folders, by what varies; the overlay brings the mixtures.
    words = [w for w in words if not w.startswith(("hydra.run.dir", "+mixture"))]
    words += [
        "-m",
        f"--config-dir={overlay.parent}",
        f"hydra.sweep.dir={tmp_path / 'sweep'}",
        "strategy=ddp",
        "trainer.devices=2",
    ]
    done = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    for source in ("red", "blue"):
        run_dir = tmp_path / "sweep" / f"mixture-only_{source}"
        assert f"{run_dir}/checkpoints/step_00000004.ckpt" in done.stdout
        assert len(rows(run_dir)) == 4
        assert json.loads((run_dir / "run.json").read_text())["devices"] == 2
        assert list(json.loads((run_dir / "consumed.json").read_text())) == [source]
