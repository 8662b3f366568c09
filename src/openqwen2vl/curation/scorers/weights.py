"""What scorers with weights share: a name for the weights, and where and how finely to run them."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor

from openqwen2vl.formats.errors import ConfigError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def weights_hash(weights: Mapping[str, Tensor]) -> str:
    """Give 16 hex digits that name weights by their names, types, shapes and values.

    Args:
        weights: as they were loaded; on any device.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        value = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def placement(
    device: str | None, dtype: str | None, half: torch.dtype
) -> tuple[torch.device, torch.dtype]:
    """Choose where a model runs and in which numbers; whether that is there, ``reachable`` tells.

    Args:
        device: as torch writes it; ``None`` is the GPU where this process sees one. Others may see
            another: name it where they do.
        dtype: one of ``DTYPES``; ``None`` is ``half`` on a GPU and float32 elsewhere.
        half: the numbers of 16 bits that suit the model.

    Raises:
        ConfigError: an unknown device or dtype.
    """
    if dtype is not None and dtype not in DTYPES:
        raise ConfigError(f'dtype is "{dtype}"; choose one of {", ".join(DTYPES)}, or null')
    try:
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f'device is "{device}"; give cpu, cuda, cuda:1 or null') from error
    numbers = DTYPES[dtype] if dtype else half if chosen.type == "cuda" else torch.float32
    return chosen, numbers


def reachable(device: torch.device) -> torch.device:
    """Give a device that this process can use.

    Raises:
        ConfigError: it is a GPU that is not there.
    """
    count = torch.cuda.device_count()
    if device.type == "cuda" and (device.index or 0) >= count:
        raise ConfigError(
            f"device is {device}, but a process that scores sees {count} GPUs; give device=cpu, or "
            "num_gpus where engine=ray hands them out"
        )
    return device


@contextmanager
def same_sums(device: torch.device) -> Iterator[None]:
    """Let a model add up in one order, however many threads this process has been left.

    On several threads a product of matrices is split in other places, and its last bits differ:
    scores would depend on the number of workers, of which each keeps to one thread.

    Args:
        device: where the model runs; on a GPU there is nothing to do.
    """
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if device.type == "cpu":
            torch.set_num_threads(threads)
