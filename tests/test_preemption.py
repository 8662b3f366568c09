"""Warned, killed or queued again: a run of several processes goes on exactly."""

import itertools
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.fakes import slurm_job
from support.runs import PackedCorpora, command, environment, kill_tree, rows, train

pytestmark = pytest.mark.slow
STEPS = 6
PAGE = Path(__file__).parents[1] / "docs" / "cluster.md"
SETTINGS: dict[str, object] = {
    "strategy": "fsdp",
    "strategy.param_dtype": "fp32",
    "trainer.devices": 2,
    "resolution": "tiny",
    "budget.steps": STEPS,
    "data.micro_batch": 1,
    "data.preflight": "false",
    "callbacks.validation": "null",
    "resume": "auto",
}
SLOW = {"+callbacks.slow": "{_target_: support.slow.Slow, seconds: 0.2}"}


@pytest.fixture(scope="module")
def unbroken(corpora: PackedCorpora, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("unbroken_two") / "run"
    done = train(corpora, run_dir, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert len(rows(run_dir)) == STEPS
    return run_dir


def wait_for_rows(run_dir: Path, count: int, process: subprocess.Popen[str]) -> None:
    """Wait until that many steps are written; a process that ended before is a failure."""
    deadline = time.monotonic() + 240
    while len(rows(run_dir)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)


def children(pid: int) -> list[int]:
    """List the direct children of a process."""
    found = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False)
    return [int(line) for line in found.stdout.split()]


def running(pid: int) -> bool:
    """Tell whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return stat.rpartition(")")[2].split()[0] != "Z"


def rank_of(pid: int) -> str:
    """Read a worker's rank."""
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return next(v.decode()[5:] for v in variables if v.startswith(b"RANK="))


def with_support() -> dict[str, str]:
    """Let a run find this folder's callbacks."""
    return environment() | {"PYTHONPATH": str(Path(__file__).parent)}


def begun(words: list[str], env: dict[str, str], **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload, no-any-return]
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_a_killed_rank_ends_the_run_soon_and_a_restart_goes_on_exactly(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    process = begun(command(corpora, run_dir, SETTINGS | SLOW), with_support())
    try:
        wait_for_rows(run_dir, 2, process)
        (launcher,) = children(process.pid)
        ranks = children(launcher)
        (doomed,) = [pid for pid in ranks if rank_of(pid) == "1"]
        os.kill(doomed, signal.SIGKILL)
        started = time.monotonic()
        _, said = process.communicate(timeout=90)
    finally:
        kill_tree(process.pid)
    assert time.monotonic() - started < 60
    assert process.returncode == 1  # no mistake of the user's
    assert "a rank crashed or was killed" in said
    assert f"Signal 9 (SIGKILL) received by PID {doomed}" in said
    assert not any(running(pid) for pid in ranks)
    done = train(corpora, run_dir, **SETTINGS)
    assert done.returncode == 0, done.stderr
    assert rows(run_dir) == rows(unbroken)


def test_a_killed_command_takes_its_launcher_and_ranks_with_it(
    corpora: PackedCorpora, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    words = command(corpora, run_dir, SETTINGS | {"budget.steps": 4000})
    process = begun(words, environment())
    try:
        wait_for_rows(run_dir, 1, process)
        (launcher,) = children(process.pid)
        family = [launcher, *children(launcher)]
        process.kill()
        for _ in itertools.takewhile(lambda _: any(map(running, family)), range(600)):
            time.sleep(0.1)
        assert not any(map(running, family))
    finally:
        for pid in family:
            kill_tree(pid)
        process.communicate()


def test_submitit_queues_a_warned_job_again_after_its_ranks_have_saved(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm`")
    # Only the warning may save, so that the rows tell whether it did.
    settings = SETTINGS | SLOW | {"callbacks.checkpoints.every_n_steps": 1000}
    words = command(corpora, tmp_path, settings)
    words = [word for word in words if not word.startswith("hydra.run.dir")]
    words += ["-m", "hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path}"]
    words += ["hydra.sweep.subdir=run", "seed=7", "hydra.launcher.timeout_min=10"]
    run_dir = tmp_path / "run"
    process = begun(words, with_support())
    try:
        wait_for_rows(run_dir, 2, process)
        (controller,) = [pid for pid in children(process.pid) if children(pid)]
        (task,) = children(controller)
        os.kill(task, signal.SIGUSR2)
        _, said = process.communicate(timeout=240)
    finally:
        kill_tree(process.pid)
    assert process.returncode == 0, said
    saved = sorted(path.stem for path in (run_dir / "checkpoints").iterdir())
    # One at the warning, and one at the end, which only a second start can have reached.
    assert len(saved) == 2
    assert saved[-1] == f"step_{STEPS:08d}"
    assert rows(run_dir) == rows(unbroken)


def batch_script() -> str:
    """Take the batch script out of the page."""
    (script,) = re.findall(r"```bash\n(#!/bin/bash\n.*?)```", PAGE.read_text(), re.DOTALL)
    return str(script)


def test_the_batch_script_saves_queues_itself_again_and_goes_on_exactly(
    corpora: PackedCorpora, unbroken: Path, tmp_path: Path
) -> None:
    fake = tmp_path / "slurm"
    env = with_support() | slurm_job(fake, sys.executable, tasks=2)
    (tmp_path / "train.sbatch").write_text(batch_script())
    run_dir = tmp_path / "runs" / "pretrain"
    own = ("stage=", "resume=", "hydra.run.dir=", "trainer.devices=", "strategy=")
    settings = SETTINGS | SLOW | {"callbacks.checkpoints.every_n_steps": 1000}
    words = command(corpora, run_dir, settings)
    keys = [word for word in words[words.index("train") + 1 :] if not word.startswith(own)]
    script = ["bash", "train.sbatch", *keys]
    job = begun(script, env, cwd=tmp_path)
    try:
        wait_for_rows(run_dir, 2, job)
        for task in (fake / "tasks").read_text().split():
            os.kill(int(task), signal.SIGTERM)
        _, said = job.communicate(timeout=120)
    finally:
        kill_tree(job.pid)
    assert job.returncode == 0, said
    assert (fake / "told").read_text() == f"requeue {env['SLURM_JOB_ID']}\n"
    again = subprocess.run(
        script, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert again.returncode == 0, again.stderr
    # Not queued once more: it has finished.
    assert (fake / "told").read_text().count("requeue") == 1
    assert rows(run_dir) == rows(unbroken)
