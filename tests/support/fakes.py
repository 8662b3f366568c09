"""Stand-ins for SLURM's programs: enough of them to run a batch script on this machine."""

import os
from pathlib import Path

# Starts the tasks as srun does: numbered by SLURM's variables, all ended when one fails.
_SRUN = """#!/bin/bash
[ "$1" = --kill-on-bad-exit=1 ] && shift
pids=()
for number in $(seq 0 $((SLURM_NTASKS - 1))); do
    SLURM_PROCID=$number SLURM_LOCALID=$number SLURM_NODEID=0 SLURM_STEP_NUM_TASKS=$SLURM_NTASKS \\
        "$@" &
    pids+=($!)
done
printf '%s\\n' "${pids[@]}" > "$FAKE/tasks"
code=0
for pid in "${pids[@]}"; do
    wait "$pid" || { code=$?; kill "${pids[@]}" 2> /dev/null; }
done
exit "$code"
"""
_SCONTROL = """#!/bin/bash
echo "$@" >> "$FAKE/told"
"""
_PROGRAM = """#!/bin/bash
exec {python} -m openqwen2vl "$@"
"""


def slurm_job(folder: Path, python: str, tasks: int) -> dict[str, str]:
    """Write the stand-ins into ``folder`` and give a job's variables, one node.

    The running tasks' ids are in ``folder/tasks``, what `scontrol` was told in
    ``folder/told``.
    """
    folder.mkdir()
    programs = {
        "srun": _SRUN,
        "scontrol": _SCONTROL,
        "openqwen2vl": _PROGRAM.format(python=python),
    }
    for name, text in programs.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return {
        "PATH": f"{folder}:{os.environ['PATH']}",
        "FAKE": str(folder),
        "SLURM_JOB_ID": str(os.getpid()),
        "SLURM_JOB_NAME": "pretrain",
        "SLURM_JOB_NUM_NODES": "1",
        "SLURM_NNODES": "1",
        "SLURM_NODELIST": "127.0.0.1",
        "SLURM_NTASKS": str(tasks),
        "SLURM_NTASKS_PER_NODE": str(tasks),
        "SLURM_PROCID": "0",
    }
