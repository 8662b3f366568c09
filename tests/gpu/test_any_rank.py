"""What ranks tell each other at a step's end makes no host wait; deselected without a GPU."""

from pathlib import Path

import pytest
import torch
from support.trainer import FakeTrainer

from openqwen2vl.callbacks.boundary import AnyRank

pytestmark = pytest.mark.gpu


def test_an_answer_comes_a_step_later_and_nothing_waits(tmp_path: Path) -> None:
    trainer, any_rank = FakeTrainer(tmp_path, world_size=2), AnyRank()
    trainer.strategy.root_device = torch.device("cuda", torch.cuda.current_device())
    torch.cuda.set_sync_debug_mode("error")
    try:
        said = [any_rank(trainer, mine) for mine in (False, True, False, False)]
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert said == [False, False, True, False]
