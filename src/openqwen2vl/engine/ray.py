"""Mapping a function over shards on a Ray cluster, with the results of ``engine.local``."""

import importlib
import itertools
import logging
import os
import socket
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from openqwen2vl.engine.local import Item, Progress, Result
from openqwen2vl.engine.ray_worker import call, call_on_gpus, said_before, say
from openqwen2vl.formats.errors import UserError

ADDRESS = "RAY_ADDRESS"
"""Names the cluster to use; without it a Ray of this machine's own is started."""

_LOG = logging.getLogger(__name__)
_PATIENCE = 10.0  # seconds that a cluster may take to answer
# Ray would try what its memory monitor ended again for ever.
_ENDING = {"RAY_task_oom_retries": "3"}
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
    need = _Need(num_cpus, num_gpus)
    with ray_session(workers):
        ray = _library()
        need.check(ray)
        remote = ray.remote(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            max_retries=retries,
            max_calls=0,  # Ray's own one call a process on GPUs would load weights for each shard
        )(call_on_gpus if num_gpus else call)
        waiting: deque[tuple[Item, Any]] = deque()
        count = itertools.count(1)

        def taken() -> Result:
            result: Result = _result(ray, *waiting.popleft(), retries, need)
            if progress is not None:
                progress(next(count), len(items))
            return result

        try:
            for item in items:
                waiting.append((item, remote.remote(function, item)))
                if len(waiting) >= 2 * need.room(ray):
                    yield taken()
            while waiting:
                yield taken()
        finally:
            for _, reference in waiting:
                ray.cancel(reference, force=True)


@dataclass(frozen=True)
class _Need:
    """What one call takes of a machine."""

    cpus: float
    gpus: float

    def fits(self, ray: Any) -> bool:
        """Whether there is a machine that can run one call."""
        return any(
            machine.get("GPU", 0) >= self.gpus and machine.get("CPU", 0) >= self.cpus
            for machine in _machines(ray)
        )

    def check(self, ray: Any) -> None:
        """Make sure that some machine can run one call; Ray would wait for one for ever."""
        if not self.fits(ray):
            cpus, gpus = (
                max((machine.get(name, 0) for machine in _machines(ray)), default=0)
                for name in ("CPU", "GPU")
            )
            raise UserError(
                f"a call takes {self.cpus:g} cores and {self.gpus:g} GPUs; no machine of this Ray "
                f"has both, the largest have {cpus:g} cores and {gpus:g} GPUs: ask for less, or "
                "add a machine"
            )

    def room(self, ray: Any) -> int:
        """Give how many calls the cluster runs at once, as it is now: machines come and go."""
        there = ray.cluster_resources()
        wanted = {"GPU": self.gpus, "CPU": self.cpus}
        rooms = [there.get(name, 0) / amount for name, amount in wanted.items() if amount]
        return max(1, int(min(rooms, default=1)))


def _machines(ray: Any) -> list[dict[str, float]]:
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


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
    with _environment({**_ENDING, **_QUIET, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}):
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
        with _environment(_ENDING):
            ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, ValueError, RuntimeError, ray.exceptions.RayError) as error:
        said = str(error).strip().split("\n")[0]
        raise UserError(f"no Ray answers at {ADDRESS}={address} ({said}); {advice}") from error


def _result(ray: Any, item: object, reference: Any, retries: int, need: _Need) -> Any:
    """Wait for a result, and say what its worker said; raises errors as the function did."""
    told = False
    try:
        while not ray.wait([reference], timeout=_PATIENCE)[0]:
            if not told and not need.fits(ray):
                told = True
                text = "no machine with %g cores and %g GPUs is left in this Ray; waiting for one"
                _LOG.warning(text, need.cpus, need.gpus)
        result, said = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        cause: BaseException = error.cause or error
        say(said_before(cause))
        cause.add_note(f"while working on {item}")
        raise cause from error
    except ray.exceptions.RayError as error:
        raise RuntimeError(
            f"the worker of {item} died {retries + 1} times ({type(error).__name__}); was it short "
            "of memory? take fewer workers"
        ) from error
    say(said)
    return result
