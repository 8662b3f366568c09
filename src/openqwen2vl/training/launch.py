"""Processes of a run: how many, which one this is, how they start and how they leave."""

import ctypes
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist

from openqwen2vl.formats.errors import ConfigError

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
    """Tell whether torchrun or SLURM started this process as one rank of several."""
    return "TORCHELASTIC_RUN_ID" in os.environ or "SLURM_PROCID" in os.environ


def rank() -> int:
    """Give this process's global rank, known before any process group."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")))


def world_size(accelerator: str, devices: int | str, num_nodes: int) -> int:
    """Give the number of ranks: what the launcher says, else devices x nodes."""
    told = os.environ.get("WORLD_SIZE") if "TORCHELASTIC_RUN_ID" in os.environ else None
    return int(told) if told else device_count(accelerator, devices) * num_nodes


def spawn(processes: int, arguments: Sequence[str]) -> int:
    """Run `openqwen2vl` in several processes on this machine and wait for them.

    Lightning's own launcher would start Hydra anew in each rank with this process's command line,
    which in a sweep is the whole sweep.

    Args:
        processes: ranks.
        arguments: the verb and its overrides.

    Returns:
        The launcher's exit code.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "openqwen2vl", *arguments]
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // processes))}
    child = subprocess.Popen(command, env={**environment, **os.environ})

    def forward(number: int, frame: FrameType | None) -> None:
        child.send_signal(number)

    old = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        return child.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


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
