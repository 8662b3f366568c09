"""Children of an ablation: what they say, how they end, and how they are stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from openqwen2vl.commands._ablate_children import run_child

# Tells its process id, then sleeps; a request to stop makes it say so and leave well.
SLEEPER = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, lambda *_: (Path(sys.argv[1]).write_text("saved"), sys.exit(0)))
Path(sys.argv[1]).write_text("up")
time.sleep(60)
"""
CALLER = """
import signal, sys
from openqwen2vl.commands._ablate_children import run_child
if sys.argv[2] == "handled":
    signal.signal(signal.SIGUSR2, lambda *_: sys.exit(7))
run_child([sys.executable, "-c", sys.argv[3], sys.argv[1]])
print("went on")
"""


def test_output_goes_behind_what_the_log_holds_and_the_code_is_given(tmp_path: Path) -> None:
    log = tmp_path / "stage.log"
    for code in (0, 3):
        words = [sys.executable, "-c", f"print('ends {code}'); raise SystemExit({code})"]
        assert run_child(words, log) == code
    assert log.read_text() == "ends 0\nends 3\n"


@pytest.mark.parametrize(
    ("number", "handled", "code"),
    [
        (signal.SIGTERM, "no", 128 + signal.SIGTERM),
        (signal.SIGINT, "no", 128 + signal.SIGINT),
        (signal.SIGUSR2, "handled", 7),
        (signal.SIGUSR2, "no", 128 + signal.SIGUSR2),
    ],
)
def test_a_request_to_stop_reaches_the_child_first(
    tmp_path: Path, number: signal.Signals, handled: str, code: int
) -> None:
    mark = tmp_path / "mark"
    sleeper = SLEEPER.replace("SIGTERM", "SIGINT") if number == signal.SIGINT else SLEEPER
    words = [sys.executable, "-c", CALLER, str(mark), handled, sleeper]
    caller = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text() == "up") and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(caller.pid, number)
    out, _ = caller.communicate(timeout=60)
    assert mark.read_text() == "saved"
    assert "went on" not in out
    assert caller.returncode == code


def test_a_child_is_asked_to_stop_when_its_parent_is_killed(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    caller = subprocess.Popen([sys.executable, "-c", CALLER, str(mark), "no", SLEEPER])
    deadline = time.monotonic() + 60
    while not (mark.exists() and mark.read_text() == "up") and time.monotonic() < deadline:
        time.sleep(0.02)
    caller.kill()
    caller.wait()
    while mark.read_text() != "saved" and time.monotonic() < deadline:
        time.sleep(0.02)
    assert mark.read_text() == "saved"
