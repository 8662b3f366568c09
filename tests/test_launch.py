"""Who started this process, and what a process does with its ranks' signals."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from support.compose import composed

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.launch import environment, launched, spawn, world_size

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "3", "WORLD_SIZE": "16"}
SRUN = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_NTASKS": "16",
    "SLURM_NTASKS_PER_NODE": "8",
    "SLURM_PROCID": "3",
    "SLURM_JOB_NAME": "pretrain",
}
# What a batch script sees, and the one task of a submitit job.
BATCH = {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "pretrain"}
ONE_TASK = BATCH | {"SLURM_NTASKS": "1", "SLURM_STEP_NUM_TASKS": "1"}
CASES = [
    ({}, False, LightningEnvironment),
    (TORCHRUN, True, TorchElasticEnvironment),
    (SRUN, True, SLURMEnvironment),
    (TORCHRUN | ONE_TASK, True, TorchElasticEnvironment),
    (BATCH, False, LightningEnvironment),
    (ONE_TASK, False, LightningEnvironment),
]


def start(monkeypatch: pytest.MonkeyPatch, variables: dict[str, str]) -> None:
    """Pretend that a launcher started this process with these variables and no others."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "TORCHELASTIC_")) or name in ("RANK", "WORLD_SIZE"):
            monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize(("variables", "ours", "kind"), CASES)
def test_a_launcher_is_told_from_a_job_that_only_surrounds_us(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], ours: bool, kind: type
) -> None:
    start(monkeypatch, variables)
    assert launched() is ours
    assert type(environment()) is kind


def test_lightning_does_not_answer_slurms_signals_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, SRUN)
    found = environment()
    assert isinstance(found, SLURMEnvironment)
    assert found.auto_requeue is False


def test_srun_must_say_how_many_tasks_a_node_has(monkeypatch: pytest.MonkeyPatch) -> None:
    start(monkeypatch, {key: v for key, v in SRUN.items() if key != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(ConfigError, match="without --ntasks-per-node"):
        environment()


@pytest.mark.parametrize(("variables", "name"), [(TORCHRUN, "torchrun"), (SRUN, "srun")])
def test_a_config_for_other_processes_than_were_started_is_refused(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], name: str
) -> None:
    start(monkeypatch, variables)
    assert world_size("cpu", 8, 2) == 16
    with pytest.raises(ConfigError, match=f"{name} started 16 processes, but .* is 8 x 1"):
        world_size("cpu", 8, 1)


# Stands in for `python -m torch.distributed.run ...`: says what it got, and saves for a while.
LAUNCHER = """#!{python}
import os, pathlib, signal, sys, time
out = pathlib.Path({out!r})

def stop(number, frame):
    time.sleep(0.3)
    (out / "got").write_text(str(number))
    sys.exit(0)

signal.signal(signal.SIGTERM, stop)
ignored = [n for n in (signal.SIGUSR1, signal.SIGUSR2) if signal.getsignal(n) == signal.SIG_IGN]
(out / "ready").write_text(str(len(ignored)))
time.sleep(60)
"""


@pytest.mark.parametrize("warning", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM])
def test_a_warning_reaches_the_ranks_first_and_its_owner_after_they_have_saved(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, warning: signal.Signals
) -> None:
    script = tmp_path / "launcher"
    script.write_text(LAUNCHER.format(python=sys.executable, out=str(tmp_path)))
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    owner: list[bool] = []
    old = signal.signal(warning, lambda number, frame: owner.append((tmp_path / "got").exists()))

    def warn() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), warning)

    threading.Thread(target=warn, daemon=True).start()
    try:
        assert spawn(2, ["train"]) == 0
    finally:
        signal.signal(warning, old)
    assert (tmp_path / "got").read_text() == str(int(signal.SIGTERM))
    # A warning to the whole job must not kill the launcher.
    assert (tmp_path / "ready").read_text() == "2"
    assert owner == ([] if warning == signal.SIGTERM else [True])


def test_another_thread_may_start_ranks_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = tmp_path / "launcher"
    script.write_text("#!/bin/sh\nexit 3\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(spawn(2, ["train"])))
    thread.start()
    thread.join()
    assert codes == [3]


@pytest.mark.parametrize(("leaves", "code"), [("tell_mistake()", 2), ("None", 1)])
def test_a_users_mistake_is_told_from_a_crash_though_the_launcher_ends_alike(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, leaves: str, code: int
) -> None:
    script = tmp_path / "launcher"
    rank = f"from openqwen2vl.training.exit_note import tell_mistake; {leaves}"
    script.write_text(f'#!/bin/sh\n{sys.executable} -c "{rank}"\nexit 1\n')
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    assert spawn(2, ["train"]) == code


def test_a_slurm_sweep_goes_on_when_its_jobs_are_queued_again() -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="the extra `slurm`")
    config = composed("stage=pretrain", "launcher=slurm", "hydra.launcher.partition=gpu")
    assert config.resume == "auto"
    with initialize_config_module("openqwen2vl.conf", version_base="1.3"):
        whole = compose("train", ["stage=pretrain", "launcher=slurm"], return_hydra_config=True)
    launcher = whole.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    # One task, which starts the ranks; several would each start all of them.
    assert (launcher.nodes, launcher.tasks_per_node) == (1, 1)
