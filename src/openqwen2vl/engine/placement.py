"""How many processes of one machine work on shards, and which GPU each of them sees."""

from collections.abc import Iterable, Mapping, Sequence

VISIBLE = "CUDA_VISIBLE_DEVICES"
"""The environment's name for the GPUs that a process may see."""

Gpus = Sequence[str | None]
"""GPUs to share, by the names that ``VISIBLE`` takes; None stands for those that are named already
by whoever uses them, so that a process must see all. None at all: the work wants none."""


def visible_gpus(count: int, environment: Mapping[str, str]) -> tuple[str, ...]:
    """Give the names of the GPUs that this process sees.

    Args:
        count: how many there are.
        environment: of this process; it may name some out of those of the machine.
    """
    named = [name.strip() for name in environment.get(VISIBLE, "").split(",") if name.strip()]
    return tuple((named or [str(number) for number in range(count)])[:count])


def gpus_to_share(devices: Iterable[str], visible: Sequence[str]) -> tuple[str | None, ...]:
    """Say what the processes have to share among them.

    Args:
        devices: where each part of the work runs, as torch writes it: ``cpu``, ``cuda``, ``cuda:1``.
        visible: as of ``visible_gpus``.
    """
    wanted = {device for device in devices if device.startswith("cuda")}
    if not wanted or not visible:
        return ()
    # A GPU of a number of its own has that number only where all are seen.
    return tuple(visible) if wanted == {"cuda"} else (None,)


def place_workers(asked: int | None, cores: int, gpus: Gpus) -> tuple[str | None, ...]:
    """Decide how many processes there are and which GPU each sees.

    Args:
        asked: how many processes were asked for; None: one a GPU, without GPUs one a core.
        cores: that there are.
        gpus: to share; more processes than GPUs take them in turns.

    Returns:
        For each process the name of the GPU that it sees, None where it sees them as they are.
    """
    if not gpus:
        return (None,) * (asked or cores)
    return tuple(gpus[number % len(gpus)] for number in range(asked or len(gpus)))
