"""Several training runs, one after the other, in one group of processes.

Importing the libraries takes most of a small run's time; run as a script under torchrun, this
module does it once for all of them.
"""

import gc
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
import torch.distributed as dist
from hydra.core.global_hydra import GlobalHydra

from openqwen2vl.__main__ import main
from openqwen2vl.commands import _fit
from openqwen2vl.training.launch import leave
from support.runs import PackedCorpora, command, environment


def train_in_ranks(
    corpora: PackedCorpora,
    processes: int,
    runs: Mapping[Path, Mapping[str, object]],
    **variables: str,
) -> None:
    """Train in each folder, in their order, with these overrides; every run must end well."""
    lines = []
    for run_dir, overrides in runs.items():
        words = command(corpora, run_dir, {"trainer.devices": processes, **overrides})
        lines.append(words[words.index("train") :])
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    start += ["--nproc-per-node", str(processes), "-m", "support.ranks", json.dumps(lines)]
    tests = str(Path(__file__).parents[1])
    done = subprocess.run(
        start,
        env={**environment(), **variables, "PYTHONPATH": tests},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def _run(lines: Sequence[Sequence[str]]) -> int:
    """Run each command line; the processes leave after the last one only."""
    torch.set_num_threads(1)
    _fit.leave = _stay
    for line in lines:
        code = main(list(line))
        GlobalHydra.instance().clear()
        # A run's folder is free again when nothing holds its lock any more.
        gc.collect()
        if code:
            return code
    return 0


def _stay(code: int) -> None:
    """Wait for the others, who may still be writing."""
    if dist.is_initialized():
        dist.barrier()


if __name__ == "__main__":
    code = _run(json.loads(sys.argv[1]))
    leave(code)
    sys.exit(code)
