"""GPUs, limits of the system, free space, and the job that this process is in."""

import os
import resource
import shutil
from collections.abc import Iterator, Mapping
from itertools import permutations
from pathlib import Path

import torch
import torch.distributed as dist

from openqwen2vl.commands._doctor_finding import Finding, graded

_FILES = 4096  # a loader worker keeps a part of the shards open, and batches travel as files
_SHARED = 2e9  # bytes of batches that wait between workers and the run
_BF16 = (8, 0)


def machine_findings(path: Path, space: float) -> Iterator[Finding]:
    """Look at the machine.

    Args:
        path: where runs are to lie.
        space: bytes that a run writes there.
    """
    yield from gpu_findings()
    files, processes = (
        resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC)
    )
    yield limit_finding("open files", files, _FILES, "ulimit -n 65536")
    yield limit_finding("processes", processes, _FILES, "ulimit -u 65536")
    yield cores_finding(len(os.sched_getaffinity(0)), torch.cuda.device_count())
    shared = Path("/dev/shm")
    if shared.is_dir():
        free = shutil.disk_usage(shared).free
        yield shared_finding(free)
    yield space_finding(path, space)
    yield slurm_finding(os.environ, torch.cuda.device_count())


def gpu_findings() -> Iterator[Finding]:
    """Look at each GPU, and at how several talk to each other."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        driver = Path("/proc/driver/nvidia/version").exists()
        built = torch.version.cuda or "no CUDA"
        yield graded(
            "GPUs",
            f"none that torch sees (built for {built})",
            red="there is a driver: install a torch built for its CUDA, or look at "
            "CUDA_VISIBLE_DEVICES"
            if driver
            else "",
            yellow="" if driver else "model=tiny trains on a CPU; the 2B model wants GPUs",
        )
        return
    for number in range(count):
        facts = torch.cuda.get_device_properties(number)
        capability = (facts.major, facts.minor)
        yield graded(
            f"GPU {number}",
            f"{facts.name}, {facts.total_memory / 2**30:.1f} GiB, capability "
            f"{facts.major}.{facts.minor}",
            yellow=""
            if capability >= _BF16
            else "no bf16 or varlen attention: attention=sdpa precision=32-true",
        )
    if count > 1:
        pairs = list(permutations(range(count), 2))
        direct = sum(torch.cuda.can_device_access_peer(*pair) for pair in pairs)
        yield graded(
            "between GPUs",
            f"NCCL {'there' if dist.is_nccl_available() else 'missing'}, {direct} of {len(pairs)} "
            "pairs reach each other directly",
            red="" if dist.is_nccl_available() else "install a torch with NCCL",
            yellow=""
            if direct == len(pairs)
            else "gradients go through the host: more packs in a global batch hide it",
        )


def limit_finding(name: str, found: int, wanted: int, todo: str) -> Finding:
    """Compare a limit of this process with what a run may need."""
    endless = found in (resource.RLIM_INFINITY, -1)
    said = "unlimited" if endless else f"{found:,}"
    short = not endless and found < wanted
    return graded(name, said, yellow=f"{todo} (a run may need {wanted:,})" if short else "")


def cores_finding(cores: int, gpus: int) -> Finding:
    """Tell whether there are cores for the loaders of all GPUs."""
    short = gpus and cores < 2 * gpus
    todo = "images are decoded on cores: ask for 2 a GPU or more" if short else ""
    return graded("cores", f"{cores} for {gpus} GPU(s)", yellow=todo)


def shared_finding(free: int) -> Finding:
    """Tell whether loader workers can hand over their batches."""
    short = free < _SHARED
    todo = "a container: --shm-size=8g; or data.num_workers=0" if short else ""
    return graded("/dev/shm", f"{free / 1e9:,.1f} GB free", yellow=todo)


def space_finding(path: Path, space: float) -> Finding:
    """Tell whether a run's checkpoints fit."""
    there = next(p for p in (path.absolute(), *path.absolute().parents) if p.exists())
    free = shutil.disk_usage(there).free
    found = f"{free / 1e9:,.1f} GB free in {there}"
    if not os.access(there, os.W_OK):
        return graded("space", f"{there} cannot be written to", red="choose another path=")
    if free < 1e9:
        return graded("space", found, red="free some: not even metrics would fit")
    todo = f"three checkpoints of the 2B model take {space / 1e9:,.0f} GB: free some, or "
    todo += "callbacks.checkpoints.keep=1"
    return graded("space", found, yellow=todo if free < space else "")


def slurm_finding(environment: Mapping[str, str], gpus: int) -> Finding:
    """Tell whether a SLURM job has a task for each GPU."""
    job = environment.get("SLURM_JOB_ID")
    if job is None:
        return graded("SLURM", "not in a job")
    tasks = environment.get("SLURM_NTASKS_PER_NODE") or environment.get("SLURM_STEP_NUM_TASKS", "1")
    nodes = environment.get("SLURM_JOB_NUM_NODES", "1")
    found = f"job {job}: {nodes} node(s), {tasks} task(s) a node, {gpus} GPU(s) here"
    if "SLURM_JOB_NUM_NODES" in environment and int(nodes) > 1 and tasks == "1" and gpus > 1:
        todo = "several nodes of one task train apart: srun --ntasks-per-node="
        return graded("SLURM", found, red=f"{todo}{gpus} openqwen2vl train ... trainer.num_nodes")
    uneven = tasks.isdigit() and int(tasks) > 1 and int(tasks) != gpus
    todo = f"ask for as many tasks a node as GPUs: --ntasks-per-node={max(1, gpus)}"
    return graded("SLURM", found, red=todo if uneven else "")
