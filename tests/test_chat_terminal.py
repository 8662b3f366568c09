"""``openqwen2vl chat`` in a terminal of its own: what keys do, and what no pipe can show."""

import fcntl
import os
import pty
import random
import readline
import select
import subprocess
import sys
import termios
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from support.evaluations import write_run
from support.runs import environment, kill_tree
from support.shards import picture

PROMPT = "\x1b[?2004h> "  # says that a paste is taken as one


class Typist:
    """A chat in a terminal of its own, whose letters are not those of UTF-8."""

    def __init__(self, run: Path) -> None:
        words = [sys.executable, "-m", "openqwen2vl", "chat", f"model={run}", "temperature=3"]
        surroundings = {**environment(), "TERM": "xterm", "PYTHONIOENCODING": "ascii"}
        self._seen = ""
        self._terminal, its_end = pty.openpty()
        self.process = subprocess.Popen(
            [*words, "max_new_tokens=3000"],
            env=surroundings,
            stdin=its_end,
            stdout=its_end,
            stderr=its_end,
            start_new_session=True,
            # Ctrl-C reaches those whose terminal it is.
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(its_end)

    def until(self, text: str, pressing: str = "") -> None:
        """Read until the terminal shows a text; what came behind it is still to be read.

        ``pressing`` is typed again each second: Python does not see a Ctrl-C that comes in the
        instant in which readline draws a letter before the next key.
        """
        end = monotonic() + 60
        while text not in self._seen and monotonic() < end:
            if select.select([self._terminal], [], [], 1)[0]:
                try:
                    data = os.read(self._terminal, 65536)
                except OSError:  # the chat has ended
                    break
                self._seen += data.decode(errors="replace").replace("\r", "")
            else:
                self.type(pressing)
        assert text in self._seen
        self._seen = self._seen.partition(text)[2]

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._terminal, keys.encode())


@pytest.fixture
def typist(tmp_path: Path) -> Iterator[Typist]:
    found = Typist(write_run(tmp_path / "tiny", seed=2))
    yield found
    if found.process.poll() is None:
        kill_tree(found.process.pid)


@pytest.mark.slow
@pytest.mark.skipif(
    "GNU" not in (readline.__doc__ or ""), reason="other line editors know no pastes"
)
def test_a_conversation_typed_in_a_terminal(typist: Typist, tmp_path: Path) -> None:
    cat, dog = tmp_path / "my cat.jpg", tmp_path / "dog.jpg"
    for file in (cat, dog):
        file.write_bytes(picture(random.Random(0)))
    typist.until(PROMPT)
    typist.type(f"'{cat}' {dog} \n")
    typist.until("with the next question: my cat.jpg, dog.jpg")
    typist.until(PROMPT)
    typist.type("\x1b[200~Caf\u00e9?\nOr \u732b?\x1b[201~\n")
    typist.until("reading")
    typist.type("\x03")
    typist.until("the conversation goes on")
    typist.until(PROMPT)
    typist.type("half a line")
    typist.until("half a line")
    typist.until("Ctrl-D leaves", pressing="\x03")
    typist.until(PROMPT)
    typist.type("\x04")
    assert typist.process.wait(60) == 0
