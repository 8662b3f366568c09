"""Work on many small objects without the collector of circles looking at them again and again."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Leave Python's collector of circular objects out while the block runs.

    Rows of a benchmark are a million small dicts and strings, none of them in a circle, and all of
    them stay: looking for garbage among them takes longer than making them.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
