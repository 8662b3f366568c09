"""What a process keeps from one shard to the next: models, whose weights a shard's job does not bring."""

import gc
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

Kept = TypeVar("Kept")

_kept: dict[tuple[str, str], Any] = {}
_idle: list[threading.Timer] = []  # what will let go, where a process is told to


def keep(run: str, name: str, make: Callable[[], Kept]) -> Kept:
    """Give what this process keeps under a name, made at the first call of a run.

    Args:
        run: what was kept for another one goes.
        name: of one thing among those of the run.
        make: makes it.
    """
    if any(other != run for other, _ in list(_kept)):
        forget()
    found: Kept | None = _kept.get((run, name))  # a timer may empty it at any time
    if found is None:
        found = _kept[run, name] = make()
    return found


def forget() -> None:
    """Let go of everything, and give the memory of GPUs back to whoever else wants some."""
    if not _kept:
        return
    _kept.clear()
    gc.collect()
    if (torch := sys.modules.get("torch")) is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


@contextmanager
def forgetting(seconds: float) -> Iterator[None]:
    """Forget what the block leaves behind, unless another such block begins within some seconds.

    For processes that nobody ends when the work does, so that they do not hold a GPU for ever.
    """
    while _idle:
        _idle.pop().cancel()
    try:
        yield
    finally:
        timer = threading.Timer(seconds, forget)
        timer.daemon = True
        timer.start()
        _idle.append(timer)
