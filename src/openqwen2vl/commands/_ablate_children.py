"""Other processes of an ablation: a stage of a job, or the whole sweep."""

import subprocess
from collections.abc import Sequence
from pathlib import Path

from openqwen2vl.training.launch import leave_with_parent, wait_passing_signals


def run_child(command: Sequence[str], log: Path | None = None) -> int:
    """Run a command and wait for it; a request to stop goes on to it first, then stops this too.

    See `wait_passing_signals` for what the child hears. When this process is killed outright, the
    child is asked to stop (Linux): it would train on in folders that the next ablation wants.

    Args:
        command: its words.
        log: takes what it says, after what is there; None: it speaks where this process does.

    Returns:
        Its exit code.

    Raises:
        SystemExit: this process was asked to stop, and the child is gone.
    """
    if log is None:
        child = subprocess.Popen(command, preexec_fn=leave_with_parent())
    else:
        with log.open("ab") as output:
            child = subprocess.Popen(
                command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=leave_with_parent()
            )
    code, asked = wait_passing_signals(child)
    if asked is not None:
        raise SystemExit(128 + asked)
    return code
