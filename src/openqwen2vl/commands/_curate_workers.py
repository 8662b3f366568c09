"""What `curate` scores with: the GPUs of this machine, or a share of Ray's."""

import os
from collections.abc import Sequence

import torch

from openqwen2vl.curation.scorer import Scorer, device_of, wants_gpu
from openqwen2vl.engine.placement import Gpus, gpus_to_share, visible_gpus
from openqwen2vl.formats.errors import ConfigError


def shared_gpus(scorers: Sequence[Scorer]) -> Gpus:
    """Give the GPUs that scorers want and this machine has; none when all of them use the cores."""
    visible = visible_gpus(torch.cuda.device_count(), os.environ)
    return gpus_to_share([device_of(scorer) for scorer in scorers], visible)


def gpus_a_call(asked: float | None, scorers: Sequence[Scorer]) -> float:
    """Give how many of Ray's GPUs a shard takes while scorers that run on one score it.

    Args:
        asked: as the config says; None: one.
        scorers: of this run.

    Raises:
        ConfigError: GPUs are asked for, and no scorer runs on one.
    """
    if asked and not any(wants_gpu(scorer) for scorer in scorers):
        raise ConfigError(
            f"num_gpus is {asked:g}, but no scorer runs on a GPU; say scorers.NAME.device=cuda of "
            "those that are to (device=null is cuda only where this very process sees one), or "
            "leave num_gpus away"
        )
    return 1.0 if asked is None else asked
