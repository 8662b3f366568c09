"""What runs in a worker of Ray: a function on an item, one thread a library, warnings kept."""

import logging
import os
from collections.abc import Callable
from functools import partial

from openqwen2vl.engine.local import Item, Result, map_shards
from openqwen2vl.engine.placement import VISIBLE
from openqwen2vl.engine.resident import forget, forgetting
from openqwen2vl.engine.threads import keep_to_one_thread

Said = list[tuple[str, int, str]]
"""Warnings: logger, level and text of each."""

IDLE = 60.0
"""Seconds after which a worker on GPUs without a call lets go of its model."""

_OURS = "openqwen2vl"  # loggers whose warnings are kept
_SAID = "said_in_worker"  # where an error has those from before it
_GPUS: dict[int, str] = {}  # what a worker saw first, by its process


class _Ear(logging.Handler):
    """Keeps warnings of ours, which Ray would leave in a file of the worker's machine."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.said: Said = []

    def emit(self, record: logging.LogRecord) -> None:
        if record.name.partition(".")[0] == _OURS:
            self.said.append((record.name, record.levelno, record.getMessage()))


def call(function: Callable[[Item], Result], item: Item) -> tuple[Result, Said]:
    """Run as ``engine.local`` does; give the result and what was warned of.

    An error takes the warnings before it along; see ``say``.
    """
    keep_to_one_thread()
    ear = _Ear()
    logging.root.addHandler(ear)
    try:
        return function(item), ear.said
    except Exception as error:
        setattr(error, _SAID, ear.said)
        raise
    finally:
        logging.root.removeHandler(ear)


def call_on_gpus(function: Callable[[Item], Result], item: Item) -> tuple[Result, Said]:
    """Run as ``call`` does, in a worker that Ray has given GPUs.

    CUDA knows only the GPUs that a process saw first. When Ray hands a worker others later on, a
    process of its own does that call, and the worker lets go of what it holds on the first: Ray
    counts them as free and gives them to others. So it does after ``IDLE`` seconds without a call.
    """
    gpus = os.environ.get(VISIBLE, "")
    if _GPUS.setdefault(os.getpid(), gpus) == gpus:
        with forgetting(IDLE):
            return call(function, item)
    forget()
    (told,) = map_shards(partial(call, function), [item], workers=2, gpus=(gpus,))
    return told


def say(said: Said) -> None:
    """Log here what a worker was warned of."""
    for name, level, message in said:
        logging.getLogger(name).log(level, "%s", message)


def said_before(error: BaseException) -> Said:
    """Give the warnings that an error of a worker took along; they are then no longer with it."""
    said: Said = error.__dict__.pop(_SAID, [])
    return said
