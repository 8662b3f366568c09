"""Other processes of an ablation: a stage of a job, or the whole sweep."""

import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path
from threading import current_thread, main_thread
from types import FrameType

_STOPS = (signal.SIGTERM, signal.SIGINT)
# What schedulers send some time before they kill.
_WARNINGS = (signal.SIGUSR1, signal.SIGUSR2)


def run_child(command: Sequence[str], log: Path | None = None) -> int:
    """Run a command and wait for it; a request to stop goes on to it first, then stops this too.

    A scheduler's warning reaches the child as SIGTERM, so that it saves; then whoever handled the
    warning before has its turn, such as submitit, which queues the job again.

    Args:
        command: its words.
        log: takes what it says, after what is there; None: it speaks where this process does.

    Returns:
        Its exit code.

    Raises:
        SystemExit: this process was asked to stop, and the child is gone.
    """
    passed: list[tuple[int, FrameType | None]] = []
    if log is None:
        child = subprocess.Popen(command)
    else:
        with log.open("ab") as output:
            child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)

    def forward(number: int, frame: FrameType | None) -> None:
        passed.append((number, frame))
        child.send_signal(signal.SIGTERM if number in _WARNINGS else number)

    # Python lets only its first thread take handlers; in another, whoever runs that one must.
    taken = (*_STOPS, *_WARNINGS) if current_thread() is main_thread() else ()
    old = {number: signal.signal(number, forward) for number in taken}
    try:
        code = child.wait()
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
    for first, frame in passed[:1]:
        before = old[signal.Signals(first)]
        if first in _WARNINGS and callable(before):
            before(first, frame)
        raise SystemExit(128 + first)
    return code
