"""What the processes of this machine share while `curate` scores."""

import os
from collections.abc import Sequence

import torch

from openqwen2vl.curation.scorer import Scorer, device_of
from openqwen2vl.engine.placement import Gpus, gpus_to_share, visible_gpus


def shared_gpus(scorers: Sequence[Scorer]) -> Gpus:
    """Give the GPUs that scorers want and this machine has; none when all of them use the cores."""
    visible = visible_gpus(torch.cuda.device_count(), os.environ)
    return gpus_to_share([device_of(scorer) for scorer in scorers], visible)
