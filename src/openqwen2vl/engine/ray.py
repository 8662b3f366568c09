"""Mapping a function over shards on a Ray cluster, with the results of ``engine.local``."""

import importlib
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

from openqwen2vl.engine.local import Item, Progress, Result
from openqwen2vl.formats.errors import UserError

ADDRESS = "RAY_ADDRESS"
"""Names the cluster to use; without it a Ray of this machine's own is started."""

_PATIENCE = 10.0  # seconds that a cluster may take to answer
_STORE = 2**28  # bytes for results on the way, of a Ray started here; the rest goes to disk
# Of a Ray started here: no word to its makers, and no warning of what a later version will do.
_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DEDUP_LOGS": "0",
}


def map_shards_ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    num_gpus: float = 0.0,
    num_cpus: float = 1.0,
    retries: int = 3,
    progress: Progress | None = None,
) -> Iterator[Result]:
    """Map a pure function over shards; where they are worked on does not change the results.

    It uses the Ray that this process is connected to; where there is none, it connects as
    ``ray_session`` does, for as long as it maps.

    Args:
        function: importable by name on every machine. It may be called more than once for an
            item, when a worker or its machine is lost; what it writes it writes atomically.
        items: small picklable descriptions of shards; their ``str`` names them in errors.
        workers: as of ``ray_session``; unused when this process is connected already.
        num_gpus: devices that one call takes; 0.25 lets four share one.
        num_cpus: cores that one call takes.
        retries: how often an item is tried again after its worker died.
        progress: called here after each item.

    Yields:
        Results in the order of the items, with few of them waiting.

    Raises:
        UserError: as of ``ray_session``, or the cluster has not what one call takes.
        Exception: what the function raised, with a note that names the item.
        RuntimeError: the worker of an item died each time it was tried.
    """
    with ray_session(workers):
        ray = _library()
        _check_room(ray, num_gpus, num_cpus)
        remote = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=retries)(_call)
        waiting: deque[tuple[Item, Any]] = deque()
        done = 0
        try:
            for item in items:
                waiting.append((item, remote.remote(function, item)))
                if len(waiting) >= 2 * _room(ray, num_gpus, num_cpus):
                    done += 1
                    yield _taken(ray, *waiting.popleft(), retries, progress, done, len(items))
            while waiting:
                done += 1
                yield _taken(ray, *waiting.popleft(), retries, progress, done, len(items))
        finally:
            for _, reference in waiting:
                ray.cancel(reference, force=True)


@contextmanager
def ray_session(workers: int | None = None) -> Iterator[None]:
    """Keep this process connected to Ray while the block runs, so that steps share one start.

    ``RAY_ADDRESS`` names a running cluster. Without it, Ray is started on this machine alone, with
    neither dashboard nor usage statistics. A connection that is there already is used and left
    as it is.

    Args:
        workers: cores that a Ray started here may use; None takes all of them.

    Raises:
        UserError: Ray is not installed, or no cluster answers at the address.
    """
    ray = _library()
    if ray.is_initialized():
        yield
        return
    address = os.environ.get(ADDRESS, "")
    try:
        if address and address != "local":
            _join(ray, address)
        else:
            _start(ray, workers or len(os.sched_getaffinity(0)))
        yield
    finally:
        ray.shutdown()


def _library() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise UserError(
            "engine=ray needs Ray, which is not installed; run: pip install 'openqwen2vl[ray]', "
            "or set engine=local"
        ) from error


def _start(ray: Any, cores: int) -> None:
    # What Ray starts here inherits this: its workers find what this process can import.
    with _environment({**_QUIET, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}):
        ray.init(
            address="local",
            num_cpus=cores,
            include_dashboard=False,
            object_store_memory=_STORE,
            log_to_driver=False,
            logging_level="ERROR",
        )


@contextmanager
def _environment(changes: Mapping[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in changes}
    os.environ.update(changes)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _join(ray: Any, address: str) -> None:
    """Connect to a cluster; Ray itself would wait for minutes where nothing answers."""
    advice = f"start it with `ray start`, mend {ADDRESS}, or unset it to use this machine alone"
    try:
        if address != "auto":
            place = urlsplit(address if "://" in address else f"//{address}")
            with socket.create_connection((place.hostname, place.port or 0), _PATIENCE):
                pass
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = str(error).strip().split("\n")[0]
        raise UserError(f"no Ray answers at {ADDRESS}={address} ({said}); {advice}") from error


def _check_room(ray: Any, num_gpus: float, num_cpus: float) -> None:
    """Make sure that some machine can run one call; Ray would wait for one for ever."""
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(m.get("GPU", 0) >= num_gpus and m.get("CPU", 0) >= num_cpus for m in machines):
        most = {name: max((m.get(name, 0) for m in machines), default=0) for name in ("CPU", "GPU")}
        raise UserError(
            f"a call takes {num_cpus:g} cores and {num_gpus:g} GPUs; no machine of this Ray has "
            f"both, the largest have {most['CPU']:g} cores and {most['GPU']:g} GPUs: ask for less, "
            "or add a machine"
        )


def _room(ray: Any, num_gpus: float, num_cpus: float) -> int:
    """Give how many calls the cluster runs at once, as it is now: machines come and go."""
    there = ray.cluster_resources()
    wanted = {"GPU": num_gpus, "CPU": num_cpus}
    rooms = [there.get(name, 0) / amount for name, amount in wanted.items() if amount]
    return max(1, int(min(rooms, default=1)))


def _call(function: Callable[[Item], Result], item: Item) -> Result:
    """Run in a worker: one thread a library, as in the workers of ``engine.local``."""
    os.environ.update(RAYON_NUM_THREADS="1", OMP_NUM_THREADS="1")
    return function(item)


def _taken(
    ray: Any,
    item: object,
    reference: Any,
    retries: int,
    progress: Progress | None,
    done: int,
    total: int,
) -> Any:
    """Wait for a result; gives back the error as the function raised it."""
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause: BaseException = error.cause or error
        cause.add_note(f"while working on {item}")
        raise cause from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the worker of {item} died {retries + 1} times ({type(error).__name__}); was it short "
            "of memory? take fewer workers"
        ) from error
    if progress is not None:
        progress(done, total)
    return result
