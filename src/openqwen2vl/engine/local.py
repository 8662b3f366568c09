"""Mapping a function over shards in processes of this machine; results keep the order."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.connection import wait
from multiprocessing.queues import SimpleQueue
from typing import Protocol, TypeVar

from openqwen2vl.engine.placement import VISIBLE
from openqwen2vl.engine.threads import keep_to_one_thread

Item = TypeVar("Item")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Told after each item how many are done and how many there are."""


class Mapper(Protocol):
    """What an engine looks like to those who have shards to work on."""

    def __call__(
        self, function: Callable[[Item], Result], items: Sequence[Item]
    ) -> Iterator[Result]:
        """Give ``function(item)`` for each item, in order."""


def map_inline(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    """Map in this very process."""
    return map_shards(function, items, workers=1)


def map_shards(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    progress: Progress | None = None,
    gpus: Sequence[str | None] = (),
) -> Iterator[Result]:
    """Map a pure function over shards; how many workers there are does not change the results.

    Args:
        function: importable by name, since fresh processes look it up.
        items: small picklable descriptions of shards; their ``str`` names them in errors.
        workers: processes; 1 works in this one.
        progress: called here after each item.
        gpus: for each worker the one GPU that it sees, None: as this process does. This process
            itself sees what it sees, when it works alone.

    Yields:
        Results in the order of the items, with few of them waiting.

    Raises:
        Exception: what the function raised, with a note that names the item.
        RuntimeError: a worker process died.
    """
    alone = workers <= 1
    results = _in_process(function, items) if alone else _pooled(function, items, workers, gpus)
    for done, result in enumerate(results, 1):
        if progress is not None:
            progress(done, len(items))
        yield result


def _in_process(function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
    for item in items:
        try:
            result = function(item)
        except Exception as error:
            error.add_note(f"while working on {item}")
            raise
        yield result


def _pooled(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    workers: int,
    gpus: Sequence[str | None],
) -> Iterator[Result]:
    # Not forks of this process: they would copy the locks of whatever threads run here. The
    # server imports the function's module once, so that starting a worker costs little.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    count = min(workers, max(1, len(items)))
    seen: SimpleQueue[str | None] = context.SimpleQueue()
    for number in range(count):
        seen.put(gpus[number] if gpus else None)
    pool = ProcessPoolExecutor(
        count, mp_context=context, initializer=_start_worker, initargs=(seen,)
    )
    waiting: deque[tuple[Item, Future[Result]]] = deque()
    try:
        for item in items:
            waiting.append((item, _give(pool, function, item)))
            if len(waiting) >= 2 * count:
                yield _take(*waiting.popleft())
        while waiting:
            yield _take(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _give(
    pool: ProcessPoolExecutor, function: Callable[[Item], Result], item: Item
) -> Future[Result]:
    """Submit an item; a pool that broke meanwhile says so in the item's own result."""
    try:
        return pool.submit(function, item)
    except BrokenProcessPool as error:
        broken: Future[Result] = Future()
        broken.set_exception(error)
        return broken


def _take(item: Item, future: Future[Result]) -> Result:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise RuntimeError(
            f"a worker process died at or near {item}; was it short of memory? take fewer workers"
        ) from error
    except Exception as error:
        error.add_note(f"while working on {item}")
        raise


def _start_worker(seen: "SimpleQueue[str | None]") -> None:
    """Keep libraries to one thread a worker, and end the worker when its parent is gone.

    Args:
        seen: holds for each worker the GPU that it is to see.
    """
    keep_to_one_thread()
    if (gpu := seen.get()) is not None:
        os.environ[VISIBLE] = gpu  # before anything in here has asked CUDA what there is
    threading.Thread(target=_leave_with_parent, daemon=True).start()


def _leave_with_parent() -> None:
    # A parent that was killed cannot tell its workers, who would wait for work for ever.
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
