"""A rank's word to whoever started the ranks: it was the user's mistake.

torchrun ends with 1 whatever its ranks ended with, so their exit codes do not reach its caller.
Without PyTorch, since every command imports this first.
"""

import os
from contextlib import suppress
from pathlib import Path

USER_ERROR = 2
"""Exit code of a command that ended by a mistake of the user's."""
VARIABLE = "OPENQWEN2VL_EXIT_NOTE"


def tell_mistake() -> None:
    """Leave the note, when somebody waits for one."""
    if note := os.environ.get(VARIABLE):
        with suppress(OSError):  # who waited is gone
            Path(note).touch()
