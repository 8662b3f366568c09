"""One thread a library, for whoever works beside others."""

import os
import sys


def keep_to_one_thread() -> None:
    """Keep the libraries of this process to one thread each, those that are loaded as well.

    Processes beside each other gain nothing from more; and what several threads add up differs
    in its last bits from what one does.
    """
    os.environ.update(RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")
    # It read the environment when it was loaded, which may have been in the parent of a fork.
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_num_threads(1)
