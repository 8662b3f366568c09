"""How many loader processes a rank needs, by what its pictures weigh and what its device takes."""

import os
from collections.abc import Iterable, Mapping
from math import ceil

from openqwen2vl.formats.errors import ConfigError
from openqwen2vl.formats.manifest import Manifest

TOKENS_PER_SECOND = 42_000
"""What a GPU takes at most: the 2B model at half of an H200's peak."""
AHEAD = 2
"""By how much the loader should be faster: packs are uneven and machines are shared."""
# One process with Pillow, handing over included; a core that is not shared takes less.
_PER_BYTE = 17e-9
_PER_IMAGE = 0.9e-3
# What a packed image weighs where no packs are written; see bench/loader.py.
_IMAGE_BYTES = 60_000


def check_loading(
    num_workers: int | str, prefetch_factor: int, micro_batch: int, pin_memory: bool | str
) -> None:
    """Refuse settings that no loader could have.

    Raises:
        ConfigError: naming all four.
    """
    counted = num_workers == "auto" or (isinstance(num_workers, int) and num_workers >= 0)
    pins = pin_memory == "auto" or isinstance(pin_memory, bool)
    if not counted or not pins or prefetch_factor < 1 or micro_batch < 1:
        raise ConfigError(
            f"data.num_workers is {num_workers}, data.prefetch_factor {prefetch_factor}, "
            f"data.micro_batch {micro_batch} and data.pin_memory {pin_memory}; expected auto or at "
            "least 0, at least 1, at least 1, and auto, true or false"
        )


def auto_workers(manifests: Iterable[Manifest], cores: int, gpu: bool) -> int:
    """Give the loader processes of one rank.

    On a GPU as many as keep ``AHEAD`` of it with the heaviest packs, two at least so that one slow
    pack stops nobody, and no more than leave the rank a core. On a CPU one: the model is slower
    than any loader and needs the cores; none where there is but one.

    Args:
        manifests: of all packs that the run reads.
        cores: of this rank.
        gpu: whether the rank trains on one.
    """
    if not gpu:
        return min(1, cores - 1)
    slowest = max(map(_seconds_per_token, manifests), default=0.0)
    needed = ceil(AHEAD * TOKENS_PER_SECOND * slowest)
    return max(1, min(max(2, needed), cores - 1))


def rank_cores(ranks: int, environment: Mapping[str, str] = os.environ) -> int:
    """Give the cores that one of ``ranks`` processes on this machine may use.

    SLURM gives each task its own, torchrun's processes share what there is.
    """
    mine = len(os.sched_getaffinity(0))
    if "SLURM_CPUS_PER_TASK" in environment and "LOCAL_WORLD_SIZE" not in environment:
        return min(mine, int(environment["SLURM_CPUS_PER_TASK"]))
    return max(1, mine // ranks)


def _seconds_per_token(manifest: Manifest) -> float:
    counts = manifest.counts
    weight = sum(shard.bytes for shard in manifest.shards) or _IMAGE_BYTES * counts.images
    return (_PER_BYTE * weight + _PER_IMAGE * counts.images) / max(1, counts.tokens)
