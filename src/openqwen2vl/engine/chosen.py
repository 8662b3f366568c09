"""The engine that a command was asked for: processes of this machine, or a Ray cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

from openqwen2vl.engine.local import Item, Progress, Result, map_shards
from openqwen2vl.engine.placement import Gpus, place_workers
from openqwen2vl.engine.ray import map_shards_ray, ray_session
from openqwen2vl.formats.errors import UserError

ENGINES = ("local", "ray")
"""What ``engine`` may be in a command's config."""


class Engine(Protocol):
    """A ``Mapper`` that can also tell how far it is, and give each call a share of a device."""

    def __call__(
        self,
        function: Callable[[Item], Result],
        items: Sequence[Item],
        progress: Progress | None = None,
        num_gpus: float = 0.0,
        gpus: Gpus = (),
    ) -> Iterator[Result]:
        """Give ``function(item)`` for each item, in order; ``progress`` is called after each.

        ``num_gpus`` is the share of a device that one call takes of Ray; ``gpus`` are those of this
        machine that its processes share, one process each unless a number was asked for.
        """


@contextmanager
def open_engine(name: str, workers: int | None = None) -> Iterator[Engine]:
    """Give the engine of a name, ready for as many steps as the block has.

    Args:
        name: one of ``ENGINES``.
        workers: processes, or cores of a Ray that is started here; None: one a core, of this
            machine's processes one a GPU where a call wants GPUs.

    Raises:
        UserError: an unknown name, or as of ``ray.ray_session``.
    """
    if name == "local":
        yield _local(workers)
    elif name == "ray":
        with ray_session(workers):
            yield _ray
    else:
        raise UserError(f"engine is {name!r}; there are {', '.join(ENGINES)}")


def _local(workers: int | None) -> Engine:
    cores = len(os.sched_getaffinity(0))

    def engine(
        function: Callable[[Item], Result],
        items: Sequence[Item],
        progress: Progress | None = None,
        num_gpus: float = 0.0,
        gpus: Gpus = (),
    ) -> Iterator[Result]:
        places = place_workers(workers, cores, gpus)
        return map_shards(function, items, len(places), progress, places)

    return engine


def _ray(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    progress: Progress | None = None,
    num_gpus: float = 0.0,
    gpus: Gpus = (),
) -> Iterator[Result]:
    return map_shards_ray(function, items, num_gpus=num_gpus, progress=progress)
