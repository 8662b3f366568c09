"""Processes of a run: how many, which one this is, how they start and how they leave."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.training.exit_note import USER_ERROR, VARIABLE

# What schedulers send some time before they kill: SLURM by --signal, submitit SIGUSR2.
WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)
_PR_SET_PDEATHSIG = 1


def device_count(accelerator: str, devices: int | str) -> int:
    """Give the processes per node: as asked, or every GPU, or one for a CPU.

    Raises:
        ConfigError: neither a number nor ``auto``.
    """
    if devices not in ("auto", -1, "-1"):
        if not str(devices).isdigit():
            raise ConfigError(f"trainer.devices is {devices!r}; expected a number or auto")
        return int(devices)
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return torch.cuda.device_count() if on_gpu else 1


def launched() -> bool:
    """Tell whether torchrun or srun started this process as one rank of several."""
    return _by_torchrun() or _by_srun()


def environment() -> ClusterEnvironment:
    """Tell Lightning who started this process.

    Its own guess takes any process within a SLURM job for a rank, and answers SLURM's signals
    itself: it saves within the handler, amid a step. Here ``callbacks.stop`` answers them.

    Raises:
        ConfigError: srun was not told how many tasks a node has.
    """
    if _by_torchrun():
        return TorchElasticEnvironment()
    if not _by_srun():
        return LightningEnvironment()
    if "SLURM_NTASKS_PER_NODE" not in os.environ:
        raise ConfigError(
            "srun started several tasks without --ntasks-per-node; give it, one task for each GPU"
        )
    return SLURMEnvironment(auto_requeue=False)


def rank() -> int:
    """Give this process's global rank, known before any process group."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def world_size(accelerator: str, devices: int | str, num_nodes: int) -> int:
    """Give the number of ranks: devices x nodes.

    Raises:
        ConfigError: a launcher started another number of them.
    """
    here = device_count(accelerator, devices)
    told = os.environ["WORLD_SIZE" if _by_torchrun() else "SLURM_NTASKS"] if launched() else None
    if told is not None and int(told) != here * num_nodes:
        raise ConfigError(
            f"{'torchrun' if _by_torchrun() else 'srun'} started {told} processes, but "
            f"trainer.devices x trainer.num_nodes is {here} x {num_nodes}; set both to what was "
            "started"
        )
    return here * num_nodes


def _by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def _by_srun() -> bool:
    # A batch script and a job of one task have the other SLURM variables, too.
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", "1")) > 1


def spawn(processes: int, arguments: Sequence[str]) -> int:
    """Run `openqwen2vl` in several processes on this machine and wait for them.

    Lightning's own launcher would start Hydra anew in each rank with this process's command line,
    which in a sweep is the whole sweep.

    Args:
        processes: ranks.
        arguments: the verb and its overrides.

    Returns:
        The exit code: 2 when a rank ended by a mistake of the user's, which the launcher's own code
        does not tell from a rank that crashed or was killed; else the launcher's.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "openqwen2vl", *arguments]
    defaults = {
        "OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes)),
        # Seconds from SIGTERM to SIGKILL, which must do for a checkpoint (torchrun gives 30).
        "TORCH_ELASTIC_SHUTDOWN_TIMEOUT": "300",
    }
    with tempfile.TemporaryDirectory() as folder:
        note = Path(folder) / "mistake"
        child = subprocess.Popen(
            command,
            env={**defaults, **os.environ, VARIABLE: str(note)},
            # A scheduler may warn all processes of a job; this one passes the warning on by itself.
            preexec_fn=leave_with_parent(deaf_to=WARNINGS),
        )
        code, _ = wait_passing_signals(child)
        return USER_ERROR if code and note.exists() else code


def wait_passing_signals(child: subprocess.Popen[bytes]) -> tuple[int, int | None]:
    """Wait for a child; what asks this process to stop asks the child first.

    SIGTERM and Ctrl-C go on to it. So does a scheduler's warning (SIGUSR1 or SIGUSR2), as SIGTERM:
    it saves and stops, and only then whoever handled the warning before has its turn, such as
    submitit, which queues the job again.

    Args:
        child: a process of ours.

    Returns:
        Its exit code, and the first signal that this process got meanwhile.
    """
    passed: list[tuple[int, FrameType | None]] = []

    def forward(number: int, frame: FrameType | None) -> None:
        passed.append((number, frame))
        child.send_signal(signal.SIGTERM if number in WARNINGS else number)

    # Python lets only its first thread take handlers; in another, whoever runs that one must.
    first = current_thread() is main_thread()
    taken = (signal.SIGTERM, signal.SIGINT, *WARNINGS) if first else ()
    old: dict[int, Any] = {number: signal.signal(number, forward) for number in taken}
    try:
        code = child.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    for warning, frame in [one for one in passed if one[0] in WARNINGS][:1]:
        before = old[warning]
        if callable(before):
            before(warning, frame)
    return code, passed[0][0] if passed else None


def leave_with_parent(deaf_to: Sequence[int] = ()) -> Callable[[], None]:
    """Give what a child does first, so that this process's death asks it to stop (Linux).

    Args:
        deaf_to: signals that the child is not to hear.
    """
    libc = ctypes.CDLL(None, use_errno=True)

    def prepare() -> None:
        for number in deaf_to:
            signal.signal(number, signal.SIG_IGN)
        if sys.platform == "linux":
            libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    return prepare


def leave_with_launcher() -> None:
    """Ask the kernel for SIGTERM when the launcher dies (Linux).

    A killed torchrun leaves its ranks running in sessions of their own; they would train on into
    a folder that a restarted run wants.
    """
    if launched() and sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def leave(code: int) -> None:
    """End a rank of a multi-process run without the interpreter's teardown.

    With FSDP objects alive, a natural exit aborts now and then, after everything went well.
    """
    if not dist.is_available() or not dist.is_initialized():
        return
    if code == 0:
        dist.barrier()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def tail_overrides(overrides: Sequence[str], run_dir: Path) -> list[str]:
    """Give the command line for the ranks of one run or of one job of a sweep."""
    return [*overrides, "hydra.mode=RUN", f"hydra.run.dir={run_dir}"]
